"""The recipes for images: what they copy and run is there. No image is built here."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "containers"
RECIPES = {path.name: path.read_text(encoding="utf-8") for path in (FOLDER / "Dockerfile", FOLDER / "alp.def")}


def _copied(text: str) -> dict[str, str]:
    """Places in the image by those in the clone."""
    return dict(re.findall(r"^(?:COPY| {3}) ?(\.git|[\w/]+\.sh) (/\S+)$", text, flags=re.MULTILINE))


def _settings(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(?:ARG| {3}) ?(LOCK|EXTRAS)=(\S+)$", text, flags=re.MULTILINE))


def test_both_recipes_are_of_the_same_image() -> None:
    docker, apptainer = (RECIPES[name] for name in ("Dockerfile", "alp.def"))
    assert _copied(docker) == _copied(apptainer)
    assert _settings(docker) == _settings(apptainer)
    (base,) = re.findall(r"^FROM (\S+)$", docker, flags=re.MULTILINE)
    (other,) = re.findall(r"^From: (\S+)$", apptainer, flags=re.MULTILINE)
    assert base == other
    packages = [
        re.findall(r"--no-install-recommends ([^\\\n]+?)(?: \\)?$", text, flags=re.MULTILINE)
        for text in (docker, apptainer)
    ]
    assert packages[0] == packages[1]


@pytest.mark.parametrize("name", RECIPES)
def test_what_a_recipe_names_is_in_the_clone(name: str) -> None:
    text = RECIPES[name]
    places = _copied(text)
    assert set(places) == {".git", "containers/setup.sh"}
    for path in places:
        assert (ROOT / path).exists(), path
    call = re.search(
        r'sh (\S+) (\S+) (\S+) "(?:\$LOCK|\{\{ LOCK \}\})" "(?:\$EXTRAS|\{\{ EXTRAS \}\})"$', text, flags=re.MULTILINE
    )
    assert call is not None
    assert call.groups()[:2] == (places["containers/setup.sh"], places[".git"])
    assert f"PATH={call[3]}/.venv/bin:$PATH" in text
    assert f"{call[3]}/Snakefile" in text
    assert f"containers/{name}" in text
    for lock in re.findall(r"LOCK=(locks/\S+)", text):
        assert (ROOT / lock).is_file(), lock
    known = set(
        re.findall(r"^([\w-]+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for extras in re.findall(r"EXTRAS=([\w,-]+)", text):
        assert set(extras.split(",")) <= known, extras


def test_the_setup_takes_the_commit_and_installs_from_its_lock(tmp_path: Path) -> None:
    """All of it but the installation itself, which `make` only prints here."""
    settings = _settings(RECIPES["Dockerfile"])
    make = tmp_path / "bin" / "make"
    make.parent.mkdir()
    make.write_text('#!/bin/sh\nPATH=${PATH#*:}\nexec make --dry-run "$@"\n', encoding="utf-8")
    make.chmod(0o755)
    inside = subprocess.run(["git", "rev-parse", "--git-dir"], cwd=ROOT, capture_output=True, text=True)
    if inside.returncode:
        pytest.skip("no clone: there is no commit to take")
    command = ["sh", str(FOLDER / "setup.sh"), str(ROOT), str(tmp_path / "alp"), settings["LOCK"], settings["EXTRAS"]]
    path = f"{make.parent}:/usr/local/bin:/usr/bin:/bin"
    done = subprocess.run(command, env={"PATH": path, "HOME": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    install = re.search(r"--constraint (\S+)|lock=(\S+);", done.stdout)
    assert install is not None
    assert f"lock={settings['LOCK']}" in done.stdout
    assert f"extras='{settings['EXTRAS']}'" in done.stdout
    commits = [
        subprocess.run(["git", "rev-parse", "HEAD"], cwd=place, capture_output=True, text=True, check=True).stdout
        for place in (ROOT, tmp_path / "alp")
    ]
    assert commits[0] == commits[1]
