"""What the rules share: the checked grid, the folders, and the words of each `alp` command.

A job re-runs when its command or its resolved configuration changes (params `words`, `config`), or when what it computes with
changes (params `code`, a hash over the syntax of the modules it runs and the versions of their packages). Snakemake sees neither by itself, and time stamps alone never
start anything.
"""

import functools
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from pathlib import Path

BASE_FOLDER = Path(workflow.basedir).resolve()
# Of workflow/Snakefile, where the workflow catalogue looks for it, the folder above.
ROOT = BASE_FOLDER if (BASE_FOLDER / "alp").is_dir() else BASE_FOLDER.parent
sys.path.insert(
    0, str(ROOT)
)  # the `alp` beside this Snakefile, wherever the results go

from alp import cluster as alp_cluster
from alp import launch as alp_launch
from alp import warm as alp_warm
from alp.configuration import compose as alp_config
from alp.configuration import grid as alp_grid
from alp.configuration import resources as alp_resources
from alp.errors import UserError
from alp.lifetime import end_with_parent
from alp.ownership import check, claimed
from alp.reporting import registry as alp_registry
from alp.reporting import trackers as alp_trackers
from filelock import FileLock, Timeout

try:
    NAMED = alp_grid.plain_word("grid", config.get("grid", "quick"))
    RESULTS = alp_grid.results_root(config.get("results", "results"))
    alp_grid.check_checkout(ROOT, Path(sys.executable).parent)
    GRID = alp_grid.load(NAMED)
    unknown = sorted(set(config) - {"devices_per_node", "grid", "results", "share"})
    if unknown:
        raise UserError(
            f"--config: unknown key '{unknown[0]}'; choose from devices_per_node, grid, results, share"
        )
    said = str(
        config.get("share", True)
    ).lower()  # Snakemake reads True as a truth value, true as text
    if said not in ("true", "false"):
        raise UserError(f"--config: share is true or false, not '{config['share']}'")
    SHARE = said == "true"
    # What a machine of the cluster has: a training job of more asks for several (docs/distributed.md).
    EACH = alp_cluster.devices_per_node(
        config.get("devices_per_node"), "--config devices_per_node"
    )
    for arm in GRID.arms if EACH else ():
        alp_resources.nodes(alp_grid.job_of(GRID, arm), EACH)
    FOLDER = str(GRID.folder(RESULTS))
    GRID.tracking_uri(RESULTS)  # refuses what MLflow would read as another database
    alp_trackers.asked()  # refuses a tracker that is unknown or not installed
    if workflow.is_main_process:
        check(FOLDER, "--config results")
except UserError as error:
    print(f"alp: error: {error}", file=sys.stderr)
    sys.exit(2)

DATA, BASE, MODEL = (
    str(GRID.data_dir(RESULTS)),
    str(GRID.base_dir(RESULTS)),
    str(GRID.model_dir(RESULTS)),
)
RUN = str(GRID.run_dir(RESULTS, "{arm}", 0)).removesuffix("seed0") + "seed{seed}"
MODEL_FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
# What says that the model every job starts from is there. A fetched one may have its weights in several files: source.json holds their hashes.
if GRID.own_model:
    START = [f"{MODEL}/config.json"]
elif GRID.fetched:
    START = [f"{BASE}/source.json"]
else:
    START = [f"{MODEL}/{name}" for name in MODEL_FILES]


# Jobs run the `alp` of the environment Snakemake itself runs in, on the source beside this Snakefile, and end with Snakemake.
# Modules of the user's own on the Python path stay there. Snakemake formats the prefix: braces stand twice.
def set_prefix(*more):
    shell.prefix(
        " ".join(
            [
                f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
                f"PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
                *("ALP_PARENT=$PPID", "ALP_SHELL=$$"),
                *([f"{alp_launch.PER_MACHINE}={EACH}"] if EACH else []),
                *(*more, "; "),
            ]
        )
        .replace("{", "{{")
        .replace("}", "}}")
    )


def warm():
    """Start the parent that jobs of this machine are forked from, their imports done (alp/warm.py)."""
    if not workflow.local_exec:
        return
    try:
        folder = Path(tempfile.mkdtemp(prefix="alp-"))
    except OSError:  # no folder for temporary files: jobs start cold
        return
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    before = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{ROOT}:{before}" if before else str(ROOT)
    if alp_warm.start(folder / "jobs", environment) is None:
        folder.rmdir()
    else:
        set_prefix(f"{alp_warm.VARIABLE}={shlex.quote(str(folder / 'jobs'))}")


set_prefix()


def schedule_when_a_job_ends():
    """Keep Snakemake 9 from looking for jobs to start by the clock as well, on this machine.

    To hold to a number of starts in a second it has every look followed by another, a second later: looks add up with
    each job that ends, to more than a hundred a second on a grid of a few hundred jobs. Cores bound the starts here.
    """
    if workflow.local_exec:
        workflow.scheduler.job_rate_limiter = None


def on_slurm():
    """Whether this process submits to Slurm."""
    return (
        workflow.executor_plugin is not None
        and workflow.executor_plugin.name == "slurm"
    )


def cluster():
    """Names for the jobs of a cluster, and none beside those that an earlier start left there (alp/cluster.py)."""
    if not on_slurm():
        return
    try:
        alp_cluster.check_nothing_runs(GRID.name, Path.cwd())
    except UserError as error:
        print(f"alp: error: {error}", file=sys.stderr)
        sys.exit(2)
    alp_cluster.adapt(sys.modules["snakemake_executor_plugin_slurm"], GRID.name)


def claim():
    """Hold this grid for this process; locks that a killed Snakemake left on it are removed, those of a living one stay."""
    state = Path(".snakemake")
    state.mkdir(exist_ok=True)
    grid_lock = FileLock(state / f"alp_{GRID.name}.lock")
    try:
        grid_lock.acquire(timeout=0)
    except Timeout:
        return grid_lock
    for lock in state.glob("locks/*.lock"):
        if any(
            line.startswith(f"{FOLDER}/")
            for line in lock.read_text(encoding="utf-8").splitlines()
        ):
            lock.unlink()
    return grid_lock


def mark():
    """Make the grid's folder the program's, before Snakemake writes the first log into it, and note the grid's file."""
    named = str(Path(NAMED).resolve()) if NAMED.endswith((".yaml", ".yml")) else NAMED
    origin = {"identity": GRID.name, "grid": named}
    with claimed(FOLDER, "grid", origin, outputs=["logs/"], key="--config results"):
        pass


if workflow.is_main_process:
    end_with_parent(signal.SIGKILL)  # of `make`, which asks for it
    CLAIM = claim()


wildcard_constraints:
    arm="|".join(re.escape(arm.name) for arm in GRID.arms),
    seed=r"\d+",


def overrides(verb, wildcards):
    """The `key=value` words of a job."""
    arm = getattr(wildcards, "arm", None)
    seed = int(getattr(wildcards, "seed", 0))
    return tuple(GRID.overrides(verb, RESULTS, arm=arm, seed=seed))


composed = functools.cache(alp_config.load)


def resolved(verb, wildcards):
    """The checked configuration of a job, composed once for all that is asked about it."""
    return composed(verb, overrides(verb, wildcards))


def words(verb):
    """A params function: the words of a job that its results follow from, quoted for the shell."""
    return lambda wildcards: shlex.join(
        word for word in overrides(verb, wildcards) if alp_grid.bears_on_results(word)
    )


def share(wildcards, threads):
    """One more word where nothing is shared. Snakemake keeps no record of params that ask for `threads`: whether a result was
    taken over is no reason to make it again."""
    return "" if SHARE else "run.share=false"


def unrecorded(wildcards, threads):
    """The same of a training job, with the number of its devices: that is no reason either."""
    others = [
        word
        for word in overrides("train", wildcards)
        if not alp_grid.bears_on_results(word)
    ]
    return shlex.join([*others, *filter(None, [share(wildcards, threads)])])


def thread_count(verb):
    """A threads function, of one machine; a verb that works on the whole grid takes one."""
    return lambda wildcards: alp_resources.threads(
        verb, resolved(verb, wildcards), machines(verb, wildcards)
    )


def memory(verb):
    """A resources function: MiB of one machine."""
    return lambda wildcards, attempt: alp_resources.memory_mb(
        verb, resolved(verb, wildcards), attempt, machines(verb, wildcards)
    )


def machines(verb, wildcards):
    """How many machines a job takes."""
    if verb != "train":
        return 1
    return alp_resources.nodes(resolved(verb, wildcards), EACH)


def nodes(wildcards):
    """A resources function: machines, all devices of a job on one of them unless `devices_per_node` says otherwise."""
    return machines("train", wildcards)


def mpi(wildcards):
    """A resources function, of none where a job takes one machine: has the executor start it outside of any job step, so that
    it can have one of its own over all its machines (alp/cluster.py)."""
    return "srun" if machines("train", wildcards) > 1 else None


@functools.cache
def evaluation_minutes():
    """Minutes that `alp plan` expects of the longest evaluation, where a scheduler may end one; 0 where it cannot say."""
    if not on_slurm():
        return 0.0
    from alp.planning.plan import make

    words = [f"grid={alp_grid.quoted(NAMED)}", f"results={alp_grid.quoted(RESULTS)}"]
    try:
        jobs = make(alp_config.load("plan", words)).jobs
    except UserError:  # of a set whose size nothing says yet
        return 0.0
    return max(job.seconds for job in jobs if job.stage == "evaluate") / 60


def minutes(verb):
    """A resources function: minutes."""
    return lambda wildcards, attempt: alp_resources.minutes(
        verb, attempt, evaluation_minutes() if verb == "evaluate" else 0.0
    )


def gpus(verb):
    """A resources function: GPUs."""
    return lambda wildcards: alp_resources.gpus(verb, resolved(verb, wildcards))


def grid_memory(wildcards, attempt):
    """Of a verb that works on the whole grid."""
    return alp_resources.memory_mb("analysis", None, attempt)


def grid_minutes(wildcards, attempt):
    """Of a verb that works on the whole grid."""
    return alp_resources.minutes("analysis", attempt)


def grid_words(wildcards):
    """The words of a verb that works on the whole grid; a function, since Snakemake looks for wildcards in a string."""
    return shlex.join(
        [
            f"grid={alp_grid.quoted(NAMED)}",
            f"results={alp_grid.quoted(RESULTS)}",
            "replace=true",
        ]
    )


def identity(verb):
    """A params function: SHA-256 of the job's resolved configuration."""
    return lambda wildcards: alp_config.identity(resolved(verb, wildcards))


def code(verb):
    """A params function: hash of what the job computes with, as its task, engine and method choose it."""
    return lambda wildcards: alp_config.code_of(verb, resolved(verb, wildcards))


def grid_code(verb, *patterns):
    """The same of a verb that works on the whole grid; files that match `patterns` (templates, captions) are source too."""
    assets = [path for pattern in patterns for path in ROOT.glob(pattern)]
    return alp_config.code_of(verb, None, *assets)


def every(pattern):
    """`pattern` for every training job of the grid."""
    return expand(pattern, arm=[arm.name for arm in GRID.arms], seed=GRID.seeds)


def everything():
    """What the analysis of a grid reads."""
    return {
        "metrics": every(f"{RUN}/metrics.jsonl"),
        "updates": every(f"{RUN}/updates.jsonl"),
        "active": every(f"{RUN}/active.json"),
        "configs": every(f"{RUN}/config.yaml"),
        "provenance": every(f"{RUN}/provenance.json"),
        "evaluations": every(f"{RUN}/evaluation/test.json"),
        "base": f"{BASE}/evaluation/test.json",
    }


def shown(kind):
    """Files of the grid's tables or figures. One of each is what `snakemake --report` shows, under its title."""
    titles = {item.name: item.title for item in alp_registry.of_grid(kind, GRID)}
    files = []
    for name in alp_registry.paths_of(kind, GRID):
        path = f"{FOLDER}/{name}"
        if (
            name.suffix in (".csv", ".svg") and name.stem in titles
        ):  # not the figure for a phone
            labels = {"title": titles[name.stem]}
            path = report(path, category=kind.capitalize(), labels=labels)
        files.append(path)
    return files
