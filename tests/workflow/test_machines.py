"""Training jobs on more devices than a machine has: what the train rule asks Slurm for, by the executor's own command;
and that their number is in no hash of a grid."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from alp.configuration import grid

ROOT = Path(__file__).resolve().parents[2]
# A dry run of the real workflow, which says of each training job what it would ask for.
TELLING = """
import json, sys
from snakemake.cli import main
from snakemake.jobs import Job
said = Job.log_info
def telling(job, *given, **named):
    if job.rule.name == "train":
        asked = {key: job.resources.get(key) for key in job.resources.keys()}
        print("ASKED " + json.dumps([job.wildcards_dict["arm"], asked]), flush=True)
    return said(job, *given, **named)
Job.log_info = telling
main(sys.argv[1:])
"""


ARMS = {  # by the name of its variant: overrides, machines, what sbatch is given
    "one": (["trainer.kl=0.1"], 1, ["--nodes=1", "--ntasks=1", "--cpus-per-task=1"]),
    "two": (["trainer.devices=2"], 1, ["--nodes=1", "--ntasks=1", "--cpus-per-task=2"]),
    "four": (["trainer.devices=4"], 2, ["--nodes=2", "--ntasks=2", "--cpus-per-task=2"]),
    "two_gpus": (["trainer.devices=2", "trainer.device=cuda"], 1, ["--nodes=1", "--cpus-per-task=2"]),
    "four_gpus": (["trainer.devices=4", "trainer.device=cuda"], 2, ["--nodes=2", "--cpus-per-task=2"]),
}


def _grid(tmp_path: Path, arms: dict[str, list[str]], *words: str) -> Path:
    text = yaml.safe_load((ROOT / "configs" / "grid" / "smoke.yaml").read_text(encoding="utf-8"))
    text["overrides"]["train"] = [
        *(word for word in text["overrides"]["train"] if not word.startswith("trainer.device=")),
        *words,
    ]
    text["seeds"] = [0]
    text["arms"] = [{"method": "grpo", "variant": name, "overrides": arms[name]} for name in arms]
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return path


def _dry(tmp_path: Path, path: Path, *config: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TELLING, "-s", str(ROOT / "Snakefile"), "-n", "-p", "--cores", "64"]
    command += ["--profile", str(ROOT / "workflow" / "profiles" / "slurm"), "--config", f"grid={path}", *config]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def _sbatch(asked: dict[str, Any]) -> list[str]:
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command

    resources = type("Resources", (dict,), {"__getattr__": dict.__getitem__})(asked)
    job = SimpleNamespace(resources=resources, threads=asked["_cores"])
    params = {"run_uuid": "x", "slurm_logfile": "x", "comment_str": "x", "account": "", "partition": "", "workdir": ""}
    return str(get_submit_command(job, params)).split()


def test_what_slurm_is_asked_for(tmp_path: Path) -> None:
    path = _grid(tmp_path, {name: overrides for name, (overrides, _, _) in ARMS.items()})
    done = _dry(tmp_path, path, "devices_per_node=2")
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line.removeprefix("ASKED ")) for line in done.stdout.splitlines() if line.startswith("ASKED ")]
    asked = {name.partition("-")[2]: resources for name, resources in told}
    assert asked.keys() == ARMS.keys()
    for name, (overrides, nodes, parts) in ARMS.items():
        said = _sbatch(asked[name])
        assert set(parts) <= set(said), (name, said)
        gpus = 2 * nodes if "trainer.device=cuda" in overrides else 0
        assert asked[name].get("gpu", 0) == gpus
        assert not any(word.startswith("--ntasks-per-gpu") for word in said), "ranks are no tasks of Slurm"
        assert ("mpi" in asked[name]) == (nodes > 1), "the executor starts it in no step of its own"
        (command,) = re.findall(rf"exec alp train .*run\.arm=grpo-{name} .*", done.stdout + done.stderr)
        assert all(word in command for word in overrides)


def test_devices_that_fill_no_machine_are_one_line(tmp_path: Path) -> None:
    done = _dry(tmp_path, _grid(tmp_path, {"six": ["trainer.devices=6"]}), "devices_per_node=4")
    assert (done.returncode, [line for line in done.stderr.splitlines() if "alp: error" in line]) == (
        2,
        [
            "alp: error: trainer.devices = 6 is not divisible by the 4 devices of a machine (devices_per_node);"
            " nearest that is: 8"
        ],
    )
    assert "Traceback" not in done.stderr


def test_devices_are_in_no_hash_of_a_grid(tmp_path: Path) -> None:
    """So neither its jobs nor its tables are made again where they change; other words are."""

    def content(*words: str, arm: tuple[str, ...] = ()) -> str:
        return grid.load(str(_grid(tmp_path, {"label": ["trainer.kl=0.1", *arm]}, *words))).content_hash

    assert content() == content("trainer.devices=2") == content(arm=("trainer.devices=2",))
    assert content() != content("trainer.lr=1e-3")
