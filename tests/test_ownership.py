"""Whose a folder is: what is refused by name, what is ever removed, who waits for whom, and the end of earlier
results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alp.clean import clean
from alp.cli import main
from alp.configuration import compose
from alp.errors import UserError
from alp.marks import foreign, marks, read_mark
from alp.ownership import Claim, check, check_finished, claimed
from alp.places import check_place
from alp.reproducibility import note, write_text
from tests.canary import plant, snapshot

OUTPUTS = ("a.json", "model/*", "checkpoints/")
FIRST, SECOND = ({"identity": name, "config": {"trainer": {"seed": seed}}} for name, seed in (("one", 0), ("two", 1)))


def _make(folder: Path, origin: dict[str, Any] = FIRST, *, replace: bool = False, job: str = "train") -> None:
    with claimed(folder, job, origin, outputs=OUTPUTS, replace=replace, dependents="evaluate"):
        write_text(folder / "a.json", origin["identity"])
        write_text(folder / "model" / "weights", origin["identity"])


# ---- places ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (" ", "empty"),
        (".", "the working folder"),
        ("./", "the working folder"),
        ("x/..", "the working folder"),
        ("..", "above the working folder"),
        ("/", "the root"),
        ("//", "the root"),
        ("/usr/..", "the root"),
        ("{home}", "a home folder"),
        ("{home}/", "a home folder"),
        ("{link}", "a home folder"),
        ("~/runs", "write the home folder out"),
        ("{checkout}", "a checkout (it holds .git)"),
        ("{worktree}", "a checkout (it holds .git)"),
        ("{source}", "alp's own source"),
        ("{file}", "is a file"),
        ("{file}/x", "is a file, not a folder"),
        ("{loop}", "can be no folder"),
        ("{loop}/x", "can be no folder"),
        ("{long}", "too long"),
        ("a\0b", "can be no folder"),
        ("{dangling}", ""),
    ],
)
def test_places_that_are_refused_by_name(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work, tmp_path / "checkout" / ".git", tmp_path / "worktree"):
        folder.mkdir(parents=True)
    (tmp_path / "worktree" / ".git").write_text("gitdir: elsewhere")
    (tmp_path / "link").symlink_to(home)
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    names = ("home", "link", "checkout", "worktree", "file", "loop", "dangling")
    source = Path(__file__).resolve().parents[1]
    text = text.format(**{name: tmp_path / name for name in names}, source=source, long=tmp_path / ("x" * 300))
    if not said:
        assert check_place(text, "run.dir") == Path(text)
        return
    before = snapshot(tmp_path)
    with pytest.raises(UserError) as refusal:
        check_place(text, "run.dir")
    assert str(refusal.value).startswith("run.dir: ")
    assert said in str(refusal.value)
    assert snapshot(tmp_path) == before


VERBS = ["train", "evaluate", "pretrain", "prepare", "fetch"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["", ".", "..", "theirs", "{home}", "~"])
def test_no_verb_touches_a_folder_of_the_user_s(
    verb: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`run.dir=$UNSET` deleted `.git` and `.ssh`, and `fetch` the user's own `./model`."""
    home = tmp_path / "home"
    for folder in (home, home / "work", home / "work" / "theirs"):
        folder.mkdir()
        plant(folder)
    monkeypatch.chdir(home / "work")
    monkeypatch.setenv("HOME", str(home))
    before = snapshot(home)
    assert main([verb, f"run.dir={place.format(home=home)}" if place else "run.dir="]) == 2
    said = capsys.readouterr().err
    assert "alp: error: run.dir: " in said or "alp: error: cannot read the override 'run.dir=~'" in said
    assert snapshot(home) == before


@pytest.mark.parametrize("verb", ["aggregate", "figures", "report", "manifest", "track"])
def test_no_results_root_is_no_root(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = snapshot(tmp_path)
    assert main([verb, "grid=smoke", "results="]) == 2
    assert "alp: error: results: empty" in capsys.readouterr().err
    assert snapshot(tmp_path) == before


# ---- marks -----------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_adopted_and_one_that_holds_anything_is_not(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    (empty / "model").mkdir(parents=True)  # a workflow makes the folders of outputs ahead
    _make(empty)
    assert marks(empty)["train"]["made"] == ["a.json", "checkpoints/", "model/weights"]
    assert marks(empty)["train"]["state"] == "finished"
    theirs = tmp_path / "theirs"
    plant(theirs, checkout=False)
    before = snapshot(theirs)
    with pytest.raises(
        UserError,
        match=r"theirs holds .*, and no mark says that this version of alp made it: to keep what is there move it",
    ):
        _make(theirs)
    assert snapshot(theirs) == before


def test_a_folder_that_holds_marked_ones_alone_is_empty(tmp_path: Path) -> None:
    _make(tmp_path / "grid" / "arm" / "seed0")
    assert foreign(tmp_path / "grid") is None
    (tmp_path / "grid" / "arm" / "note").write_text("")
    assert foreign(tmp_path / "grid") == tmp_path / "grid" / "arm" / "note"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mark_that_is_not_whole_marks_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Cut, flipped, nested, or of another kind: then nothing there is ours, and nothing raises."""
    folder = tmp_path_factory.mktemp("mark")
    _make(folder)
    path = folder / ".alp" / "train" / "mark.json"
    content = path.read_bytes()
    kind = data.draw(st.sampled_from(["cut", "value", "nested", "bytes", "outside"]))
    if kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 3))])
    elif kind == "bytes":
        path.write_bytes(data.draw(st.binary(max_size=80)))
    elif kind == "nested":
        path.write_text("[" * 100_000)
    elif kind == "outside":
        name = data.draw(
            st.sampled_from(["../x", "/etc/passwd", "a/../../x", "", ".", "..", ".alp/train/lock", "a//b"])
        )
        path.write_text(json.dumps(json.loads(content) | {"made": [name]}))
    else:
        mark = json.loads(content)
        key = data.draw(st.sampled_from(["made_by", "format", "identity", "made", "state", "origin"]))
        mark[key] = data.draw(st.sampled_from([None, 7.5, [1], 1 if key == "origin" else {"a": 1}]))
        path.write_text(json.dumps(mark))
    assert read_mark(folder, "train") is None
    assert foreign(folder) is not None
    before = snapshot(folder)
    with pytest.raises(UserError, match="cannot be read"):
        check(folder, "run.dir")
    assert snapshot(folder) == before


@pytest.mark.parametrize("left", [["lock"], ["lock", "holder.json"], ["lock", "mark.json.new"]])
def test_a_start_that_was_killed_before_its_mark_blocks_nobody(left: list[str], tmp_path: Path) -> None:
    (tmp_path / "run" / ".alp" / "train").mkdir(parents=True)
    for name in left:
        (tmp_path / "run" / ".alp" / "train" / name).write_text("{")
    _make(tmp_path / "run")
    assert read_mark(tmp_path / "run", "train") is not None


def test_what_is_refused_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), Claim(tmp_path / "a" / "b", "train", outputs=OUTPUTS):
        raise RuntimeError("no model")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), claimed(tmp_path / "a" / "b", "train", FIRST, outputs=OUTPUTS):
        raise RuntimeError("no network")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(RuntimeError), Claim(tmp_path / "mine", "train", outputs=OUTPUTS):
        raise RuntimeError("no model")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"], "an empty folder of the user's stays"


# ---- what is made, removed and swept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.json", "model/weights", "checkpoints/mine"])
def test_a_file_in_the_place_of_an_output_is_refused(name: str, tmp_path: Path) -> None:
    """In a marked folder too, where another verb's results stand."""
    with claimed(tmp_path / "run", "other", FIRST, outputs=["b.json"]):
        write_text(tmp_path / "run" / "b.json", "")
    theirs = tmp_path / "run" / name
    theirs.parent.mkdir(exist_ok=True)
    theirs.write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match="is in the way: alp did not make it"):
        _make(tmp_path / "run")
    theirs.unlink()
    theirs.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is in the way: alp did not make it"):
        _make(tmp_path / "run")
    theirs.unlink()
    assert {path: before[path] for path in snapshot(tmp_path)} == snapshot(tmp_path)


def test_one_job_s_outputs_are_not_another_s(tmp_path: Path) -> None:
    """`alp train run.dir=<the base model's folder>` would have written over the base model."""
    _make(tmp_path / "run", job="pretrain")
    before = snapshot(tmp_path)
    for replace in (False, True):
        with pytest.raises(
            UserError, match=r"holds a.json of the results of alp pretrain; name another: run.dir=<another folder>"
        ):
            _make(tmp_path / "run", replace=replace)
    assert {path: value for path, value in snapshot(tmp_path).items() if "/train" not in path} == before


def test_results_of_another_identity_are_refused_with_what_differs_and_replaced_when_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _make(run)
    with claimed(run, "evaluate.test", {"identity": "e"}, outputs=["evaluation/test.json", "evaluation/test.parts/"]):
        write_text(run / "evaluation" / "test.json", "0.5")
    (run / "model" / "README").write_text("a user's")
    plant(run / "notes")
    with pytest.raises(UserError) as refusal:
        _make(run, SECOND)
    assert (
        "another identity (trainer.seed: 0 there, 1 here); name another: run.dir=<another folder>, or say"
        " run.replace=true" in str(refusal.value)
    )
    assert (run / "a.json").read_text(encoding="utf-8") == "one"
    before = snapshot(run / "notes")
    with claimed(run, "train", SECOND, outputs=OUTPUTS, replace=True, dependents="evaluate"):
        left = {
            path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file() and ".alp" not in path.parts
        }
        assert not {name for name in left if not name.startswith("notes/")} - {"model/README"}, (
            "all of it goes before the first new file"
        )
        assert list(marks(run)) == ["train"]
    assert snapshot(run / "notes") == before
    assert (run / "model" / "README").read_text(encoding="utf-8") == "a user's"


def test_a_replacement_that_was_killed_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its old identity until all of it is gone: an evaluation of the old weights never stands beside new ones."""
    run = tmp_path / "run"
    _make(run)
    with claimed(run, "evaluate.test", {"identity": "e"}, outputs=["evaluation/test.json"]):
        write_text(run / "evaluation" / "test.json", "0.5")

    def killed(self: Claim, made: list[str]) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as inner:
        inner.setattr(Claim, "_remove", killed)
        with pytest.raises(KeyboardInterrupt):
            _make(run, SECOND, replace=True)
    assert marks(run)["train"]["identity"] == "one"
    with pytest.raises(UserError, match="has not finished"):
        check_finished(run / "model", "model.path")
    with pytest.raises(UserError, match="another identity"):
        _make(run, SECOND)
    _make(run, SECOND, replace=True)
    assert not (run / "evaluation").exists()
    assert (run / "a.json").read_text(encoding="utf-8") == "two"


def test_an_unfinished_model_is_nobody_s_base(tmp_path: Path) -> None:
    with Claim(tmp_path / "run", "pretrain", outputs=OUTPUTS) as claim:
        claim.begin(FIRST)
        write_text(tmp_path / "run" / "model" / "weights", "half")  # and never finished
    with pytest.raises(
        UserError, match=r"model.path: .*/run/model belongs to the results of alp pretrain that has not finished"
    ):
        check_finished(tmp_path / "run" / "model", "model.path")
    _make(tmp_path / "run", job="pretrain")
    check_finished(tmp_path / "run" / "model", "model.path")


def test_temporary_files_of_a_killed_job_are_swept_and_only_those(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _make(run)
    plant(run, checkout=False)
    mine = {path: value for path, value in snapshot(run).items() if not path.startswith(".alp/")}
    for job in ("train", "evaluate.test"):
        (run / ".alp" / job / "tmp" / "deep").mkdir(parents=True)
        (run / ".alp" / job / "tmp" / "deep" / ".half").write_text("x")
    _make(run)
    assert not (run / ".alp" / "train" / "tmp").exists()
    assert (run / ".alp" / "evaluate.test" / "tmp" / "deep" / ".half").exists(), "another job's are its own to sweep"
    assert {path: value for path, value in snapshot(run).items() if not path.startswith(".alp/")} == mine


def test_a_file_written_by_other_means_is_noted(tmp_path: Path) -> None:
    with claimed(tmp_path / "run", "train", FIRST, outputs=OUTPUTS):
        note(tmp_path / "run" / "engine.log")
        assert "engine.log" in marks(tmp_path / "run")["train"]["made"]
        (tmp_path / "run" / "mine").write_text("")
        with pytest.raises(UserError, match="is in the way"):
            note(tmp_path / "run" / "mine")


def test_a_link_in_the_place_of_what_was_made_is_not_followed(tmp_path: Path) -> None:
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    _make(run)
    plant(theirs)
    shutil.rmtree(run / "model")
    (run / "model").symlink_to(theirs)
    (theirs / "weights").write_text("theirs")
    before = snapshot(theirs)
    with pytest.raises(UserError, match="is in the way"):
        _make(run, SECOND, replace=True)
    assert snapshot(theirs) == before


def test_moved_and_copied_folders_are_still_marked(tmp_path: Path) -> None:
    _make(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    for name in ("moved", "copied"):
        _make(tmp_path / name)
        with pytest.raises(UserError, match="another identity"):
            _make(tmp_path / name, SECOND)


def test_marks_are_the_same_bytes_wherever_and_whenever(tmp_path: Path) -> None:
    for name in ("one", "two"):
        _make(tmp_path / name)
    one, two = ((tmp_path / name / ".alp" / "train" / "mark.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_clearing_removes_what_is_marked_and_nothing_else(tmp_path: Path) -> None:
    """`make clean` removed every folder below results/."""
    for name in ("grid/arm/seed0", "grid/arm/seed1", "alone"):
        _make(tmp_path / name)
    (tmp_path / "alone" / "checkpoints").mkdir()
    (tmp_path / "alone" / "checkpoints" / "step").write_text("")
    plant(tmp_path / "mine")
    (tmp_path / "grid" / "arm" / "seed1" / "model" / "notes").write_text("mine")
    left = {
        name: value
        for name, value in snapshot(tmp_path).items()
        if name.startswith(("mine", "grid/arm/seed1/model/notes"))
    }
    words = [f"results='{tmp_path}'", "all=true", "yes=true"]
    assert clean(compose.load("clean", words)).startswith("removed 3 of 3 results")
    found = snapshot(tmp_path)
    assert found == left | {
        name: found[name] for name in ("grid", "grid/arm", "grid/arm/seed1", "grid/arm/seed1/model")
    }


# ---- two at once -----------------------------------------------------------------------------------------------------


def test_a_second_job_is_told_who_holds_the_outputs(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom alp.ownership import Claim\nwith Claim(Path(sys.argv[1]),"
        " 'train', outputs=['a.json']):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            UserError, match=rf"another job is running in .*/run: alp train, process {holder.pid} on .*; wait for it"
        ):
            _make(tmp_path / "run")
        with claimed(tmp_path / "run", "evaluate.test", {"identity": "e"}, outputs=["evaluation/test.json"]):
            pass  # other outputs, another lock
    finally:
        holder.kill()
        holder.wait()
    _make(tmp_path / "run")


def test_replacing_waits_for_no_running_evaluation_but_refuses(tmp_path: Path) -> None:
    run = tmp_path / "run"
    _make(run)
    with claimed(run, "evaluate.test", {"identity": "e"}, outputs=["evaluation/test.json"]):
        with pytest.raises(UserError, match=rf"another job is running in .*: alp evaluate.test, process {os.getpid()}"):
            _make(run, SECOND, replace=True)
        write_text(run / "evaluation" / "test.json", "0.5")
    assert (run / "a.json").read_text(encoding="utf-8") == "one", "nothing went"


# ---- verbs -----------------------------------------------------------------------------------------------------------

Make = Callable[..., Any]


def _evaluate(run: Path, *more: str) -> int:
    words = [
        "task.digits=1",
        "task.train=30",
        "task.validation=6",
        "task.test=8",
        f"model.path='{run}/model'",
        f"run.dir='{run}'",
    ]
    return main(["evaluate", *words, "evaluation.samples=1", "evaluation.greedy=false", "evaluation.device=cpu", *more])


def test_weights_of_one_job_are_never_scored_under_the_configuration_of_another(
    train_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run, a second job with another seed in its folder, killed after its first metrics, then `evaluate`:
    exit code 0, once."""
    from alp.training import loop
    from alp.training.loop import train

    run = tmp_path / "run"
    train(train_config(folder="run"))
    assert _evaluate(run) == 0
    other = train_config("trainer.seed=1", folder="run")
    with pytest.raises(UserError, match=r"trainer.seed: 0 there, 1 here"):
        train(other)
    assert _evaluate(run) == 0, "the refused job left everything"

    def killed(job: loop.Job, step: int) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(train_config("trainer.seed=1", "run.replace=true", folder="run"))
    assert not (run / "evaluation").exists()
    capsys.readouterr()
    assert _evaluate(run) == 2
    assert "no model in" in capsys.readouterr().err


def test_results_of_a_version_without_marks_are_kept(
    train_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence says how; nothing of them is touched."""
    from alp.training.loop import train

    run = tmp_path / "run"
    train(train_config(folder="run"))
    shutil.rmtree(run / ".alp")
    (run / "run.lock").write_text("")
    before = snapshot(run)
    for more in ([], ["run.replace=true"]):
        with pytest.raises(
            UserError, match=r"to keep what is there move it, or build elsewhere: run.dir=<another folder>"
        ):
            train(train_config(*more, folder="run"))
        assert _evaluate(run, *more) == 2
    assert snapshot(run) == before
    assert _evaluate(run, f"run.dir='{tmp_path}/elsewhere'") == 0, "its weights can be read"


def test_two_evaluations_of_one_set_in_one_folder(
    train_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One used to die with a traceback, or the last writer won; and one of another form is refused, or replaces the
    first when told."""
    from alp.training.loop import train

    run = tmp_path / "run"
    train(train_config(folder="run"))
    with Claim(run, "evaluate.test", outputs=()):
        assert _evaluate(run) == 2
        assert "another job is running in" in capsys.readouterr().err
        assert _evaluate(run, "evaluation.set=validation") == 0, "another set has other outputs"
    assert _evaluate(run) == 0
    whole = (run / "evaluation" / "test.json").read_bytes()
    assert _evaluate(run, "evaluation.seed=5") == 2
    assert "evaluation.seed: 0 there, 5 here" in capsys.readouterr().err
    assert (run / "evaluation" / "test.json").read_bytes() == whole
    assert _evaluate(run, "evaluation.seed=5", "run.replace=true") == 0
    assert (run / "evaluation" / "test.json").read_bytes() != whole
