"""A training job as a whole: exact continuation, honest records, refusal of what is not what the configuration says."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alp.errors import UserError
from alp.ownership import Claim
from alp.training.job import Job
from alp.training.loop import run, train
from alp.training.scoring import padded, sample, score
from alp.training.settings_report import check_active, describe_active

Make = Callable[..., Any]
RECORDS = (
    "metrics.jsonl",
    "updates.jsonl",
    "trajectories.jsonl",
    "config.yaml",
    "active.json",
    "model/model.safetensors",
)


class Killed(Exception):
    """Stands for the end of the process in the middle of a job."""


def _digest(folder: Path, names: tuple[str, ...] = RECORDS) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _lines(folder: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def _kill_at(step: int) -> Callable[[], None]:
    calls = iter(range(1, 100))

    def observer() -> None:
        if next(calls) == step:
            raise Killed

    return observer


@pytest.mark.parametrize("method", ["grpo", "seq_alp", "m2po"])
def test_killed_and_continued_equals_undisturbed(train_config: Make, method: str, tmp_path: Path) -> None:
    train(train_config(f"method={method}", folder="whole"))
    whole = _digest(tmp_path / "whole")
    job = train_config(f"method={method}", folder="broken")
    for step in (1, 2):
        with pytest.raises(Killed):
            train(job, _kill_at(step))
    # The workflow deletes outputs before every attempt.
    for name in ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "active.json"):
        (tmp_path / "broken" / name).unlink()
    train(job)
    broken = _digest(tmp_path / "broken")
    for name in ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "active.json", "model/model.safetensors"):
        assert broken[name] == whole[name], name
    assert not (tmp_path / "broken" / "checkpoints").exists(), "a finished job leaves no checkpoints"


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    train_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(train_config(folder="whole"))
    job = train_config(folder="broken")
    with pytest.raises(Killed):
        train(job, _kill_at(3))
    newest = sorted((tmp_path / "broken" / "checkpoints").glob("step_*"))[-1]
    damaged = bytearray((newest / "state.pt").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (newest / "state.pt").write_bytes(damaged)
    train(job)
    assert "is damaged" in caplog.text
    assert _digest(tmp_path / "broken", ("metrics.jsonl",)) == _digest(tmp_path / "whole", ("metrics.jsonl",))


def test_a_checkpoint_of_another_configuration_is_not_used(
    train_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train(train_config("trainer.lr=5e-4", folder="run"), _kill_at(2))
    with pytest.raises(UserError, match=r"trainer.lr: 0.0005 there, 0.001 here"):
        train(train_config(folder="run"))
    train(train_config("run.replace=true", folder="run"))
    train(train_config(folder="fresh"))
    assert "belongs to another job (trainer.lr: 0.0005 there, 0.001 here): not used" in caplog.text
    assert _digest(tmp_path / "run", ("metrics.jsonl",)) == _digest(tmp_path / "fresh", ("metrics.jsonl",))


def test_another_base_model_or_other_data_start_over(train_config: Make, tmp_path: Path, base_model: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    moved = tmp_path / "moved"
    shutil.copytree(base_model, moved)
    job = train_config(f"model.path='{moved}'", folder="run")
    with pytest.raises(Killed):
        train(job, _kill_at(2))
    weights = load_file(moved / "model.safetensors")
    save_file(
        {name: value * torch.tensor(1.01) for name, value in weights.items()},
        moved / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match="another base model"):
        train(job)
    train(train_config(f"model.path='{moved}'", "run.replace=true", folder="run"))
    train(train_config(f"model.path='{moved}'", folder="fresh"))
    assert _digest(tmp_path / "run", ("metrics.jsonl",)) == _digest(tmp_path / "fresh", ("metrics.jsonl",))
    origins = [
        json.loads((tmp_path / name / "provenance.json").read_text(encoding="utf-8")) for name in ("run", "fresh")
    ]
    assert origins[0] == origins[1]
    train(train_config(folder="original"))
    other = json.loads((tmp_path / "original" / "provenance.json").read_text(encoding="utf-8"))
    assert other["config_hash"] == origins[0]["config_hash"]
    assert other["identity"] != origins[0]["identity"]


def test_a_validation_problem_in_the_training_data_is_refused(train_config: Make, tmp_path: Path) -> None:
    row = '{"id": "1+2", "problem": "1+2=", "answer": "3", "source": "test"}\n'
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text(row)
    with pytest.raises(UserError, match=r"problem 1\+2 stands in train and in validation"):
        train(train_config(f"task.data='{tmp_path}'"))


@pytest.mark.parametrize(
    ("method", "kind", "level"),
    [
        ("token_tis", "truncate", "token"),
        ("seq_tis", "truncate", "sequence"),
        ("token_mis", "mask", "sequence"),
        ("seq_mis", "mask", "sequence"),
    ],
)
def test_scores_are_the_corrections_of_real_log_probs(
    train_config: Make, tmp_path: Path, method: str, kind: str, level: str
) -> None:
    """ω must be π_old over μ, both at the sampling temperature, and reach the loss as weights and mask."""
    upper = 1.1  # low enough for these few responses to pass it
    words = [
        f"method={method}",
        f"method.corrections.0.upper={upper}",
        "rollout.temperature=0.7",
        "rollout.weight_noise=0.3",
    ]
    job = Job(train_config(*words, folder=method), tmp_path / method)
    job.engine.sync_weights(job.model.named_parameters(), version=0)
    trajectories = sample(job, 1)
    scored, metrics = score(job, padded(job, trajectories, 1))
    lost, gaps = 0, []
    for row, item in enumerate(trajectories):
        ids = torch.tensor([item.prompt_ids + item.response_ids])
        with torch.no_grad():
            log_probs = (
                (job.model(ids).logits[0, :-1] / 0.7).log_softmax(-1).gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1)
            )
        start = len(item.prompt_ids)
        old, mu = log_probs[start - 1 :], torch.tensor(item.rollout_log_probs)
        torch.testing.assert_close(scored.old_log_probs[row, start : ids.shape[1]], old, atol=1e-5, rtol=0)
        gaps.append(old - mu)
        omega = (old - mu).exp() if level == "token" else (old - mu).sum().exp().expand_as(old)
        inside = omega <= upper
        expected = omega.clamp(max=upper) if kind == "truncate" else omega
        kept = scored.loss_mask[row, start : ids.shape[1]]
        assert torch.equal(kept, inside if kind == "mask" else torch.ones_like(kept))
        torch.testing.assert_close(scored.weights[row, start : ids.shape[1]][kept], expected[kept], atol=0, rtol=1e-3)
        lost += int((~inside).any())
    assert lost, "the case must reach the bound"
    assert metrics["rollout_corr/k3_kl"] > 1e-3
    assert metrics["rollout_corr/token/log_max"] == pytest.approx(float(torch.cat(gaps).max()), abs=2e-5)
    assert metrics["rollout_corr/sequence/log_min"] == pytest.approx(min(float(gap.sum()) for gap in gaps), abs=1e-4)


def test_two_jobs_on_one_folder(train_config: Make, tmp_path: Path) -> None:
    said = rf"another job is running in .*: alp train, process {os.getpid()} on "
    with Claim(tmp_path / "run", "train", outputs=()), pytest.raises(UserError, match=said):
        train(train_config(folder="run"))


def test_records_follow_the_documented_form(train_config: Make, tmp_path: Path) -> None:
    train(train_config("method=token_alp", "trainer.kl=0.01", folder="run"))
    lines = _lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert set(lines[0]) == {"step", "validation/accuracy", "validation/length"}
    documented = (Path(__file__).parents[2] / "docs" / "results.md").read_text(encoding="utf-8")
    for key in lines[2]:
        head = (
            key
            if f"`{key}`" in documented
            else key.rsplit("/", 1)[0]
            if key.startswith(("perturbation", "budget"))
            else key.split("/log_")[0]
        )
        parts = head.split("/")
        assert parts[0] in documented, key
        assert parts[-1] in documented, key
    for key in (
        "policy/kl",
        "perturbation/std/0",
        "perturbation/realised_rms/2",
        "sharpness",
        "budget/token_share/0",
        "budget/sequence_variance/all",
        "ratio/sequence/log_q999",
    ):
        assert key in lines[2], key
    assert lines[2]["perturbation/std/0"] != lines[1]["perturbation/std/0"], "σ learns"
    logged = _lines(tmp_path / "run", "updates.jsonl")
    assert [(line["step"], line["update"]) for line in logged] == [(2, 4), (4, 8)]
    assert all(len(line["log_ratio"]) == len(line["mean_probability"]) == 8 for line in logged)
    assert all(0 < p <= 1 for line in logged for p in line["mean_probability"])


def test_on_policy_first_update_has_ratio_one(train_config: Make, tmp_path: Path) -> None:
    words = ["rollout.dtype=float32", "trainer.updates_per_batch=1", "trainer.steps=1", "trainer.probe_every=0"]
    train(train_config("method=grpo", *words, folder="old"))
    line = _lines(tmp_path / "old")[1]
    assert line["ratio/token/log_max"] == line["ratio/token/log_min"] == 0.0, "same weights, same pieces: exactly 1"
    train(train_config("method=token_bypass", *words, folder="mu"))
    line = _lines(tmp_path / "mu")[1]
    assert 0 < max(abs(line["ratio/token/log_max"]), abs(line["ratio/token/log_min"])) < 1e-4, (
        "μ by other kernels: float noise alone"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["method=grpo"], {"numerator": "current", "denominator": "old", "perturbation": None}),
        (
            ["method=seq_bypass", "rollout.dtype=int8"],
            {"denominator": "rollout", "level": "sequence", "rollout_dtype": "bfloat16"},
        ),
        (["method=seq_alp", "variant=sigma0"], {"numerator": "current", "variant": "sigma0"}),
        (["method=seq_alp", "method.perturbation.layers=middle"], {"numerator": "perturbed"}),
    ],
)
def test_active_states_what_runs(
    train_config: Make, tmp_path: Path, words: list[str], expected: dict[str, Any]
) -> None:
    train(train_config(*words, "trainer.steps=1", folder="run"))
    active = json.loads((tmp_path / "run" / "active.json").read_text(encoding="utf-8"))
    assert {key: active[key] for key in expected} == expected
    if "method.perturbation.layers=middle" in words:
        assert active["perturbation"]["layers"] == [1]
        assert active["perturbation"]["hooks"] == 1
    if "rollout.dtype=int8" in words:
        assert active["quantised_weights"] == 3 * 7


def test_a_switch_that_is_silently_off_stops_the_job(train_config: Make, tmp_path: Path) -> None:
    job = Job(train_config("method=token_alp", folder="run"), tmp_path / "run")
    assert job.perturbation is not None
    job.perturbation.detach()
    with pytest.raises(RuntimeError, match="'current' is active, the configuration says 'perturbed'"):
        run(job)
    for key, value in (("rollout_dtype", "float32"), ("threads", 7), ("train_dtype", "bfloat16")):
        active = json.loads(json.dumps(_active(train_config, tmp_path))) | {key: value}
        with pytest.raises(RuntimeError, match="is active, the configuration says"):
            check_active(train_config(folder="other"), active)


def _active(train_config: Make, tmp_path: Path) -> dict[str, Any]:
    job = Job(train_config(folder="other"), tmp_path / "other")
    return describe_active(job.config, job.engine, job.model, job.updater)


def test_thread_count_is_fixed_by_the_configuration(
    train_config: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    Job(train_config(folder="run"), tmp_path / "run")
    assert torch.get_num_threads() == 1


def test_validation_has_an_engine_of_its_own_or_the_rollout_s(train_config: Make, tmp_path: Path) -> None:
    """In float32 both sample from the trained model itself."""
    apart = Job(train_config(folder="apart"), tmp_path / "apart", lambda: None)
    assert apart.validator is not apart.engine
    assert (apart.engine.describe()["borrowed"], apart.validator.describe()["borrowed"]) == (False, True)
    one = Job(train_config("rollout.dtype=float32", folder="one"), tmp_path / "one", lambda: None)
    assert one.validator is one.engine
    assert one.engine.describe()["borrowed"]


def test_greedy_decoding_is_for_validation_alone(train_config: Make) -> None:
    assert train_config("validation.temperature=0.0").validation.temperature == 0.0
    with pytest.raises(UserError, match="temperature = 0 is greedy decoding, which has no behaviour policy"):
        train_config("rollout.temperature=0.0")
