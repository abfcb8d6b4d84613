"""Equal jobs are computed once: what is taken over, what is not, who waits, and whether the bytes are the same."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alp.cli import main
from alp.errors import Interrupted
from alp.marks import read_mark
from alp.ownership import Claim, claimed
from alp.reproducibility import write_text
from alp.sharing import TakenOver, Twins, twins_of
from tests.conftest import TINY_MODEL, TINY_TASK, TINY_TRAINER

OUTPUTS = ("config.yaml", "a.json", "model/*", "checkpoints/")
ORIGIN = {"identity": "0" * 64, "config": {"trainer": {"seed": 0}}}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results root with two grids in it."""
    for grid in ("first", "second"):
        with claimed(tmp_path / grid, "grid", {"identity": grid}, outputs=["logs/"]):
            pass
    return tmp_path


def _twins(folder: Path, *, share: bool = True) -> Twins | None:
    grid = "first" if "first" in folder.parts else "second"
    rewrites = {"config.yaml": lambda _: f"run.dir: {folder.name}".encode()}
    return twins_of(folder, grid, share=share, rewrites=rewrites)


def _job(folder: Path, *, origin: dict[str, Any] = ORIGIN, share: bool = True, text: str = "1") -> bool:
    """A small job; whether it computed."""
    with Claim(folder, "train", outputs=OUTPUTS, twins=_twins(folder, share=share), replace=True) as claim:
        if claim.begin(origin):
            return False
        write_text(folder / "config.yaml", f"run.dir: {folder.name}")
        write_text(folder / "a.json", text)
        write_text(folder / "model" / "weights.safetensors", "weights")
        claim.finish()
        return True


def test_an_equal_job_of_another_grid_is_taken_over(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    there, here = results / "first" / "seed0", results / "second" / "seed1"
    assert _job(there)
    with caplog.at_level(logging.INFO):
        assert not _job(here, text="computed again")
    assert f"{here}: taken over from {there}" in caplog.text
    for name in ("a.json", "model/weights.safetensors"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
        assert (here / name).stat().st_ino != (there / name).stat().st_ino, "an edit in one place changes no other"
    assert (here / "config.yaml").read_text(encoding="utf-8") == "run.dir: seed1"
    mark = read_mark(here, "train")
    assert mark is not None
    assert (mark["state"], set(mark["files"])) == ("finished", {"config.yaml", "a.json", "model/weights.safetensors"})
    (there / "a.json").write_text("edited")
    third = results / "second" / "seed2"
    assert not _job(third), "what was taken over is whole, and can be taken over in turn"
    assert (third / "a.json").read_text(encoding="utf-8") == "1"


def _edit(folder: Path) -> None:
    (folder / "model" / "weights.safetensors").write_text("Weights")


def _lose(folder: Path) -> None:
    (folder / "a.json").unlink()


def _link(folder: Path) -> None:
    (folder / "a.json").rename(folder.parent / "elsewhere")
    (folder / "a.json").symlink_to(folder.parent / "elsewhere")


def _unmark(folder: Path) -> None:
    (folder / ".alp" / "train" / "mark.json").write_text("{")


def _reopen(folder: Path) -> None:
    path = folder / ".alp" / "train" / "mark.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"state": "in progress"}))


def _strip(folder: Path) -> None:
    path = folder / ".alp" / "train" / "mark.json"
    mark = json.loads(path.read_text(encoding="utf-8"))
    del mark["files"]
    path.write_text(json.dumps(mark))


def _replace(folder: Path) -> None:
    assert _job(folder, origin=ORIGIN | {"identity": "1" * 64})


@pytest.mark.parametrize("damage", [_edit, _lose, _link, _unmark, _reopen, _strip, _replace])
def test_what_is_not_whole_is_computed(damage: Callable[[Path], None], results: Path) -> None:
    there, here = results / "first" / "seed0", results / "second" / "seed0"
    _job(there)
    damage(there)
    assert _job(here)
    assert (here / "model" / "weights.safetensors").read_text(encoding="utf-8") == "weights"
    assert not list((here / ".alp").rglob("tmp"))


@pytest.mark.parametrize("entry", ["[", "{}", '{"finished": [{"folder": "../../etc", "job": "train"}, {"folder": 1}]}'])
def test_an_index_that_is_damaged_shares_nothing(entry: str, results: Path) -> None:
    _job(results / "first" / "seed0")
    index = results / ".alp" / "shared" / f"{ORIGIN['identity']}.json"
    assert index.is_file()
    index.write_text(entry)
    assert _job(results / "second" / "seed0")


def test_who_shares(results: Path) -> None:
    """Jobs of grids with their mark, and nobody who says run.share=false."""
    assert _job(results / "first" / "seed0")
    assert _job(results / "second" / "seed0", share=False)
    assert not _job(results / "second" / "seed1")
    assert twins_of(results / "first" / "seed0", None, share=True) is None
    assert twins_of(results / "third" / "seed0", "third", share=True) is None
    assert _job(results / "first" / "seed5", origin=ORIGIN | {"identity": "2" * 64}), "another identity"


def test_what_has_begun_here_goes_on_here(results: Path) -> None:
    _job(results / "first" / "seed0")
    here = results / "second" / "seed0"
    with Claim(here, "train", outputs=OUTPUTS) as claim:
        claim.begin(ORIGIN)
        write_text(here / "checkpoints" / "step_1", "half")
    assert _job(here)


def test_a_job_that_keeps_checkpoints_is_no_source(results: Path) -> None:
    there = results / "first" / "seed0"
    with Claim(there, "train", outputs=OUTPUTS, twins=_twins(there)) as claim:
        assert not claim.begin(ORIGIN)
        write_text(there / "checkpoints" / "step_1", "kept")
        claim.finish()
    assert _job(results / "second" / "seed0")


def test_before_anything_heavy_the_work_ends(results: Path) -> None:
    _job(results / "first" / "seed0")
    here = results / "second" / "seed0"
    with Claim(here, "train", outputs=OUTPUTS, twins=_twins(here)) as claim, pytest.raises(TakenOver):
        claim.accept(ORIGIN)
    mark = read_mark(here, "train")
    assert mark is not None
    assert mark["state"] == "finished"


def test_two_at_once_compute_once(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alp.sharing._LOOK_SECONDS", 0.05)
    computed: list[Path] = []
    begun = threading.Event()

    def slow(folder: Path) -> None:
        with Claim(folder, "train", outputs=OUTPUTS, twins=_twins(folder)) as claim:
            if not claim.begin(ORIGIN):
                begun.set()
                time.sleep(0.3)
                write_text(folder / "a.json", folder.name)
                computed.append(folder)
                claim.finish()

    folders = [results / "first" / "seed0", results / "second" / "seed0"]
    threads = [threading.Thread(target=slow, args=(folder,)) for folder in folders]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert computed == folders[:1]
    assert (folders[1] / "a.json").is_file()


def test_a_signal_ends_the_wait(results: Path) -> None:
    there, here = results / "first" / "seed0", results / "second" / "seed0"
    with Claim(there, "train", outputs=OUTPUTS, twins=_twins(there)) as holder:
        holder.begin(ORIGIN)
        asked = twins_of(here, "second", share=True, stop_signal=lambda: "SIGTERM")
        with pytest.raises(Interrupted, match="SIGTERM"), Claim(here, "train", outputs=OUTPUTS, twins=asked) as claim:
            claim.begin(ORIGIN)
    assert not here.exists(), "it leaves no trace"


def _verbs(results: Path, grid: str, *more: str) -> dict[str, bytes]:
    """Prepare, pretrain, evaluate and train of one grid through the command line; every output by its name."""
    data, base, run = (results / grid / name for name in ("data", "base", "seed0"))
    common = [f"run.grid={grid}", "run.tracking=null", *more]
    task = [*TINY_TASK, *common]
    model, read = TINY_MODEL, f"task.data='{data}'"
    start = f"model.path='{base}/model'"
    calls = [
        ["prepare", f"run.dir='{data}'", *task],
        ["pretrain", f"run.dir='{base}'", read, "pretrain.steps=3", "pretrain.batch=8", *task, *model],
        [
            "train",
            f"run.dir='{run}'",
            read,
            start,
            f"run.arm=of_{grid}",
            "trainer.steps=2",
            *task,
            *model,
            *TINY_TRAINER,
        ],
        ["evaluate", f"run.dir='{run}'", read, f"model.path='{run}/model'", "evaluation.samples=2", *task, *model],
    ]
    for words in calls:
        assert main(words) == 0
    folder = results / grid
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {name: (folder / name).read_bytes() for name in names if ".alp/" not in name}


def test_shared_results_are_the_bytes_of_computed_ones(
    results: Path, tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    _verbs(results, "first")
    caplog.clear()
    with caplog.at_level(logging.INFO):
        shared = _verbs(results, "second")
    assert caplog.text.count("taken over from") == 4
    results.joinpath("second").rename(tmp_path_factory.mktemp("kept") / "second")
    with claimed(results / "second", "grid", {"identity": "second"}, outputs=["logs/"]):
        pass
    computed = _verbs(results, "second", "run.share=false")
    differ = {name for name in computed if shared.get(name) != computed[name] and "timings" not in name}
    assert shared.keys() == computed.keys()
    assert differ == {"base/config.yaml", "seed0/config.yaml"}, "they say run.share"
    for name in differ:
        assert shared[name].replace(b"share: true", b"share: false") == computed[name]
    assert json.loads(shared["seed0/active.json"])["arm"] == "of_second"
