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


def test_a_wrong_name_counts_against() -> None:
    right = judgement.Judged("held_out", "embedded", "stale", "1", 1, "stale weights", 0.9)
    wrong = replace(right, name="rounding")
    alarm = replace(wrong, fault="none", strength="bfloat16", name="stale weights")
    calm = replace(alarm, name="rounding")
    assert judgement.share_right([right, wrong, alarm, replace(wrong, strength="0")]) == (1, 2)
    assert judgement.false_alarms([right, alarm, calm]) == (1, 2)
