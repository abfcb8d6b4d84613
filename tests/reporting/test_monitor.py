"""``alp monitor``: bands by hand, what is said when a figure leaves its band, and when it ends."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from alp.cli import main
from alp.configuration import compose
from alp.errors import UserError
from alp.ownership import claimed
from alp.reporting.monitor import Bands, Records, job_folders, monitor

TAIL, KL = "ratio/token/log_q999", "rollout_corr/k3_kl"


def write(folder: Path, tails: list[float | None], kl: float = 0.001) -> Path:
    """A job's folder, as training writes it: a line before the first step, then one a step."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"step": 0, "validation/accuracy": 0.5}]
    lines += [{"step": step, TAIL: tail, KL: kl * step} for step, tail in enumerate(tails, start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def config(jobs: Path, baseline: Path, *words: str) -> Any:
    return compose.load("monitor", [f"jobs='{jobs}'", f"baseline='{baseline}'", "once=true", *words])


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """Two seeds of an arm, in a grid that has another arm and a base model."""
    grid = tmp_path / "grid"
    write(grid / "grpo/seed0", [1.0, 2.0, 3.0, 4.0, 5.0])
    write(grid / "grpo/seed1", [2.0, 3.0, 4.0, 5.0, 7.0], kl=0.002)
    write(grid / "gspo/seed0", [100.0] * 5)
    with claimed(grid / "base", "pretrain", {"identity": "x"}, outputs=["metrics.jsonl"]) as claim:
        claim.note(grid / "base/metrics.jsonl")
        (grid / "base/metrics.jsonl").write_text('{"step": 50, "pretrain/loss": 2.0}\n', encoding="utf-8")
    return grid


def bands(job: Path, baseline: Path, *words: str) -> Bands:
    records = [Records(folder) for folder in job_folders(baseline)]
    for run in records:
        run.read()
    return Bands.of(job, records, config(job, baseline, *words))


def test_a_band_is_the_range_of_seeds_and_neighbours_widened(sound: Path, tmp_path: Path) -> None:
    job = tmp_path / "new/grpo/seed9"
    assert bands(job, sound, "neighbours=0", "widen=1.0").at(TAIL, 2) == (2.0, 3.0)
    assert bands(job, sound, "neighbours=1", "widen=1.0").at(TAIL, 2) == (1.0, 4.0)
    assert bands(job, sound, "neighbours=1", "widen=3.0").at(TAIL, 2) == (-2.0, 7.0)
    assert bands(job, sound, "neighbours=0", "widen=1.0").at(TAIL, 40) == (5.0, 7.0)  # the last step's goes on
    assert bands(job, sound).at("ratio/turn/log_q999", 2) is None


def test_a_job_is_held_against_its_own_arm_and_never_itself(sound: Path, tmp_path: Path) -> None:
    assert bands(sound / "grpo/seed0", sound, "neighbours=1", "widen=1.0").at(TAIL, 1) == (2.0, 3.0)
    other = bands(tmp_path / "mine", sound, "neighbours=0", "widen=1.0")
    assert other.at(TAIL, 1) == (1.0, 100.0)
    assert "3 runs of grpo, gspo" in other.words
    with pytest.raises(UserError, match="one run makes no band without neighbours"):
        bands(sound / "grpo/seed0", sound, "neighbours=0")
    with pytest.raises(UserError, match="it holds no other run"):
        bands(sound / "grpo/seed0", sound / "grpo/seed0")


def test_a_figure_that_leaves_its_band_is_one_line_and_the_exit_code(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(tails: list[float | None], *words: str) -> tuple[int, list[str]]:
        job = write(tmp_path / "new/grpo/seed9", tails)
        code = main(["monitor", f"jobs='{job}'", f"baseline='{sound}'", "once=true", "neighbours=0", *words])
        return code, capsys.readouterr().out.splitlines()

    code, lines = said([1.5, 2.5, 3.5, 4.5, 6.0])
    assert (code, lines[1:]) == (0, [f"grpo seed9: 5 steps, inside the band; not logged: {_unlogged()}"])
    code, lines = said([1.5, 9.0, 9.0, 9.0, 6.0])
    assert code == 1
    assert lines[1:3] == [
        f"grpo seed9 step 4: {TAIL} 9 is above the band, 3.5 to 5.5, for 3 steps",
        f"grpo seed9 step 5: {TAIL} 6 is back in the band",
    ]
    assert lines[3].startswith(f"grpo seed9: 5 steps, left its band: {TAIL}; not logged")
    assert said([1.5, 9.0, 9.0, 4.5, 6.0])[0] == 0  # two steps are noise
    assert said([1.5, 9.0, 9.0, 4.5, 6.0], "in_a_row=2")[0] == 1
    code, lines = said([1.5, None, 3.5, 4.5, 6.0])  # what was not finite is no noise
    assert (code, lines[1]) == (1, f"grpo seed9 step 2: {TAIL} is no number")


def _unlogged() -> str:
    keys = compose.load("monitor", []).keys
    return ", ".join(key for key in keys if key not in (TAIL, KL))


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    records = Records(write(tmp_path / "job", [1.0, 2.0]))
    path = tmp_path / "job/metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert records.read() == [0, 1]
    path.write_bytes(whole)
    assert records.read() == [2]
    path.write_bytes(whole[: whole.index(b"\n") + 1])  # taken up from a checkpoint
    assert records.read() == []
    write(tmp_path / "job", [1.0, 2.0, 3.0])
    assert records.read() == [3]


@pytest.mark.parametrize("above", [False, True], ids=["a job", "several"])
def test_it_follows_a_job_to_its_end(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], above: bool
) -> None:
    job, started, go_on = tmp_path / "new/grpo/seed9", threading.Event(), threading.Event()

    def train() -> None:
        with claimed(job, "train", {"identity": "x"}, outputs=["metrics.jsonl"]) as claim:
            claim.note(job / "metrics.jsonl")
            write(job, [1.5])
            started.set()
            go_on.wait(30)
            write(job, [1.5, 9.0, 9.0, 9.0])

    trainer = threading.Thread(target=train)
    trainer.start()
    assert started.wait(30)
    follow = config(job.parents[1] if above else job, sound, "every=0.05", "quiet=1.0", "neighbours=0")
    release = threading.Timer(2.0, go_on.set)  # beyond `quiet`: a running job is waited for
    release.start()
    summary, code = monitor(follow.model_copy(update={"once": False}))
    trainer.join()
    assert code == 1
    assert summary.startswith(f"grpo seed9: 4 steps, left its band: {TAIL}")
    assert "step 4: ratio/token/log_q999 9 is above the band" in capsys.readouterr().out


def test_what_cannot_be_compared_is_refused(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["monitor", *words]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    job = write(tmp_path / "new/grpo/seed9", [1.5])
    assert "name both" in refused(f"jobs='{job}'")
    assert "no folder" in refused(f"jobs='{tmp_path}/none'", f"baseline='{sound}'", "once=true")
    assert "has any of loss" in refused(f"jobs='{job}'", f"baseline='{sound}'", "keys=[loss]")
    (job / "metrics.jsonl").write_text('{"step": 0, "validation/accuracy": 0.5}\n', encoding="utf-8")
    assert "has a figure of the baseline's" in refused(f"jobs='{job}'", f"baseline='{sound}'", "once=true")
    (job / "metrics.jsonl").write_text("{]\n", encoding="utf-8")
    assert "no line of figures: b'{]'" in refused(f"jobs='{job}'", f"baseline='{sound}'", "once=true")
