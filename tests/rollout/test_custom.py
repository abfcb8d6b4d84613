"""An engine of the user's own: one module, chosen by configuration, probed like every other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from alp.configuration import compose
from alp.errors import UserError
from alp.evaluation.evaluate import evaluate
from alp.rollout import registry
from alp.rollout.engine import Completion, Host, Request, Sampling
from alp.rollout.probe import StaleWeights
from tests.conftest import TINY_TASK


class Engine:
    """A stub: it always answers with one token, and says of it what the served model says, or ``shift`` more."""

    tolerance = 1e-4

    def __init__(self, host: Host, options: dict[str, Any]) -> None:
        self.host, self.token, self.shift = host, int(options["token"]), float(options.get("shift", 0.0))

    @classmethod
    def check(cls, options: dict[str, Any], folder: Path) -> None:
        if "token" not in options:
            raise UserError(f"rollout.options: name the token to answer with; {folder} has many")

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        sequences = [[*request.prompt_ids, self.token] for request in requests]
        rows = self.host.probe.reference(sequences, sampling.temperature or 1.0)
        ended = self.token in sampling.end_token_ids
        return [Completion([self.token], [row[-1] + self.shift], ended) for row in rows]

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, float]:
        return {"sync/tensors": float(len(list(weights)))}

    def describe(self) -> dict[str, Any]:
        return {"engine": "stub", "rollout_dtype": "float32"}

    def close(self) -> None:
        pass


def _words(base_model: Path, folder: Path, *options: str) -> list[str]:
    own = ["rollout=custom", f"rollout.module={__name__}", f"rollout.options={{{', '.join(options)}}}"]
    return [*TINY_TASK, *own, f"model.path='{base_model}'", f"run.dir='{folder}'", "evaluation.samples=2"]


def test_an_own_engine_samples_an_evaluation(base_model: Path, tmp_path: Path) -> None:
    path = evaluate(compose.load("evaluate", _words(base_model, tmp_path, "token: 1")))
    result = json.loads(path.read_text(encoding="utf-8"))
    assert (result["problems"], result["response_length"], result["truncated"]) == (8, 1.0, 0.0)


def test_an_own_engine_samples_training_and_validation(base_model: Path, train_config: Callable[..., Any]) -> None:
    from alp.training.loop import train

    own = ["=custom", f".module={__name__}", ".options={token: 1}", ".dtype=float32"]
    words = [f"{group}{word}" for group in ("rollout", "validation") for word in own]
    config = train_config(*words, "trainer.steps=1", "trainer.validate_every=1")
    run_dir = train(config)
    (first, last) = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert first["validation/length"] == last["validation/length"] == 1.0
    assert json.loads((run_dir / "active.json").read_text(encoding="utf-8"))["engine"] == "stub"


def test_an_own_engine_that_lies_is_stopped_by_the_probe(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(StaleWeights, match=r"^rollout=custom: after its first sync"):
        evaluate(compose.load("evaluate", _words(base_model, tmp_path, "token: 1", "shift: -0.01")))


def test_faults_of_an_own_engine_are_one_line(base_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rollout\.options: name the token to answer with"):
        evaluate(compose.load("evaluate", _words(base_model, tmp_path / "a")))
    with pytest.raises(UserError, match=r"rollout\.module: name your module"):
        registry.check(compose.load("evaluate", ["rollout=custom"]).rollout, base_model)
    with pytest.raises(UserError, match=r"rollout\.module: alp\.errors has no function 'Engine'"):
        registry.check(compose.load("evaluate", ["rollout=custom", "rollout.module=alp.errors"]).rollout, base_model)


def test_its_code_is_part_of_a_job_s_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["rollout=custom", "rollout.module=engine_of_my_own"]
    digests = set()
    for text in ("A = 1\n", "A = 2\n"):
        (tmp_path / "engine_of_my_own.py").write_text(text)
        digests.add(compose.identity(compose.load("train", words)))
    assert len(digests) == 2
