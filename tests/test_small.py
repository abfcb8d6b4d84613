"""The small distribution (packages/alp-policy): what it packs is whole, needs no library that it does not ask for, and
gives what the whole package gives. `make small` builds and installs it."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from alp import presets

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "packages" / "alp-policy"
WITHOUT = """
import runpy, sys

sys.modules |= dict.fromkeys({refused})  # what is None there is not there
sys.argv = ["diagnosis", *sys.argv[1:]]
runpy.run_module("alp.diagnosis", run_name="__main__")
"""
# Nothing that `alp` asks for beside torch, numpy and PyYAML, or what draws the page.
NEVER = ("transformers", "tokenizers", "hydra", "omegaconf", "pydantic", "rich", "scipy", "mlflow", "pyarrow")
DRAWING = ("matplotlib", "pandas")


@pytest.fixture(scope="module")
def backend() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_backend", FOLDER / "build_backend.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def laid_out(backend: ModuleType, tmp_path: Path) -> Path:
    """The distribution's files without the guard, since this environment has the whole ``alp``."""
    backend.lay_out(tmp_path)
    (tmp_path / "alp" / "__init__.py").write_text((ROOT / "alp" / "__init__.py").read_text())
    return tmp_path


def run(folder: Path, *words: str, refused: tuple[str, ...] = NEVER) -> subprocess.CompletedProcess[str]:
    script = WITHOUT.format(refused=refused)
    return subprocess.run([sys.executable, "-c", script, *words], cwd=folder, capture_output=True, text=True)


def test_every_module_that_a_packed_one_imports_is_packed(backend: ModuleType) -> None:
    packed = [path for path in backend.sources() if path.suffix == ".py"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in packed}
    for path in packed:
        asked = set(_asked(ast.parse(path.read_text(encoding="utf-8"))))
        assert asked <= names | {"alp.__version__"}, f"{path} imports {asked - names}"


def _asked(node: ast.AST) -> Iterator[str]:
    """Modules of ours that are imported, inside functions too, but for those that alp.presets asks for where they are
    and those of type checkers."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.ImportFrom) and child.module == "alp":
            yield from (f"alp.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and (child.module or "").startswith("alp."):
            yield from () if child.module == "alp.configuration" else (str(child.module),)
        else:
            yield from _asked(child)


def test_the_presets_read_from_their_files_are_the_composed_ones() -> None:
    read = presets.read(ROOT / "configs" / "method")
    assert len(read) > 30
    assert [repr(method) for method in read] == [repr(method) for method in presets.known()]


@pytest.mark.long
def test_the_page_is_that_of_the_whole_package(laid_out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    done = run(laid_out, "demo")
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path_factory.mktemp("whole")
    subprocess.run([sys.executable, "-m", "alp.cli", "demo"], cwd=elsewhere, check=True, capture_output=True)
    ours, theirs = (folder / "results" / "demo" for folder in (laid_out, elsewhere))
    made = [path.relative_to(theirs) for path in sorted(theirs.rglob("*")) if path.is_file()]
    shown = [path for path in made if path.parts[0] != ".alp"]
    assert len(shown) > 20
    for path in shown:
        assert (ours / path).read_bytes() == (theirs / path).read_bytes(), path


def test_without_what_draws_the_page_it_says_so(laid_out: Path) -> None:
    done = run(laid_out, "demo", refused=(*NEVER, *DRAWING))
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'alp-policy[page]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_beside_the_whole_package_it_says_which_to_remove(backend: ModuleType, tmp_path: Path) -> None:
    backend.lay_out(tmp_path)
    done = subprocess.run([sys.executable, "-c", "import alp"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("ImportError: alp and alp-policy are both installed")
