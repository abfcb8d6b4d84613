"""Builds on other kinds of processor and kept references: what ``alp verify`` and the report say of them, what is
refused, and when a reference is stale."""

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

from alp import code_identity
from alp.cli import main
from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.reporting import manifest, reference, runs
from alp.reporting.manifest import outputs, write_manifest
from alp.reporting.processor import _vendor, kind_of, processor
from alp.reporting.reference import CODE, FOLDER, Reference, digests, moved, sentences, stale
from alp.reporting.verify import verify

from .conftest import GRID, fabricate, write_grid

COMMIT = "a1" * 20
OTHER = "intel-avx2"


@pytest.fixture(autouse=True)
def _committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a checkout whose work is committed, whatever the state of this one (tests/workflow has a real one)."""
    before = manifest.provenance

    def provenance() -> dict[str, Any]:
        return before() | {"commit": COMMIT, "dirty": False, "lock": "locks/cpu.txt"}

    monkeypatch.setattr(manifest, "provenance", provenance)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``tiny.yaml`` and its whole results, trained by this very code as their provenance says."""
    folder = tmp_path_factory.mktemp("made")
    grid, results = fabricate(write_grid(folder, GRID), folder / "results", steps=3)
    for arm in grid.arms:
        for seed in grid.seeds:
            config = compose.load("train", grid.overrides("train", results, arm=arm.name, seed=seed))
            path = grid.run_dir(results, arm.name, seed) / "provenance.json"
            hashes = {"config_hash": compose.identity(config), "code_hash": compose.code_of("train", config)}
            path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | hashes), encoding="utf-8")
    while True:  # whatever else a manifest lists
        try:
            outputs(grid, results)
            return folder
        except UserError as missing:
            path = Path(str(missing).removeprefix("manifest: ").partition(" is missing")[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n", encoding="utf-8")


class Build:
    """A copy of it, to be changed."""

    def __init__(self, made: Path, folder: Path) -> None:
        shutil.copytree(made, folder)
        self.grid = write_grid(folder, GRID)
        self.results = folder / "results"
        self.root = self.grid.folder(self.results)

    def answers(self, arm: str, change: Callable[[int], int]) -> None:
        """Other counts of right answers in every seed of an arm."""
        for seed in self.grid.seeds:
            path = self.grid.run_dir(self.results, arm, seed) / "evaluation" / "test.json"
            plain = json.loads(path.read_text(encoding="utf-8"))
            plain["correct"] = [min(max(change(count), 0), plain["samples"]) for count in plain["correct"]]
            path.write_text(json.dumps(plain), encoding="utf-8")

    def manifest(self, *, kind: str | None = None, **more: Any) -> Path:
        """Its manifest, as one that was written on another kind of processor."""
        path = write_manifest(self.grid, self.results, replace=True, **more)
        if kind is not None:
            edited(self.root / "manifest.json", lambda plain: plain["processor"].update(kind=kind))
        return path


def edited(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    plain = json.loads(path.read_text(encoding="utf-8"))
    change(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")
    return path


@pytest.fixture
def there(made: Path, tmp_path: Path) -> Build:
    return Build(made, tmp_path / "there")


@pytest.fixture
def here(made: Path, tmp_path: Path) -> Build:
    return Build(made, tmp_path / "here")


# ---- two manifests ---------------------------------------------------------------------------------------------------


def test_the_same_bytes_are_the_same_whatever_the_processor(there: Build, here: Build) -> None:
    here.manifest()
    lines, code = verify(there.manifest(kind=OTHER), here.root)
    assert (len(lines), code) == (1, 0)
    assert lines[0].endswith("files of tiny compared: 0 differing files, 0 missing")


def test_on_the_same_kind_bytes_decide_and_conclusions_are_told(there: Build, here: Build) -> None:
    published = there.manifest()
    here.answers("token_bypass", lambda count: count + (count == 3))
    here.manifest()
    lines, code = verify(published, here.root)
    assert code == 1
    assert any(line.startswith("differs  arithmetic/arithmetic_tiny/token_bypass/seed0/evaluation") for line in lines)
    assert "note     of the paired differences: " in lines[-2]
    assert lines[-2].endswith("no conclusion differs")
    assert "2 differing files, 0 missing" in lines[-1]


def test_on_another_kind_conclusions_decide(there: Build, here: Build) -> None:
    """Other answers within noise: no conclusion differs, and the files that differ are not told one by one."""
    published = there.manifest(kind=OTHER)
    here.answers("token_bypass", lambda count: count + (count == 3))
    here.manifest()
    lines, code = verify(published, here.root)
    assert code == 0
    assert lines[0].startswith(f"note     {OTHER} there, {processor()['kind']} here: ")
    assert not any(line.startswith("differs") for line in lines)
    assert [line.split()[0] for line in lines] == ["note", "tables", "tables", "6"]
    assert lines[-1].startswith("6 paired differences of tiny compared: ")
    assert lines[-1].endswith("no conclusion differs")


def test_on_another_kind_a_conclusion_that_differs_is_named(there: Build, here: Build) -> None:
    """GRPO far above Token-ALP on one side, far below on the other, in every seed alike."""
    for build, better, worse in ((there, "grpo", "token_alp"), (here, "token_alp", "grpo")):
        build.answers(better, lambda _: 15)
        build.answers(worse, lambda _: 2)
    here.manifest()
    lines, code = verify(there.manifest(kind=OTHER), here.root)
    assert code == 1
    named = [line for line in lines if line.startswith("differs  token_alp − grpo: −81.2 ")]
    assert len(named) == 1
    assert "+81.2 [+81.2, +81.2] here: clear of zero in both builds, with opposite signs" in named[0]
    assert "conclusions differ" in lines[-1]


def test_what_no_processor_changes_is_compared_in_bytes(there: Build, here: Build) -> None:
    published = there.manifest(kind=OTHER)
    problems = here.root / "arithmetic" / "data" / "test.jsonl"
    problems.write_text(problems.read_text(encoding="utf-8").replace("1", "2"), encoding="utf-8")
    here.manifest()
    (here.root / "figures" / "more.svg").write_text("x", encoding="utf-8")
    lines, code = verify(published, here.root)
    assert code == 1
    assert lines[0].startswith("differs  arithmetic/data/test.jsonl: ")
    assert "extra    figures/more.svg" in lines


def test_a_build_that_is_not_what_its_own_manifest_says(there: Build, here: Build) -> None:
    published = there.manifest(kind=OTHER)
    here.manifest()
    here.answers("grpo", lambda count: 16 - count)
    lines, code = verify(published, here.root)
    assert code == 1
    assert f"differs  {here.root} is not what its own manifest says" in "\n".join(lines)


def test_another_configuration_is_another_experiment(there: Build, here: Build) -> None:
    published = edited(there.manifest(kind=OTHER), lambda plain: plain.update(config_hash="0" * 64))
    here.answers("grpo", lambda count: count + (count == 3))
    here.manifest()
    lines, code = verify(published, here.root)
    assert (code, "differs  the configuration: other settings are another experiment" in lines) == (1, True)


def test_a_manifest_without_numbers_or_kind_is_compared_in_bytes(there: Build, here: Build) -> None:
    """As earlier ones were written, on either side; and a damaged one of the folder's own costs the words alone."""

    def old(plain: dict[str, Any]) -> None:
        for key in ("processor", "numbers", "code", "packages"):
            del plain[key]

    here.answers("grpo", lambda count: 16 - count)
    here.manifest()
    lines, code = verify(edited(there.manifest(), old), here.root)
    assert (code, "2 differing files" in lines[-1]) == (1, True)
    there.manifest(kind=OTHER)
    edited(here.root / "manifest.json", old)
    lines, code = verify(there.root / "manifest.json", here.root)
    assert (code, "2 differing files" in lines[-1]) == (1, True)
    assert any("holds no numbers: alp manifest writes it anew" in line for line in lines)
    (here.root / "manifest.json").write_text("{", encoding="utf-8")
    lines, code = verify(there.root / "manifest.json", here.root)
    assert (code, "2 differing files" in lines[-1]) == (1, True)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain["numbers"].update(arms=[]),
        lambda plain: plain["numbers"]["differences"][0].update(low=-1.0),
        lambda plain: plain["processor"].update(kind="../x"),
        lambda plain: plain.pop("numbers"),
        lambda plain: plain.update(config_hash="0"),
    ],
    ids=["arms", "interval", "kind", "no numbers", "hash"],
)
def test_numbers_that_cannot_be_trusted_cannot_tell(there: Build, change: Callable[[dict[str, Any]], object]) -> None:
    path = edited(there.manifest(), change)
    with pytest.raises(UserError, match=r"manifest\.json is no manifest of format 1"):
        verify(path, None)


# ---- references ------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(there: Build, tmp_path: Path) -> Path:
    """The reference of an undisturbed build."""
    return there.manifest(reference=str(tmp_path / "kept"))


def test_a_reference_is_small_and_says_whose_numbers_it_holds(kept: Path, there: Build) -> None:
    plain = json.loads(kept.read_text(encoding="utf-8"))
    assert kept.name == f"tiny.{processor()['kind']}.json"
    assert (plain["commit"], plain["lock"]) == (COMMIT, "locks/cpu.txt")
    assert len(plain["jobs"]) == 4 * 2 + 2, "a job for each arm and seed, the base model's, and the data"
    assert plain["numbers"] == json.loads((there.root / "manifest.json").read_text(encoding="utf-8"))["numbers"]
    assert kept.stat().st_size < 10_000
    assert Reference.model_validate(plain).title == f"of commit a1a1a1a on {processor()['kind']}"


def test_a_build_reproduces_its_reference(kept: Path, there: Build, here: Build) -> None:
    here.manifest()
    for build in (there, here):
        for named in (kept, kept.parent):
            lines, code = verify(named, build.root)
            assert code == 0
            assert lines[0].startswith(
                "10 jobs of tiny compared: every byte is that of the reference of commit a1a1a1a"
            )


def test_tables_and_provenance_are_no_job_s(kept: Path, here: Build) -> None:
    """They follow from other code than the jobs, and say where numbers come from."""
    (here.root / "tables" / "main.csv").write_text("x", encoding="utf-8")
    edited(here.grid.run_dir(here.results, "grpo", 0) / "provenance.json", lambda plain: plain.update(commit="x"))
    here.manifest()
    assert verify(kept, here.root)[1] == 0


def test_other_bytes_on_the_same_kind_differ(kept: Path, here: Build) -> None:
    here.answers("grpo", lambda count: count + (count == 3))
    here.manifest()
    lines, code = verify(kept, here.root)
    assert code == 1
    assert lines[:2] == [f"differs  arithmetic/arithmetic_tiny/grpo/seed{seed}" for seed in (0, 1)]
    assert lines[-1].startswith("10 jobs of tiny compared with the reference of commit a1a1a1a")
    assert "2 differ; " in lines[-1]
    assert lines[-1].endswith("no conclusion differs")


def test_a_reference_of_another_kind_is_chosen_and_compared_by_conclusions(kept: Path, here: Build) -> None:
    edited(kept, lambda plain: plain["processor"].update(kind=OTHER)).rename(kept.with_name(f"tiny.{OTHER}.json"))
    here.answers("grpo", lambda count: count + (count == 3))
    here.manifest()
    lines, code = verify(kept.parent, here.root)
    assert code == 0
    assert f"6 paired differences of tiny compared with the reference of commit a1a1a1a on {OTHER}: " in lines[-1]


def test_a_folder_of_references_needs_the_build(kept: Path, here: Build) -> None:
    with pytest.raises(UserError, match=r"is a folder: name its manifest\.json, or beside a folder of references"):
        verify(kept.parent, None)
    here.manifest()
    kept.rename(kept.with_name("other.x.json"))
    with pytest.raises(UserError, match="holds no reference of the grid tiny"):
        verify(kept.parent, here.root)


BROKEN: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("format", lambda plain: plain.update(reference=2), "'reference': Input should be 1"),
    ("commit", lambda plain: plain.update(commit="HEAD"), "'commit': String should match"),
    ("lock", lambda plain: plain.update(lock="/etc/passwd"), "'lock': Input should be 'locks/cpu.txt'"),
    ("jobs", lambda plain: plain.update(jobs={}), "'jobs': Dictionary should have at least 1 item"),
    ("hash", lambda plain: plain["jobs"].update(x="0" * 63), "'jobs.x': String should match"),
    ("more", lambda plain: plain.update(more=1), "'more': Extra inputs are not permitted"),
    ("numbers", lambda plain: plain.pop("numbers"), "'numbers': Field required"),
    ("interval", lambda plain: plain["numbers"]["differences"][0].update(high=0.9), "does not follow from its mean"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_a_broken_reference_is_refused_in_one_line(
    kept: Path, change: Callable[[dict[str, Any]], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edited(kept, change)
    assert main(["verify", str(kept)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"alp: error: verify: {kept} is no reference of format 1: ")
    assert message in said[0]


def test_a_cut_or_foreign_file_is_refused_in_one_line(
    kept: Path, here: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = kept.read_text(encoding="utf-8")
    here.manifest()
    for content in (text[: len(text) // 2], "", "[1]", text.replace('"grid"', '"grid": "tiny", "grid"'), "\udcff"):
        kept.write_text(content, encoding="utf-8", errors="surrogateescape")
        assert main(["verify", str(kept), str(here.root)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert all(line.startswith(f"alp: error: verify: {kept} ") for line in said)
    kept.write_text(text.replace('"tiny"', '"quick"'), encoding="utf-8")
    assert main(["verify", str(kept), str(here.root)]) == 2
    assert "is a reference of the grid quick, and " in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)  # where no results/quick is built, as there may be in the repository
    assert main(["verify", str(kept)]) == 2
    assert "there is no results/quick/manifest.json" in capsys.readouterr().err


def test_a_reference_names_a_commit_that_has_its_numbers(
    there: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = manifest.provenance
    for state, why in (({"dirty": True}, "there are uncommitted changes"), ({"commit": None}, "nothing says which")):
        monkeypatch.setattr(manifest, "provenance", lambda state=state: known() | state)
        with pytest.raises(UserError, match=why):
            there.manifest(reference=str(tmp_path / "kept"))
    monkeypatch.setattr(manifest, "provenance", known)
    edited(there.grid.run_dir(there.results, "grpo", 1) / "provenance.json", lambda plain: plain.update(code_hash="x"))
    with pytest.raises(UserError, match=r"grpo/seed1 was trained with other code or settings than this checkout's"):
        there.manifest(reference=str(tmp_path / "kept"))
    assert not (tmp_path / "kept").exists()
    assert not (there.root / "manifest.json").exists(), "refused before anything is written"


def test_something_else_in_the_place_of_a_reference_stays(kept: Path, there: Build) -> None:
    kept.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="is no reference of format 1"):
        there.manifest(reference=str(kept.parent))
    assert kept.read_text(encoding="utf-8") == "mine"


# ---- what the report says --------------------------------------------------------------------------------------------


def _said(build: Build) -> str:
    return " ".join(sentences(runs.load(build.grid, build.results), build.results))


def test_the_report_says_whether_the_reference_is_reproduced(
    kept: Path, here: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _said(here) == "", "no reference of this grid is kept"
    monkeypatch.setattr(reference, "FOLDER", kept.parent)
    assert _said(here) == (
        f"This build reproduces the reference {kept.name} (of commit a1a1a1a on {processor()['kind']}): every byte of"
        " its 10 jobs."
    )
    here.answers("grpo", lambda count: count + (count == 3))
    said = _said(here)
    assert "does not reproduce the reference" in said
    assert "2 of 10 jobs have other bytes (grpo/seed0, grpo/seed1). Of the paired differences: " in said
    assert said.endswith("no conclusion differs.")
    edited(kept, lambda plain: plain.update(code=plain["code"] | {"train": "0" * 64}))
    assert "Changed since: the code of train." in _said(here)
    edited(kept, lambda plain: plain["processor"].update(kind=OTHER)).rename(kept.with_name(f"tiny.{OTHER}.json"))
    assert f"from another kind of processor than this build's {processor()['kind']}." in _said(here)


# ---- when it is stale ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.name)
def test_the_kept_references_are_of_this_code(path: Path) -> None:
    """Another configuration or other packages have other numbers: build the grid again and write its reference, or take
    it away (docs/faults.md). Whether other code has is seen where the smoke grid is built: tests/workflow/test_dag.py.
    """
    grid = path.name.partition(".")[0]
    mend = f"make grid GRID={grid} && alp manifest grid={grid} reference=docs/reference replace=true"
    reasons = [reason for reason in stale(path) if not reason.startswith(CODE)]
    assert reasons == [], f"{path.name} is stale: {mend}"
    assert path.with_name(path.name.replace(grid, "smoke", 1)).is_file(), "numbers that move are seen by the smoke grid"


def test_what_makes_a_reference_stale(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a copy of the source in which the code of a job changes, or a comment; by the grid's file; by the lock."""
    grid = write_grid(tmp_path, GRID)
    said = Reference.model_validate_json(kept.read_text(encoding="utf-8"))
    assert moved(said, manifest.identity(grid)) == []
    assert moved(said, manifest.identity(write_grid(tmp_path, GRID.replace("[0, 1]", "[0, 2]")))) == [
        "the configuration"
    ]
    copy = Path(shutil.copytree(code_identity.PACKAGE, tmp_path / "copy" / "alp"))
    real = code_identity.job_closure
    monkeypatch.setattr(manifest, "job_closure", lambda module, config: real(module, config, copy))
    source = copy / "training" / "update.py"
    source.write_text(source.read_text(encoding="utf-8") + "\n# a comment\n", encoding="utf-8")
    assert moved(said, manifest.identity(grid)) == []
    source.write_text(source.read_text(encoding="utf-8") + "EDITED = 1\n", encoding="utf-8")
    assert moved(said, manifest.identity(grid)) == ["the code of train"]
    monkeypatch.setattr(manifest, "job_closure", real)
    now = manifest.identity(grid)
    assert moved(said, now | {"packages": now["packages"] | {"torch": "9.9"}})[0].startswith("torch (2.")


def test_a_reference_is_held_against_the_lock_not_against_what_is_installed(
    there: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoke grid's identity stands in the place of a build of it."""
    from alp.configuration import grid as grids

    there.manifest(reference=str(tmp_path / "kept"))
    path = next((tmp_path / "kept").glob("*.json"))
    now = manifest.identity(grids.load("smoke"))
    edited(path, lambda plain: plain.update(now | {"grid": "smoke"}))
    path = path.rename(path.with_name(path.name.replace("tiny", "smoke")))
    assert stale(path) == []
    lock = tmp_path / "locks" / "cpu.txt"
    lock.parent.mkdir()
    text = (reference.ROOT / "locks" / "cpu.txt").read_text(encoding="utf-8")
    lock.write_text(text.replace("\ntorch==", "\ntorch==9"), encoding="utf-8")
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    assert [why.partition(" (")[0] for why in stale(path)] == ["torch"]


# ---- the processor ---------------------------------------------------------------------------------------------------


def test_kinds_of_processor() -> None:
    assert kind_of("amd", "AVX512", ["avx2", "avx512_bf16", "avx512_f"]) == "amd-avx512-bf16"
    assert kind_of("intel", "AVX512", ["amx_tile", "avx512_bf16"]) == "intel-avx512-amx"
    assert kind_of("intel", "AVX512", ["avx512_f"]) == "intel-avx512"
    assert kind_of("intel", "AVX2", ["amx_tile", "avx2"]) == "intel-avx2", "torch is held down to less than there is"
    assert kind_of("ibm", "Z VECTOR", []) == "ibm-z_vector"


def test_whose_a_processor_is(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    for text, vendor in (
        ("processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: X\n", "intel"),
        ("processor\t: 0\nCPU implementer\t: 0x41\n", "arm"),
        ("vendor_id : Some/One Else\n", "someoneelse"),
    ):
        cpuinfo.write_text(text, encoding="utf-8")
        assert _vendor(cpuinfo) == vendor
    assert _vendor(tmp_path / "none")


def test_a_processor_is_known_by_what_torch_takes() -> None:
    """Torch held down to its plain kernels is another kind, and no host stands in it."""
    import socket

    here = processor()
    assert socket.gethostname() not in json.dumps(here)
    script = "import json; from alp.reporting.processor import processor; print(json.dumps(processor()))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    held = json.loads(done.stdout)
    assert held["kind"] == f"{here['vendor']}-default"
    assert held["instructions"] == here["instructions"]


def test_digests_are_of_jobs_alone() -> None:
    files = {
        "t/data/test.jsonl": "1",
        "t/m/base/model/config.json": "2",
        "t/m/grpo/seed0/metrics.jsonl": "3",
        "t/m/grpo/seed0/provenance.json": "4",
        "t/m/grpo/seed0/config.yaml": "5",
        "tables/main.csv": "6",
        "report.html": "7",
    }
    found = digests(files)
    assert found.keys() == {"t/data", "t/m/base", "t/m/grpo/seed0"}
    assert digests(files | {"t/m/grpo/seed0/provenance.json": "8", "report.html": "9"}) == found
    assert digests(files | {"t/m/grpo/seed0/metrics.jsonl": "0"})["t/m/grpo/seed0"] != found["t/m/grpo/seed0"]


def test_jobs_of_the_real_grid_s_paths(finished: tuple[Grid, Path]) -> None:
    """The folders are those that the grid itself says."""
    grid, results = finished
    root = grid.folder(results)
    names = {file.relative_to(root).as_posix(): "0" for file in manifest.job_files(grid, results)}
    folders = [grid.data_dir(results), grid.base_dir(results)]
    folders += [grid.run_dir(results, arm.name, seed) for arm in grid.arms for seed in grid.seeds]
    assert digests(names).keys() == {folder.relative_to(root).as_posix() for folder in folders}
