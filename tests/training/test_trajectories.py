"""What ``trajectories.jsonl`` says of tokens: equal to a reading of the specification in plain Python, from the
log-probs that the updates themselves had."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alp.configuration import compose
from alp.reporting.trajectories import Mark, read
from alp.training import trajectories, update
from alp.training.job import Job
from alp.training.loop import step
from alp.training.pending import PendingStep

Make = Callable[..., Any]
TIGHT = ["method.clip_low=0.002", "method.clip_high=0.003", "method.dual_clip=1.004"]
# Bounds so tight that at a learning rate this large everything happens that can.
CASES = {
    "grpo": TIGHT,
    "seq_mis": [*TIGHT, "method.corrections.0.upper=1.002"],
    "token_mis": [*TIGHT, "method.corrections.0.upper=1.002"],
    "token_tis": TIGHT,
    "gspo": ["method.dual_clip=1.0005"],
    "seq_alp": ["method.clip_low=0.1", "method.clip_high=0.1", "method.dual_clip=1.2"],
}


def _stepped(
    config: Any, monkeypatch: pytest.MonkeyPatch, *, halves: bool = False
) -> tuple[list[dict[str, Any]], PendingStep, dict[int, list[float]], dict[str, Any]]:
    """One step of a job: its lines, its batch, by sequence the numerator that its update had, and the step's
    metrics. ``halves``: half of each group is right, whatever it wrote, so that advantages have both signs."""
    numerators: dict[int, list[float]] = {}
    plain = update.token_log_probs

    def noted(model: Any, piece: Any, *arguments: Any, **named: Any) -> Any:
        values = plain(model, piece, *arguments, **named)
        numerators.update(zip(piece.sequence_ids.tolist(), values[0].tolist(), strict=True))
        return values

    monkeypatch.setattr(update, "token_log_probs", noted)
    job = Job(config, Path(config.run.dir))
    if halves:
        job.task.grade_all = lambda problems, _: [float(place % 2) for place in range(len(problems))]  # type: ignore[method-assign]
    job.run_dir.mkdir(parents=True)
    job.start()
    metrics = step(job, 1)
    assert job.pending is not None
    text = (job.run_dir / "trajectories.jsonl").read_text(encoding="utf-8")
    job.close()
    return [json.loads(line) for line in text.splitlines()], job.pending, numerators, metrics


def _expected(method: Any, batch: Any, row: int, numerator: list[float]) -> tuple[list[float], float, list[str]]:
    """Token log-ratios, the sequence's, and marks of the response: specification §1, §3 and §4."""
    places = batch.response_mask[row].nonzero().flatten().tolist()
    old, rollout = batch.old_log_probs[row].tolist(), batch.rollout_log_probs[row].tolist()
    denominator = rollout if method.denominator == "rollout" else old
    own = [numerator[place] - denominator[place] for place in places]
    total = sum(own) / len(own) if method.level == "sequence_geometric" else sum(own)
    advantage = float(batch.advantages[row])
    masked = any(
        correction.kind == "mask" and math.exp(sum(old[at] - rollout[at] for at in places)) > correction.upper
        for correction in method.corrections
    )
    marks = []
    for value in own:
        ratio = math.exp(value if method.level == "token" else total)
        if masked:
            marks.append("masked")
        elif advantage > 0 and ratio > 1 + method.clip_high:
            marks.append("clipped_high")
        elif advantage < 0 and ratio < 1 - method.clip_low:
            marks.append("clipped_low")
        elif advantage < 0 and ratio > method.dual_clip:
            marks.append("dual_clipped")
        else:
            marks.append("loss")
    return own, total, marks


@pytest.mark.parametrize("name", CASES)
def test_lines_are_what_the_loss_saw(train_config: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(trajectories, "SAMPLES", 8)  # with two problems: every trajectory of the batch
    words = ["trainer.prompts=2", "trainer.samples=8", "trainer.lr=3e-2", "trainer.probe_every=1", "trainer.steps=1"]
    kl = [] if name == "seq_alp" else ["trainer.kl=0.1"]  # its gradient is no part of what is marked
    config = train_config(f"method={name}", *words, *kl, *CASES[name])
    lines, pending, numerators, metrics = _stepped(config, monkeypatch, halves=True)
    batch, method, seen = pending.batch, config.method, []
    assert len(lines) == len(batch) == 16
    for row, line in enumerate(lines):
        own, total, marks = _expected(method, batch, row, numerators[row])
        assert line["log_ratio"] == pytest.approx(own, rel=6e-6, abs=2e-6)
        levels = [] if method.level == "token" else [total]
        assert line["level_log_ratio"] == pytest.approx(levels, rel=6e-6, abs=5e-6)
        assert line["log_ratio_sum"] == pytest.approx(sum(own), rel=6e-6, abs=5e-6)
        assert line["marks"] == marks
        assert (line["sample"], line["reward"]) == (row % 8, float(batch.rewards[row]))
        assert line["advantage"] == pytest.approx(float(batch.advantages[row]), abs=1e-5)
        assert line["update"] == 1 + row // 8
        seen += marks
    assert set(seen) >= {"loss", *(["masked"] if "mis" in name else ["clipped_low", "clipped_high"])}
    # The step's own figures say the same: shares of what the correction left, a mean over its two updates.
    for key, mark in (("clipped_low",) * 2, ("clipped_high",) * 2, ("dual_clipped",) * 2):
        shares = []
        for first in (0, 8):
            of_update = [mark for line in lines[first : first + 8] for mark in line["marks"] if mark != "masked"]
            shares.append(of_update.count(mark) / max(1, len(of_update)))
        assert metrics[f"ratio/{key}"] == pytest.approx(sum(shares) / 2, abs=1e-12)
    assert metrics["correction/masked_tokens"] == pytest.approx(seen.count("masked") / len(seen))


def test_texts_and_a_long_response_s_gap(train_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectories, "FIRST", 2)
    monkeypatch.setattr(trajectories, "LAST", 1)
    config = train_config("method=grpo", "trainer.probe_every=1", "trainer.steps=1")
    lines, pending, _, _ = _stepped(config, monkeypatch)
    # The first problem's and the last one's first two, of 4 problems with 4 samples.
    assert [line["problem"] for line in lines[:2]] != [line["problem"] for line in lines[2:]]
    assert [line["sample"] for line in lines] == [0, 1, 0, 1]
    assert [line["update"] for line in lines] == [1, 1, 2, 2]
    assert any(line["gap"] for line in lines)
    tokenizer = Job(config, Path(config.run.dir)).tokenizer
    for line, row in zip(lines, (0, 1, 12, 13), strict=True):
        length = int(pending.batch.lengths[row])
        ids = pending.batch.input_ids[row, :length].tolist()
        response = ids[line["prompt_tokens"] :]
        assert line["prompt"] == tokenizer.decode(ids[: line["prompt_tokens"]])
        assert line["response_tokens"] == len(response)
        if len(response) > 3:
            assert (line["gap"], line["gap_at"]) == (len(response) - 3, 2)
            response = [*response[:2], response[-1]]
        assert line["token_ids"] == response
        assert line["text"] == [tokenizer.decode([one]) for one in response]
        assert {len(line[key]) for key in ("text", "turn_ids", "log_ratio", "marks")} == {len(response)}
    assert len(read(Path(config.run.dir) / "trajectories.jsonl", "…")) == 4


def test_a_job_without_probes_writes_none(train_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, pending, _, _ = _stepped(train_config("trainer.probe_every=0", "trainer.steps=1"), monkeypatch)
    assert (lines, pending.shown) == ([], [])


def test_a_character_of_several_tokens_is_the_last_one_s() -> None:
    """A byte-level tokenizer without merges: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: place for place, char in enumerate(alphabet)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    from_byte = {ord(char): char for char in alphabet if ord(char) < 256}
    shifted = [char for char in alphabet if ord(char) >= 256]
    rest = [byte for byte in range(256) if byte not in from_byte]
    from_byte |= dict(zip(rest, shifted, strict=True))
    ids = [alphabet.index(from_byte[byte]) for byte in "a=½ 木b".encode()]
    texts = trajectories._texts(fast, ids, 1)
    assert texts == ["=", "", "½", " ", "", "", "木", "b"]
    assert "".join(trajectories._texts(fast, ids[:-2], 1)) == "=½ \ufffd"  # what is cut inside one is seen


def test_marks_are_those_that_the_page_knows() -> None:
    assert get_args(Mark) == trajectories.MARKS


@pytest.mark.parametrize("level", ["turn", "prefix", "sequence"])
def test_levels_say_one_number_a_turn_or_one_in_all(level: str) -> None:
    method = compose.load("train", [f"method.level={level}", "method=token_bypass"]).method
    mask = torch.tensor([[False, True, True, False, True]])
    raw = torch.tensor([[0.0, 0.5, -0.25, 9.0, 1.0]]).where(mask, torch.zeros(()))
    mini: Any = SimpleNamespace(response_mask=mask, turn_ids=torch.tensor([[0, 0, 0, 0, 1]]))
    found = trajectories._of_level(level, mini, 0, trajectories.method_log_ratio(method, mini, raw)[0])
    assert found == ([1.25] if level == "sequence" else [0.25, 1.25])
