"""NaN and infinities where they can arise: the update is skipped and counted, or the job fails by name. No weight is
ever spoilt."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.faults import jobs
from tests.faults.conftest import ALL, STEPS, Ledger, Words


class Spoil:
    """Puts ``value`` into one place of the third rollout batch's first update (log-probs: of its first sequence)."""

    def __init__(self, place: str, value: float) -> None:
        self.place, self.value = place, value

    def __call__(self) -> None:
        from alp.policy import Method
        from alp.training import scoring, update

        place, value = self.place, self.value
        if place == "loss":
            plain_loss, plain_update = Method.loss, update.Updater.update
            current = {"index": -1}

            def loss(method: Method, inputs: Any) -> Any:
                outputs = plain_loss(method, inputs)
                return replace(outputs, loss=outputs.loss * value) if current["index"] == 4 else outputs

            def noted(updater: Any, batch: Any, index: int) -> Any:
                current["index"] = index
                return plain_update(updater, batch, index)

            Method.loss, update.Updater.update = loss, noted  # type: ignore[method-assign]
        elif place == "gradient":
            plain_update = update.Updater.update

            def spoilt(updater: Any, batch: Any, index: int) -> Any:
                parameter = next(updater.model.parameters())
                hook = parameter.register_hook(lambda gradient: gradient * value) if index == 4 else None
                result = plain_update(updater, batch, index)
                if hook is not None:
                    hook.remove()
                return result

            update.Updater.update = spoilt  # type: ignore[method-assign]
        else:
            name = "frozen_log_probs" if place == "old log-prob" else "collect"
            plain = getattr(scoring, name)

            def around(*arguments: Any, **named: Any) -> Any:
                answer = plain(*arguments, **named)
                if name == "frozen_log_probs":
                    if int(arguments[1].sequence_ids[0]) == 2 * 16:
                        answer[0][0, int(arguments[1].response_mask[0].nonzero()[0])] = value
                elif named["purpose"] == scoring.Purpose.TRAINING and named["step"] == 3:
                    answer[0].rollout_log_probs[0] = value
                return answer

            setattr(scoring, name, around)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf] if ALL else [math.nan])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_an_update_that_is_not_finite_is_skipped_and_counted(
    tmp_path: Path, words: Words, ledger: Ledger, place: str, value: float
) -> None:
    for name in ("run", "again"):
        assert jobs.train(words(tmp_path / name), tmp_path / "log", Spoil(place, value)) == 0, (
            tmp_path / "log"
        ).read_text(encoding="utf-8")[-1500:]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    skipped = {line["step"]: line["policy/skipped"] for line in lines if "policy/skipped" in line}
    assert skipped == dict.fromkeys(range(1, STEPS + 1), 0.0) | {3: 1.0}
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())
    ledger.compare(
        f"{value} in a {place}", jobs.digest(tmp_path / "run", jobs.NOISY), jobs.digest(tmp_path / "again", jobs.NOISY)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf] if ALL else [math.nan, -math.inf])
@pytest.mark.parametrize(
    ("place", "name"), [("old log-prob", "old_log_probs"), ("rollout log-prob", "rollout_log_probs")]
)
def test_a_log_prob_that_is_not_finite_stops_the_job_by_name(
    tmp_path: Path, words: Words, whole: Any, ledger: Ledger, place: str, name: str, value: float
) -> None:
    """No policy gives one: model or engine are broken. Once they are not, the job goes on as if nothing had been."""
    assert jobs.train(words(tmp_path / "run"), tmp_path / "log", Spoil(place, value)) == 1
    said = "NaN" if math.isnan(value) else "infinite"
    assert f"{name}: {said} on a valid token" in (tmp_path / "log").read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "model").exists()
    assert jobs.train(words(tmp_path / "run"), tmp_path / "log") == 0
    ledger.compare(f"{value} in a {place}", jobs.digest(tmp_path / "run", jobs.NOISY), whole)


def test_one_that_stays(tmp_path: Path, words: Words, base_model: Path, ledger: Ledger) -> None:
    """A model that gives nothing but NaN is refused before the first step, by the name of what is not finite."""
    broken = tmp_path / "broken"
    shutil.copytree(base_model, broken)
    weights = load_file(broken / "model.safetensors")
    next(iter(weights.values())).fill_(math.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    code = jobs.train(words(tmp_path / "run", f"model.path='{broken}'"), tmp_path / "log")
    said = (tmp_path / "log").read_text(encoding="utf-8")
    assert code == 2
    assert "alp: error: model.path: " in said, said[-2000:]
    assert "finite" in said, said[-2000:]
    assert not (tmp_path / "run" / "model").exists()
    ledger.tried("NaN in every weight")
