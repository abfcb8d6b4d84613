"""Every kind of file that comes from elsewhere, damaged in every way that hypothesis finds: a result or one line, never
a traceback.

Each attempt is ``alp`` in a forked process with a limit on its memory, so that files that explode are seen.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alp import cli
from alp.configuration import compose, grid
from alp.policy.method import Method
from tests.conftest import TINY_TASK
from tests.faults import damage
from tests.faults.conftest import ALL, Ledger
from tests.reporting.conftest import GRID, fabricate, trajectory, write_grid

EXAMPLES = 22 if ALL else 2
SECONDS = 60
MEMORY = 2 * 2**30  # bytes beyond what the process has when it is forked
DUMP = {
    "old_log_probs": [-1.0, -0.5],
    "rollout_log_probs": [-1.1, -0.4],
    "response_mask": [1, 1],
    "advantages": 0.5,
    "step": 1,
}


@dataclass
class Kind:
    """A file, what it may become, and the words (or the function) that read it."""

    path: Path
    form: str
    words: list[str] = field(default_factory=list)
    call: Callable[[], Any] | None = None

    def read(self) -> int:
        if self.call is not None:
            self.call()
            return 0
        return cli.main(self.words)


@dataclass
class World:
    """A folder with one intact file of every kind."""

    root: Path
    kinds: dict[str, Kind]


def _model(root: Path, base_model: Path, kinds: dict[str, Kind]) -> None:
    shutil.copytree(base_model, root / "model")
    words = [
        "evaluate",
        *TINY_TASK,
        "task.test=1",
        f"model.path='{root}/model'",
        f"run.dir='{root}/run'",
        "run.replace=true",
        "evaluation.samples=1",
    ]
    words += ["evaluation.greedy=false", "evaluation.max_new_tokens=11", "evaluation.device=cpu"]
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        kinds[f"model {name}"] = Kind(root / "model" / name, "json", words)
    kinds["model weights"] = Kind(root / "model" / "model.safetensors", "safetensors", words)
    split = root / "sharded"
    shutil.copytree(base_model, split)
    _shard(split)
    words = [word.replace(f"{root}/model", str(split)) for word in words]
    kinds["model index"] = Kind(split / "model.safetensors.index.json", "json", words)
    prepared = root / "prepared"
    assert cli.main(["prepare", *TINY_TASK, f"run.dir='{prepared}'"]) == 0
    kinds["prepared problems"] = Kind(prepared / "test.jsonl", "json", [*words, f"task.data='{prepared}'"])


def _shard(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file(
            {name: tensors[name] for name in places if places[name] == file}, folder / file, metadata={"format": "pt"}
        )
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    )


def _dumps(root: Path, kinds: dict[str, Kind]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "dump.jsonl").write_text("".join(json.dumps(DUMP | {"step": step}) + "\n" for step in range(3)))
    arrays: dict[str, Any] = {name: np.array([value] * 3) for name, value in DUMP.items()}
    pq.write_table(pa.table({name: [value] * 3 for name, value in DUMP.items()}), root / "dump.parquet")
    np.savez(root / "dump.npz", **arrays)
    np.savez_compressed(root / "packed.npz", **arrays)
    for name, form in (
        ("dump.jsonl", "json"),
        ("dump.parquet", "binary"),
        ("dump.npz", "binary"),
        ("packed.npz", "binary"),
    ):
        kinds[f"dump {name}"] = Kind(
            root / name, form, ["diagnose", f"input='{root}/{name}'", f"output='{root}/of {name}'"]
        )


def _problems(root: Path, kinds: dict[str, Kind]) -> None:
    for name in ("train", "easy"):
        rows = [
            {"id": str(number), "problem": f"{name} {number}?", "answer": str(number), "source": "x"}
            for number in range(5)
        ]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "prepare",
        "task=mathematics",
        f"task.train=[{{path: '{root}/train.jsonl'}}]",
        f"task.test={{easy: {{path: '{root}/easy.jsonl'}}}}",
    ]
    kinds["problems"] = Kind(
        root / "train.jsonl", "json", [*words, "task.validation=1", f"run.dir='{root}/data'", "run.replace=true"]
    )


def _yaml(root: Path, kinds: dict[str, Kind]) -> None:
    """Files rewritten as JSON, which is YAML, so that single values can be damaged."""
    path = root / "mine.yaml"
    path.write_text(json.dumps(OmegaConf.to_container(OmegaConf.create(GRID)) | {"seeds": [0]}))  # type: ignore[operator]
    kinds["grid"] = Kind(path, "yaml", call=lambda: grid.load(str(root / "mine.yaml")))
    configs = root / "configs"
    shutil.copytree(compose.CONFIGS, configs)
    for name in ("published", "method/token_alp", "trainer/default", "task/arithmetic"):
        path = configs / f"{name}.yaml"
        path.write_text(json.dumps(OmegaConf.to_container(OmegaConf.load(path))))
        kinds[f"configs/{name}"] = Kind(path, "yaml", ["train", "method=token_alp", "--cfg", "job"])
    kinds["configs/published"].call = kinds["grid"].call


def _results(root: Path, kinds: dict[str, Kind]) -> None:
    from alp.reporting.records import UPDATE, read_lines
    from alp.reporting.tracking import describe
    from alp.reporting.trajectories import read as read_trajectories

    made, results = fabricate(write_grid(root, GRID), root / "results", steps=3)
    run = made.run_dir(results, "grpo", 0)
    for name in ("metrics.jsonl", "evaluation/test.json"):
        kinds[name] = Kind(run / name, "json", ["aggregate", f"grid='{root}/tiny.yaml'", f"results='{results}'"])
    kinds["updates.jsonl"] = Kind(
        run / "updates.jsonl", "json", call=lambda: read_lines(run / "updates.jsonl", UPDATE, "…")
    )
    (run / "updates.jsonl").write_text(
        '{"step": 1, "log_ratio": [0.5, 0.1], "clean_log_ratio": [0.4, 0.1], "mean_probability": [0.5, 1.0]}\n'
    )
    kinds["trajectories.jsonl"] = Kind(
        run / "trajectories.jsonl", "json", call=lambda: read_trajectories(run / "trajectories.jsonl", "…")
    )
    line = trajectory(5, 0, Method(name="grpo"), np.random.default_rng(0))
    (run / "trajectories.jsonl").write_text(json.dumps(line) + "\n")
    for name in ("config.yaml", "provenance.json"):
        kinds[name] = Kind(run / name, "binary" if name == "config.yaml" else "json", call=lambda: describe(run))


def _continued(root: Path, kinds: dict[str, Kind]) -> None:
    """What an interrupted job continues from: damaged, it is passed over."""
    import gzip

    from alp.evaluation.samples import Chunks
    from alp.training import checkpoint

    origin = {
        "identity": "a" * 64,
        "config": {},
        "code_hash": "x",
        "model_hash": "x",
        "data_hash": "x",
    }
    checkpoint.save(root / "job", origin, {"step": 1, "pending": None})
    (folder,) = (root / "job" / "checkpoints").iterdir()
    for name in ("checkpoint.json", "state.pt"):
        form = "json" if name.endswith("json") else "binary"
        kinds[name] = Kind(folder / name, form, call=lambda: checkpoint.usable(root / "job", origin))
    line = (
        json.dumps(
            {"problem_id": "a", "sample": 0, "reward": 1.0, "finished": True, "token_ids": [1], "log_probs": [-0.5]}
        )
        + "\n"
    )
    chunks = Chunks(root / "parts", "b" * 64)
    chunks.write(0, [line])
    path = root / "parts" / ("b" * 16) / "000000.jsonl.gz"
    assert gzip.decompress(path.read_bytes()).decode() == line
    kinds["samples"] = Kind(path, "binary", call=lambda: chunks.read(0, [("a", 0)]))


@pytest.fixture(scope="module")
def world(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("foreign")
    kinds: dict[str, Kind] = {}
    _model(root, base_model, kinds)
    _dumps(root, kinds)
    _problems(root, kinds)
    _yaml(root, kinds)
    _results(root, kinds)
    _continued(root, kinds)
    assert set(kinds) == set(KINDS)
    return World(root, kinds)


KINDS = [
    *(
        f"model {name}"
        for name in (
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "weights",
            "index",
        )
    ),
    *(f"dump {name}" for name in ("dump.jsonl", "dump.parquet", "dump.npz", "packed.npz")),
    *("problems", "prepared problems"),
    *("grid", "configs/published", "configs/method/token_alp", "configs/trainer/default", "configs/task/arithmetic"),
    *("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "evaluation/test.json"),
    *("config.yaml", "provenance.json"),
    *("checkpoint.json", "state.pt", "samples"),
]


def _limited(root: Path, action: Callable[[], int], log: Path) -> int:
    """The exit code of ``action`` in a forked process with little memory; 70 for an exception, 124 for one that
    hangs."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 71
        try:
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.stdout = sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            compose.read_from(root / "configs")
            used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            from alp.errors import UserError

            try:
                code = action()
            except UserError as error:  # of a reader that is called without the command line
                print(f"alp: error: {error}")
                code = 2
        except BaseException:
            code = 70
            with contextlib.suppress(BaseException):
                traceback.print_exc(file=sys.stderr)
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return 124


@contextlib.contextmanager
def _restored(path: Path) -> Iterator[None]:
    """Whatever becomes of a file, or of the folder it is in, all is as before afterwards."""
    folder = path.parent
    whole = {one: one.read_bytes() for one in folder.iterdir() if one.is_file()}
    try:
        yield
    finally:
        folder.mkdir(exist_ok=True)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        for one, content in whole.items():
            if one == path or not one.exists():
                one.write_bytes(content)
        for aside in folder.parent.glob("damaged_*"):
            shutil.rmtree(aside)


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_one_line(name: str, world: World, ledger: Ledger) -> None:
    kind, log = world.kinds[name], world.root / "log"
    tried = 0

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.data())
    def attempt(data: Any) -> None:
        nonlocal tried
        with _restored(kind.path):
            change = data.draw(damage.damages(kind.path.read_bytes(), kind.form))
            change(kind.path)
            tried += 1
            code = _limited(world.root, kind.read, log)
            said = log.read_text(encoding="utf-8", errors="replace")
            assert code in (0, 2), f"{code}: {damage.shown(kind.path)}\n{said[-1500:]}"
            assert "Traceback" not in said
            last = [line for line in said.splitlines() if line.startswith("alp: error: ")]
            assert code == 0 or (len(last) == 1 and len(last[0]) < 1500), said[-3000:]

    assert _limited(world.root, kind.read, log) == 0, f"the intact file: {log.read_text(encoding='utf-8')[-3000:]}"
    attempt()
    ledger.tried(f"foreign file damaged: {name}", tried)
