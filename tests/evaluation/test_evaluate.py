"""Evaluation: every problem once, all samples, figures that follow from the counts."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch

from alp import models
from alp.configuration import compose
from alp.errors import UserError
from alp.evaluation import statistics
from alp.evaluation.evaluate import Sampler, evaluate
from alp.marks import difference
from alp.training.forward import sequence_log_probs

TINY = ["task.digits=1", "task.train=30", "task.validation=6", "task.test=8"]


def _run(base_model: Path, folder: Path, *words: str) -> dict:
    path = evaluate(
        compose.load(
            "evaluate", [*TINY, f"model.path='{base_model}'", f"run.dir='{folder}'", "evaluation.samples=16", *words]
        )
    )
    return json.loads(path.read_text(encoding="utf-8"))


def test_every_problem_is_scored_once(base_model: Path, tmp_path: Path) -> None:
    found = _run(base_model, tmp_path / "a")
    assert (found["set"], found["problems"], found["samples"]) == ("test", 8, 16)
    assert len(found["correct"]) == len(found["greedy_correct"]) == len(set(found["problem_ids"])) == 8
    assert found["accuracy"] == pytest.approx(sum(found["correct"]) / (8 * 16))
    assert found["greedy"] == pytest.approx(sum(found["greedy_correct"]) / 8)
    assert list(found["pass_at_k"]) == sorted(found["pass_at_k"])
    for k, value in found["pass_at_k"].items():
        exact = [1 - comb(16 - c, int(k)) / comb(16, int(k)) for c in found["correct"]]
        assert value == pytest.approx(sum(exact) / 8, abs=1e-12)
    assert set(found["pass_at_k"]) == {"1", "2", "4", "8", "16"}
    assert found["pass_at_k"]["1"] == pytest.approx(found["accuracy"])


def test_pieces_and_repeats_give_the_same_file(base_model: Path, tmp_path: Path) -> None:
    whole = _run(base_model, tmp_path / "a")
    assert _run(base_model, tmp_path / "b") == whole
    pieces = _run(base_model, tmp_path / "c", "evaluation.batch_size=32")
    assert pieces["correct"] == whole["correct"]
    assert pieces["config_hash"] != whole["config_hash"]


def test_other_seed_other_samples(base_model: Path, tmp_path: Path) -> None:
    first, second = _run(base_model, tmp_path / "a"), _run(base_model, tmp_path / "b", "evaluation.seed=1")
    assert first["greedy_correct"] == second["greedy_correct"]
    assert first["correct"] != second["correct"]


def _samples(folder: Path, name: str = "test") -> list[dict]:
    return [json.loads(line) for line in gzip.open(folder / "evaluation" / f"{name}.samples.jsonl.gz", "rt")]


def test_raw_samples_hold_every_response_with_its_ids_and_log_probs(base_model: Path, tmp_path: Path) -> None:
    found, lines = _run(base_model, tmp_path), _samples(tmp_path)
    assert [(line["problem_id"], line["sample"]) for line in lines] == [
        (name, k) for name in found["problem_ids"] for k in [*range(16), None]
    ]
    sampled = [line for line in lines if line["sample"] is not None]
    assert sum(line["reward"] for line in sampled) == sum(found["correct"])
    assert sum(not line["finished"] for line in sampled) == sum(found["truncated_samples"])
    assert found["response_length"] == pytest.approx(sum(len(line["token_ids"]) for line in sampled) / len(sampled))
    tokenizer, model = models.load_tokenizer(base_model), models.load_model(base_model, models.resolve_device("cpu"))
    for line in lines[:3]:
        ids = line["token_ids"][:-1] if line["finished"] else line["token_ids"]
        assert tokenizer.decode(ids) == line["response"]
        prompt = tokenizer.encode(f"{line['problem_id']}=")
        scored = sequence_log_probs(model, [[*prompt, *line["token_ids"]]], 1.0)[0][len(prompt) - 1 :]
        assert line["log_probs"] == pytest.approx(scored, abs=2e-5)


def test_intervals_are_students_over_problems(base_model: Path, tmp_path: Path) -> None:
    found = _run(base_model, tmp_path)
    exact = statistics.problem_interval(np.array(found["correct"]) / 16).within(0, 1)
    assert found["accuracy_interval"] == [exact.low, exact.high]
    assert found["pass_at_k_interval"]["1"] == pytest.approx(found["accuracy_interval"])
    for k, (low, high) in found["pass_at_k_interval"].items():
        assert low <= found["pass_at_k"][k] <= high


@pytest.fixture(scope="module")
def killed(base_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation whose process was killed after a few of its 30 chunks."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, "-m", "alp.cli", "evaluate", *_small_chunks(base_model, folder)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    while process.poll() is None and len(_chunks(folder)) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    return folder


def _small_chunks(base_model: Path, folder: Path) -> list[str]:
    return [
        *TINY,
        f"model.path='{base_model}'",
        f"run.dir='{folder}'",
        "evaluation.set=train",
        "evaluation.samples=32",
        "evaluation.batch_size=32",
    ]


def _chunks(folder: Path) -> list[Path]:
    return sorted((folder / "evaluation").glob("train.parts/*/*.jsonl.gz"))


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(
    base_model: Path, killed: Path, tmp_path: Path
) -> None:
    kept = len(_chunks(killed))
    assert 3 <= kept < 30
    assert not (killed / "evaluation" / "train.json").exists()
    damaged = _chunks(killed)[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    whole = tmp_path / "whole"
    for folder in (killed, whole):
        evaluate(compose.load("evaluate", _small_chunks(base_model, folder)))
    for name in ("train.json", "train.samples.jsonl.gz"):
        assert (killed / "evaluation" / name).read_bytes() == (whole / "evaluation" / name).read_bytes()
    timings = json.loads((killed / "evaluation" / "train.timings.jsonl").read_text(encoding="utf-8"))
    assert timings["problems"] == 30 - kept + 1, "finished chunks are kept, the damaged one is sampled again"
    assert len(_samples(killed, "train")) == 30 * 33
    assert not (killed / "evaluation" / "train.parts").exists()


def test_chunks_of_other_settings_are_not_used(base_model: Path, tmp_path: Path) -> None:
    stale = tmp_path / "evaluation" / "test.parts" / "0123456789abcdef" / "000000.jsonl.gz"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of another configuration")
    with pytest.raises(UserError, match="no mark says that this version of alp made it"):
        _run(base_model, tmp_path)
    assert stale.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluation.dtype=bfloat16"], r"unknown key 'evaluation\.dtype'; did you mean 'rollout\.dtype'\?"),
        (["rollout.temperature=0.3"], r"rollout\.temperature = 0\.3 contradicts evaluation\.temperature = 1\.0"),
        (["rollout=vlm"], r"unknown rollout 'vlm'; did you mean 'vllm'\?"),
        (["rollout=vllm", "rollout.batch_size=4"], r"unknown key 'rollout\.batch_size'"),
    ],
)
def test_what_contradicts_the_engine_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose.load("evaluate", words)


def test_an_evaluation_s_engine_follows_its_settings() -> None:
    words = ["evaluation.temperature=0.5", "evaluation.batch_size=64", "evaluation.max_new_tokens=30"]
    settings = compose.load("evaluate", words).rollout
    assert (settings.engine, settings.dtype, settings.batch_size) == ("hf", "float32", 64)
    assert (settings.temperature, settings.max_new_tokens) == (0.5, 30)
    assert compose.load("evaluate", ["rollout=vllm", *words]).rollout.dtype == "float32"


def test_samples_do_not_depend_on_where_a_file_s_header_ends(base_model: Path, tmp_path: Path) -> None:
    """Weights read from a file lie at any offset in memory; an evaluation's log-probs are those of aligned ones."""
    from safetensors.torch import load_file, save_file

    lines = []
    for padding in ("", "x" * 8, "x" * 24):
        folder = tmp_path / f"model{len(padding)}"
        shutil.copytree(base_model, folder)
        weights = folder / "model.safetensors"
        save_file(load_file(weights), weights, metadata={"format": "pt", "note": padding})
        _run(folder, tmp_path / f"run{len(padding)}")
        lines.append(_samples(tmp_path / f"run{len(padding)}"))
    assert lines[0] == lines[1] == lines[2]


def test_samples_of_another_kind_of_device_are_of_another_identity(
    base_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*TINY, f"model.path='{base_model}'", f"run.dir='{tmp_path}'", "run.tracking=null"]
    config = compose.load("evaluate", words)
    here = Sampler(config, log=tmp_path / "log").origin
    monkeypatch.setattr(models, "resolve_device", lambda name: torch.device("meta"))
    there = Sampler(config, log=tmp_path / "log").origin
    assert here["identity"] != there["identity"]
    assert difference(here, there) == "device: cpu there, meta here"
