"""The hash of a user's module is of the files that run, all of them, found where Python finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from alp import own_code
from alp.configuration.compose import identity, load
from alp.errors import UserError

TREE = {
    "own_a/__init__.py": "",
    "own_a/task.py": (
        "from .near import x\nfrom own_helper import y\nimport own_b.deep.leaf\nfrom own_b import lazy\nimport json,"
        " numpy\n"
    ),
    "own_a/near.py": "x = 1",
    "own_a/unused.py": "z = 1",
    "own_helper.py": "def f():\n    import own_late\ny = 1",
    "own_late.py": "",
    "own_b/__init__.py": "top = 1",
    "own_b/deep/leaf.py": "",
    "own_b/lazy.py": "",
}
RUN = {"own_a", "own_a.task", "own_a.near", "own_helper", "own_late", "own_b", "own_b.deep.leaf", "own_b.lazy"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return tmp_path


def test_the_closure_is_what_imports_reach(place: Path) -> None:
    """Packages, relative imports, helpers, imports inside functions, packages without __init__; of libraries their
    versions."""
    import numpy

    found = own_code.closure("own_a.task")
    assert set(found.files) == RUN
    assert found.packages == {"numpy": numpy.__version__}
    assert not set(found.files) & set(sys.modules), "nothing is run for it"


def test_an_edit_of_anything_that_runs_is_another_identity(place: Path) -> None:
    config = load("prepare", ["task=custom", "task.module=own_a.task"])
    seen = {identity(config)}
    for name in TREE:
        before = len(seen)
        (place / name).write_text(TREE[name] + "\n# a comment\n")
        assert identity(config) in seen, name
        (place / name).write_text(TREE[name] + "\nedited = 1\n")
        seen.add(identity(config))
        assert (len(seen) > before) == (name != "own_a/unused.py"), name


def test_the_same_files_elsewhere_are_the_same_identity(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = own_code.sha256("own_a.task.Task")
    (place / "sub").mkdir()
    monkeypatch.chdir(place / "sub")
    sys.path.insert(0, str(place))
    assert own_code.sha256("own_a.task.Task") == first


JOB = (
    "from alp import own_code\n"
    "closure = own_code.closure('twice')\n"
    "print(closure.files['twice'].parent.name, own_code.load('twice').PLACE)\n"
)


@pytest.mark.parametrize("start", [["-c", JOB], ["-m", "job"], ["elsewhere/job.py"]])
def test_of_two_modules_of_a_name_the_one_that_runs_is_hashed(start: list[str], tmp_path: Path) -> None:
    """However Python is started, and so whether the current folder stands first on its path or not at all."""
    for name in ("path", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "twice.py").write_text(f"PLACE = '{name}'")
    (tmp_path / "here/elsewhere").mkdir()
    for name in ("job.py", "elsewhere/job.py"):
        (tmp_path / "here" / name).write_text(JOB)
    paths = f"{tmp_path / 'path'}:{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [sys.executable, *start], cwd=tmp_path / "here", env=os.environ | {"PYTHONPATH": paths}, capture_output=True
    )
    assert done.stdout.decode() == "path path\n", done.stderr.decode()


def test_what_runs_and_was_not_hashed_is_refused(place: Path) -> None:
    (place / "own_dynamic.py").write_text("import importlib\nimportlib.import_module('own_hidden')\n")
    (place / "own_hidden.py").write_text("")
    with pytest.raises(UserError, match=r"own_dynamic imports own_hidden .* in a way that its source does not show"):
        own_code.load("own_dynamic")


def test_another_module_of_the_name_in_the_process_is_refused(place: Path) -> None:
    (place / "own_user.py").write_text("import own_taken\n")
    (place / "own_taken.py").write_text("")
    own_code.load("own_user")
    (place / "elsewhere").mkdir()
    for name in ("own_user", "own_taken"):
        (place / "elsewhere" / f"{name}.py").write_text("import own_taken" if name == "own_user" else "")
    sys.path.insert(0, str(place / "elsewhere"))
    with pytest.raises(
        UserError, match=r"own_taken is .* in this process, and .*elsewhere/own_taken.py is what Python finds"
    ):
        own_code.load("own_user")
