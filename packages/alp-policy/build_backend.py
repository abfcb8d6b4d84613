"""Builds ``alp-policy`` from the sources of the tree that this folder lies in; they stay where they are.

A build lays out a scratch folder (:func:`lay_out`) and leaves the rest to setuptools. In a source distribution the
files lie beside this one already.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from setuptools import build_meta

HERE = Path(__file__).resolve().parent
TREE = HERE.parents[1]
OWN = ("pyproject.toml", "README.md", "MANIFEST.in", "build_backend.py")

# What is packed, relative to alp/: rooms, and what their modules import from beside them (tests/test_small.py) …
ROOMS = ("policy", "diagnosis", "rendering")
BESIDE = ("errors", "foreign", "marks", "nested", "ownership", "places", "presets", "progress")
BESIDE += ("reproducibility", "sharing")
# … without what runs a model of ours, and the pages of it.
LEFT_OUT = ("diagnosis/noise.py", "diagnosis/noise_page.py", "diagnosis/noise.html.j2", "rendering/budget.py")
LEFT_OUT += ("diagnosis/rescoring.py", "diagnosis/changes.py", "diagnosis/check.py")
LEFT_OUT += ("diagnosis/check_trl.py", "diagnosis/check_updates.py")


def sources(package: Path = TREE / "alp") -> list[Path]:
    """The files of the tree's package that are packed as they are."""
    rooms = [path for room in ROOMS for path in sorted((package / room).rglob("*")) if path.is_file()]
    wanted = [path for path in rooms if path.suffix in (".py", ".j2", ".npz")]
    left_out = {package / name for name in LEFT_OUT}
    beside = [package / f"{name}.py" for name in BESIDE]
    return [*(path for path in wanted if path not in left_out), *beside, package / "py.typed"]


def lay_out(folder: Path) -> None:
    """Write the distribution's files: the tree's under the names that they have there, the presets beside them."""
    for name in OWN:
        shutil.copy(HERE / name, folder)
    shutil.copy(TREE / "LICENSE", folder)
    package = folder / "alp"
    for path in sources():
        target = package / path.relative_to(TREE / "alp")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    beginning, guard = TREE / "alp" / "__init__.py", HERE / "guard.py"
    text = beginning.read_text(encoding="utf-8") + guard.read_text(encoding="utf-8")
    (package / "__init__.py").write_text(text, encoding="utf-8")
    (package / "methods").mkdir()
    for path in sorted((TREE / "configs" / "method").glob("*.yaml")):
        shutil.copy(path, package / "methods")


@contextmanager
def _sources_at_hand() -> Iterator[None]:
    """The current folder is one that setuptools can build from."""
    if (HERE / "alp").is_dir():  # a source distribution
        yield
        return
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="alp-policy-") as folder:
        lay_out(Path(folder))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """PEP 517."""
    target = os.path.abspath(wheel_directory)
    with _sources_at_hand():
        return build_meta.build_wheel(target, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """PEP 517."""
    target = os.path.abspath(sdist_directory)
    with _sources_at_hand():
        return build_meta.build_sdist(target, config_settings)
