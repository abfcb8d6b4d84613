"""What the rules share: the checked grid, the folders, and the words of each `alp` command.

A job re-runs when its command or its resolved configuration changes (params `words`, `config`), or when the source of its verb
changes (params `code`, a hash over the verb's import closure). Snakemake sees neither by itself, and time stamps alone never
start anything.
"""

import json
import re
import shlex
import signal
import sys
from pathlib import Path

ROOT = Path(workflow.basedir).resolve()
sys.path.insert(
    0, str(ROOT)
)  # the `alp` beside this Snakefile, wherever the results go

from alp.configuration import compose as alp_config
from alp.configuration import grid as alp_grid
from alp.errors import UserError
from alp.lifetime import end_with_parent
from alp.ownership import check, claimed
from alp.reproducibility import code_hash
from filelock import FileLock, Timeout

try:
    NAMED = alp_grid.plain_word("grid", config.get("grid", "quick"))
    RESULTS = alp_grid.results_root(config.get("results", "results"))
    alp_grid.check_checkout(ROOT, Path(sys.executable).parent)
    GRID = alp_grid.load(NAMED)
    unknown = sorted(set(config) - {"grid", "results"})
    if unknown:
        raise UserError(
            f"--config: unknown key '{unknown[0]}'; choose from grid, results"
        )
    FOLDER = str(GRID.folder(RESULTS))
    GRID.tracking_uri(RESULTS)  # refuses what MLflow would read as another database
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
shell.prefix(
    f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}} "
    "ALP_PARENT=$PPID ALP_SHELL=$$; ".replace("{", "{{").replace("}", "}}")
)
MODULES = {
    "prepare": "alp.tasks.prepare",
    "fetch": "alp.fetch",
    "pretrain": "alp.training.pretrain",
    "train": "alp.training.trainer",
    "evaluate": "alp.evaluation.evaluate",
    "aggregate": "alp.reporting.aggregate",
    "figures": "alp.reporting.figures",
    "track": "alp.reporting.tracking",
    "report": "alp.reporting.report",
    "manifest": "alp.reporting.manifest",
}


def claim():
    """Hold this grid for this process; locks that a killed Snakemake left on it are removed, those of a living one stay."""
    place = Path(".snakemake")
    place.mkdir(exist_ok=True)
    held = FileLock(place / f"alp_{GRID.name}.lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        return held
    for lock in place.glob("locks/*.lock"):
        if any(
            line.startswith(f"{FOLDER}/")
            for line in lock.read_text(encoding="utf-8").splitlines()
        ):
            lock.unlink()
    return held


def mark():
    """Make the grid's folder the program's, before Snakemake writes the first log into it."""
    outputs, origin = ["logs/"], {"identity": GRID.name}
    with claimed(FOLDER, "grid", origin, outputs=outputs, key="--config results"):
        pass


if workflow.is_main_process:
    end_with_parent(signal.SIGKILL)  # of `make`, which asks for it
    CLAIM = claim()


wildcard_constraints:
    arm="|".join(re.escape(arm.name) for arm in GRID.arms),
    seed=r"\d+",


def words(verb):
    """A params function: the `key=value` words of a job, quoted for the shell."""

    def of(wildcards):
        arm = getattr(wildcards, "arm", None)
        seed = int(getattr(wildcards, "seed", 0))
        return shlex.join(GRID.overrides(verb, RESULTS, arm=arm, seed=seed))

    return of


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

    def of(wildcards):
        arm = getattr(wildcards, "arm", None)
        seed = int(getattr(wildcards, "seed", 0))
        return alp_config.identity(
            alp_config.load(verb, GRID.overrides(verb, RESULTS, arm=arm, seed=seed))
        )

    return of


def code(verb):
    """Hash of the source a verb runs; the report's templates and captions are source too."""
    assets = (
        [*ROOT.glob("workflow/report/*.rst"), *ROOT.glob("alp/reporting/*.j2")]
        if verb == "report"
        else []
    )
    return code_hash(MODULES[verb], *assets)


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
