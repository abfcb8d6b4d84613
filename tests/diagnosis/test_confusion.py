"""The confusion matrix in docs/causes.md: what its file makes, and how it is counted."""

from __future__ import annotations

from dataclasses import replace

from benchmarks import causes as judgement


def test_the_confusion_matrix_is_what_its_file_makes() -> None:
    rows = judgement.read()
    assert judgement.PAGE.read_text(encoding="utf-8") == judgement.page(rows), "python -m benchmarks.causes page"
    halves = {half: {row.seed for row in rows if row.half == half} for half in judgement.FIRST_SEED}
    assert all(halves.values())
    assert not halves["tuning"] & halves["held_out"]


def test_rows_are_renewed_by_model_and_half() -> None:
    """A model's runs can be made alone: the others' rows stay."""
    one = judgement.Judged("tuning", "embedded", "stale", "1", 1, "stale weights", 0.9)
    other, held_out = replace(one, model="SmolLM2"), replace(one, half="held_out")
    made = [replace(one, seed=2), replace(held_out, model="SmolLM2")]
    assert judgement.renewed([one, other, held_out], made) == [other, made[0], made[1], held_out]
    assert judgement.renewed([other, one, held_out], []) == [other, one, held_out]


def test_a_wrong_name_counts_against() -> None:
    right = judgement.Judged("held_out", "embedded", "stale", "1", 1, "stale weights", 0.9)
    wrong = replace(right, name="rounding")
    alarm = replace(wrong, fault="none", strength="bfloat16", name="stale weights")
    calm = replace(alarm, name="rounding")
    assert judgement.share_right([right, wrong, alarm, replace(wrong, strength="0")]) == (1, 2)
    assert judgement.false_alarms([right, alarm, calm]) == (1, 2)
