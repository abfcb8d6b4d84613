"""One job on 1, 2 and 4 processes: the number changes speed and memory, not results; a rank that fails ends the job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from alp.configuration import compose
from alp.errors import TRY_AGAIN, UserError
from alp.rollout import process
from alp.training.distributed import evened, joined
from tests.conftest import TINY_TASK
from tests.training.ranks import on_ranks, trained

SIZES = (1, 2, 4)
DOUBLED = ("float64",)
JOBS = {  # five groups of four responses, an update on each
    "seq_alp": ["method=seq_alp", "trainer.kl=0.01", "trainer.probe_every=1", "trainer.validate_every=1"],
    "m2po": ["method=m2po", "trainer.micro_batch=3", "trainer.logits_chunk=16"],
    "lora": ["method=token_mis", "model.lora={rank: 4, alpha: 8}", "trainer.micro_tokens=40"],
    "bfloat16": ["method=token_alp", "trainer.precision=bfloat16", "model.gradient_checkpointing=true"],
    "float64": ["method=seq_alp", "trainer.kl=0.01"],
}
# Of the change that the updates made, by norm. In bfloat16 a rounding of an activation moves a gradient by 2^-9.
TOLERANCE = {"float64": 1e-10, "bfloat16": 0.1}


def _words(base_model: Path, devices: int, words: list[str]) -> list[str]:
    tiny = [
        *TINY_TASK,
        f"model.path='{base_model}'",
        f"trainer.devices={devices}",
        # Rollout batches composed alike, whichever rank samples: a group each.
        *("trainer.steps=1", "trainer.prompts=5", "trainer.samples=4", "trainer.updates_per_batch=5"),
        *("rollout.batch_size=4", "validation.batch_size=4", "trainer.validation_samples=4"),
        *("trainer.lr=1e-3", "trainer.validate_every=0", "trainer.probe_every=0", "trainer.checkpoint_every=0"),
        *("run.tracking=null", "trainer.device=cpu"),
    ]
    keys = {word.split("=")[0] for word in words}
    keys |= {f"{key}.batch_size" for key in keys}  # of the HF engine alone
    return [*(word for word in tiny if word.split("=")[0] not in keys), *words]


@pytest.fixture(scope="module")
def built(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every job on every number of processes: ``<number>/<name>/``."""
    root = tmp_path_factory.mktemp("sizes")
    for size in SIZES:
        jobs = {name: _words(base_model, size, words) for name, words in JOBS.items()}
        on_ranks(size, trained, str(root / str(size)), jobs, DOUBLED)
    return root


def _weights(folder: Path) -> torch.Tensor:
    values = load_file(folder / "model.safetensors")
    return torch.cat([values[name].double().flatten() for name in sorted(values)])


def _lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("name", JOBS)
def test_the_number_of_processes_changes_no_result(built: Path, base_model: Path, name: str, size: int) -> None:
    one, several = built / "1" / name, built / str(size) / name
    alone, change = _weights(one / "model"), _weights(one / "model") - _weights(base_model)
    gap = float((_weights(several / "model") - alone).norm() / change.norm())
    assert gap <= TOLERANCE.get(name, 1e-4)
    if name == "bfloat16":
        return
    for ours, theirs in zip(_lines(one, "metrics.jsonl"), _lines(several, "metrics.jsonl"), strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert theirs[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_problems_samples_and_marks_are_the_same(built: Path) -> None:
    """Of the trajectories that a probed step shows: which problem, which tokens, what the loss did with each."""
    read = [_lines(built / str(size) / "seq_alp", "trajectories.jsonl") for size in SIZES]
    exact = ("problem", "sample", "reward", "marks", "prompt", "advantage")
    first = [{key: line[key] for key in exact if key in line} for line in read[0]]
    assert first
    assert "marks" in first[0]
    for other in read[1:]:
        assert [{key: line[key] for key in exact if key in line} for line in other] == first


def test_the_number_is_in_the_record_and_not_in_the_identity(built: Path) -> None:
    identities = set()
    for size in SIZES:
        folder = built / str(size) / "seq_alp"
        identities.add(json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["identity"])
        active = json.loads((folder / "active.json").read_text(encoding="utf-8"))
        assert (active.get("devices", 1), active.get("sharded_units", 0)) == (size, 0 if size == 1 else 4)
        assert f"devices: {size}" in (folder / "config.yaml").read_text(encoding="utf-8")
    assert len(identities) == 1


def test_groups_are_halved_until_every_rank_has_as_many() -> None:
    assert evened([[0, 1, 2, 3]], [5, 5, 5, 5], 2) == [[0, 1], [2, 3]]
    assert evened([[0, 1], [2], [3, 4]], [9, 9, 1, 2, 2], 4) == [[0], [1], [2], [3, 4]]
    assert evened([[0], [1], [2]], [1, 1, 1], 2) == [[0], [1], [2]], "a single row stays"


def test_an_engine_that_a_rank_starts_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun it would wait for a store of its own that nobody opens."""
    told = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_WORLD_SIZE", "MASTER_PORT")
    for name in (*told, "TORCHELASTIC_USE_AGENT_STORE", "ALP_RANKS_OF", "ALP_RENDEZVOUS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    given = process._environment({"OMP_NUM_THREADS": "1"}, tmp_path)
    assert not {*told, "TORCHELASTIC_USE_AGENT_STORE", "ALP_RANKS_OF", "ALP_RENDEZVOUS"} & given.keys()
    assert given["CUDA_VISIBLE_DEVICES"] == "1", "the rank's device is the engine's"


def test_a_world_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"trainer.devices = 2, but this process is alone"), joined(2, "cpu"):
        pass
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(UserError, match=r"torchrun started 4 processes; give trainer.devices=4"), joined(2, "cpu"):
        pass


# ---- stopped, failed, taken up by another number ---------------------------------------------------------------------

ENGINE = '''
import os, signal
from alp.rollout.hf import HFEngine

class Engine(HFEngine):
    """The one of transformers; a file says what is to happen when step 2 is sampled."""
    def __init__(self, host, options):
        super().__init__(host.model, dtype="float32", device=host.device, batch_size=4)

    @classmethod
    def check(cls, options, folder):
        pass

    def generate(self, requests, sampling):
        word = open(os.environ["ALP_TEST_WORD"]).read()
        if requests[0].key[0] == 0 and requests[0].key[2] == 2 and os.environ.get("RANK", "0") == "1":
            if word == "fail":
                raise RuntimeError("no room on this card")
            if word == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            if word == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(requests, sampling)
'''


@pytest.fixture
def own_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "engine_of_ranks.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("ALP_TEST_WORD", str(tmp_path / "word"))
    own = ["=custom", ".module=engine_of_ranks", ".options={}", ".dtype=float32"]
    return [f"{group}{word}" for group in ("rollout", "validation") for word in own]


@pytest.mark.long
def test_a_rank_that_fails_ends_the_job_and_any_number_goes_on(
    own_engine: list[str], base_model: Path, tmp_path: Path
) -> None:
    """Failed, killed, stopped by a signal to one rank; each time the same command goes on, the last time with one
    process; and what comes out is what one process makes undisturbed."""
    words = ["method=seq_alp", "trainer.steps=3", "trainer.prompts=2", "trainer.updates_per_batch=2"]
    words += ["trainer.kl=0.1", "trainer.checkpoint_every=1", *own_engine]  # a gradient even where no answer is right

    def alp(folder: str, devices: int, word: str) -> tuple[int, str]:
        (tmp_path / "word").write_text(word)
        command = ["train", *_words(base_model, devices, words), f"run.dir='{tmp_path / folder}'"]
        done = subprocess.run(
            [sys.executable, "-m", "alp.cli", *command], capture_output=True, text=True, check=False, timeout=600
        )
        return done.returncode, done.stderr

    code, said = alp("run", 2, "fail")
    assert code == 1, said
    assert said.rstrip().endswith("alp: error: RuntimeError: no room on this card (rank 1)")
    assert said.count("alp: error:") == 1, "no word of the ranks that it took along"
    code, said = alp("run", 2, "kill")
    assert (code, said.rstrip().splitlines()[-1]) == (1, "alp: error: rank 1 of 2 was killed by SIGKILL")
    code, said = alp("run", 2, "stop")
    assert code == TRY_AGAIN, said
    assert "stopped by SIGTERM after 1 steps and 0 updates; what is done is saved" in said
    code, said = alp("run", 1, "go on")
    assert code == 0, said
    code, said = alp("whole", 1, "go on")
    assert code == 0, said
    assert json.loads((tmp_path / "run/provenance.json").read_text()) == json.loads(
        (tmp_path / "whole/provenance.json").read_text()
    )
    gap = (_weights(tmp_path / "run/model") - _weights(tmp_path / "whole/model")).norm()
    assert float(gap / (_weights(tmp_path / "whole/model") - _weights(base_model)).norm()) <= 1e-4


def test_a_mistake_is_refused_once_before_anything_starts(base_model: Path, tmp_path: Path) -> None:
    for words, message in (
        (["trainer.compile=true"], "compile does not go with devices = 2 yet"),
        (["trainer.samples=2", "trainer.devices=3"], "devices = 3, but a mini-batch has 2 responses"),
        (["rollout=vllm", "rollout.tensor_parallel=2"], "rollout.tensor_parallel = 2 does not go with"),
    ):
        with pytest.raises(UserError, match=message):
            compose.load("train", [*_words(base_model, 2, words), f"run.dir='{tmp_path}'"])
