"""The smoke grid through the real workflow: what it builds, that it is finished, and what each edit would run again."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from alp.marks import read_mark
from alp.ownership import claimed
from alp.reporting import reference
from alp.reporting.processor import processor
from tests.canary import plant, snapshot
from tests.reporting.test_tracking import expected

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("Snakefile", "workflow", "alp", "configs", "locks", "environment.yml")
ARMS, SEEDS = ("grpo", "seq_alp"), (0, 1)
ANALYSIS = {"aggregate": 1, "figures": 1, "report": 1, "manifest": 1, "track": 1}


def _snakemake(
    house: Path, *words: str, grid: str = "smoke", config: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *words, "--config", f"grid={grid}", *config]
    return subprocess.run(command, cwd=house, capture_output=True, text=True)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, so that its sources can be edited, with the smoke grid built in it."""
    folder = tmp_path_factory.mktemp("house")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / "profiles").symlink_to("workflow/profiles")
    done = _snakemake(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "report: results/smoke/report.html" in done.stderr
    ends = re.findall(r"^alp: (train|evaluate) (\w+) seed (\d)(?: on test)?: done, ", done.stderr, flags=re.MULTILINE)
    assert sorted(ends) == sorted((verb, arm, str(k)) for verb in ("train", "evaluate") for arm in ARMS for k in SEEDS)
    return folder


def _planned(house: Path) -> dict[str, int]:
    """Jobs per rule that Snakemake would run now."""
    done = _snakemake(house, "--dry-run")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, flags=re.MULTILINE)
    return {rule: int(count) for rule, count in rows if rule not in ("total", "all")}


@contextmanager
def _edited(path: Path, old: str, new: str) -> Iterator[None]:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def _runs(house: Path) -> list[Path]:
    return [house / f"results/smoke/arithmetic/arithmetic_tiny/{arm}/seed{seed}" for arm in ARMS for seed in SEEDS]


def test_every_documented_output_is_there(house: Path) -> None:
    names = (
        "config.yaml",
        "active.json",
        "metrics.jsonl",
        "updates.jsonl",
        "trajectories.jsonl",
        "timings.jsonl",
        "model/model.safetensors",
        "evaluation/test.json",
        "evaluation/test.samples.jsonl.gz",
    )
    for run in _runs(house):
        for name in names:
            assert (run / name).is_file(), run / name
        assert not (run / "checkpoints").exists()
    for name in ("main", "pass_at_k", "ratio_tails", "noise_budget", "controls"):
        for ending in ("csv", "md", "tex"):
            assert (house / f"results/smoke/tables/{name}.{ending}").is_file()
    with (house / "results/smoke/tables/main.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == ["base", *ARMS]
    for row in rows:
        assert 0 <= float(row["accuracy_low"]) <= float(row["accuracy_mean"]) <= float(row["accuracy_high"]) <= 1
    page = (house / "results/smoke/report.html").read_text(encoding="utf-8")
    assert "<img" in page
    leaks = json.loads((house / "results/smoke/arithmetic/data/leakage.json").read_text(encoding="utf-8"))["sets"]
    assert leaks.keys() == {"validation", "test"}
    assert all(entry["exact"] == {} for entry in leaks.values())
    assert "Evaluation problems in the training set" in page


def test_first_line_of_a_log_is_the_command(house: Path) -> None:
    line = (house / "results/smoke/logs/train/seq_alp_seed1.log").read_text(encoding="utf-8").splitlines()[0]
    assert line.startswith("alp train task=arithmetic ")
    assert "method=seq_alp" in line
    assert "trainer.seed=1" in line


def test_a_finished_grid_has_nothing_to_do_and_touching_changes_nothing(house: Path) -> None:
    assert "Nothing to be done" in _snakemake(house).stderr
    for path in [*house.glob("configs/**/*.yaml"), *house.glob("alp/**/*.py"), *house.glob("results/smoke/**/*")]:
        os.utime(path)
    assert _planned(house) == {}


def test_snakemake_s_own_report_holds_the_page_tables_and_figures(house: Path) -> None:
    done = _snakemake(house, "--report", "report.zip")
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(house / "report.zip") as packed:
        names = {Path(name).name for name in packed.namelist()}
    (house / "report.zip").unlink()
    assert {"report.html", "main.csv", "controls.csv", "accuracy.svg", "ratio_quantiles.svg"} <= names


def test_a_method_s_value_runs_that_method_again(house: Path) -> None:
    with _edited(house / "configs/method/seq_alp.yaml", "perturbation: {}", "perturbation: {std: 0.03}"):
        assert _planned(house) == {"train": 2, "evaluate": 2, **ANALYSIS}
    assert _planned(house) == {}


# Modules edited together, and every job that then runs again: one start of Snakemake each.
EDITS: list[tuple[tuple[str, ...], dict[str, int]]] = [
    (("reporting/figures/tails.py", "reporting/tracking.py"), {"figures": 1, "report": 1, "manifest": 1, "track": 1}),
    (("reporting/tables/controls.py",), {"aggregate": 1, "figures": 1, "report": 1, "manifest": 1, "track": 1}),
    (("reporting/aggregate.py",), {"aggregate": 1, "report": 1, "manifest": 1, "track": 1}),
    (("reporting/manifest.py",), {"report": 1, "manifest": 1, "track": 1}),
    (("reporting/verify.py",), {}),
    (("policy/ratio.py",), {"train": 4, "evaluate": 4, **ANALYSIS}),
    (("training/pretrain.py",), {"pretrain": 1, "evaluate_base": 1, "train": 4, "evaluate": 4, **ANALYSIS}),
    (("tasks/grading.py", "rollout/vllm.py", "diagnosis/verb.py", "cli.py"), {}),
]


@pytest.mark.parametrize(("modules", "planned"), EDITS)
def test_a_module_s_edit_runs_the_rules_whose_code_it_is(
    house: Path, modules: tuple[str, ...], planned: dict[str, int]
) -> None:
    """And a comment in every other module runs nothing."""
    texts = {path: path.read_text(encoding="utf-8") for path in (house / "alp").rglob("*.py")}
    line = "from __future__ import annotations\n"
    try:
        for path, text in texts.items():
            path.write_text(f"{text}\n\n# a comment\n", encoding="utf-8")
        for module in modules:
            path = house / "alp" / module
            assert line in texts[path]
            path.write_text(texts[path].replace(line, f"{line}\nEDITED = 1\n", 1), encoding="utf-8")
        assert _planned(house) == planned
    finally:
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8")


def test_a_job_by_hand_gives_the_same_bytes(house: Path, tmp_path: Path) -> None:
    run = _runs(house)[-1]
    words = (house / "results/smoke/logs/train/seq_alp_seed1.log").read_text(encoding="utf-8").splitlines()[0]
    command = [word for word in shlex.split(words)[1:] if not word.startswith(("run.dir=", "run.tracking="))]
    done = subprocess.run(
        [sys.executable, "-m", "alp.cli", *command, f"run.dir='{tmp_path}/again'", "run.tracking=null"],
        cwd=house,
        env=os.environ | {"PYTHONPATH": str(house)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("metrics.jsonl", "updates.jsonl", "trajectories.jsonl", "active.json", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run / name).read_bytes(), name


def test_mlflow_holds_one_finished_run_per_job(house: Path) -> None:
    with sqlite3.connect(house / "results/mlflow.db") as database:
        runs = database.execute("select run_uuid, name, status from runs where lifecycle_stage = 'active'").fetchall()
        jobs = [f"{arm}/seed{seed}" for arm in ARMS for seed in SEEDS]
        assert sorted(name for _, name, _ in runs) == sorted([*jobs, "report"])
        assert {status for _, _, status in runs} == {"FINISHED"}
        experiments = {name for (name,) in database.execute("select name from experiments")}
        assert "smoke" in experiments
        for run_id, name in ((run_id, name) for run_id, name, _ in runs if name != "report"):
            arm, seed = name.split("/")
            run = house / f"results/smoke/arithmetic/arithmetic_tiny/{arm}/{seed}"
            query = "select key, step, value from metrics where run_uuid = ? and key not like 'evaluation/%'"
            assert sorted(database.execute(query, (run_id,))) == expected(run), (
                "MLflow's metrics are those of metrics.jsonl"
            )
            logged = {
                key for (key,) in database.execute("select distinct key from metrics where run_uuid = ?", (run_id,))
            }
            assert "evaluation/test/accuracy" in logged
            tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)).fetchall())
            assert tags["method"] == arm
            assert len(tags["config_hash"]) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grid=smok"], "alp: error: unknown grid 'smok'; did you mean 'smoke'?"),
        (
            ["grid=smoke", "cores=2"],
            "alp: error: --config: unknown key 'cores'; choose from devices_per_node, grid, results, share",
        ),
        (["grid=smoke", "share=nein"], "alp: error: --config: share is true or false, not 'nein'"),
    ],
)
def test_a_wrong_grid_is_one_line_and_exit_code_2(house: Path, words: list[str], message: str) -> None:
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--config", *words]
    done = subprocess.run(command, cwd=house, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def _verify(house: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alp.cli", "verify", "results/smoke/manifest.json"]
    return subprocess.run(
        command, cwd=house, env=os.environ | {"PYTHONPATH": str(house)}, capture_output=True, text=True
    )


def test_the_numbers_are_those_of_the_kept_reference(house: Path) -> None:
    """Where they are not, numbers have moved, and the references of docs/reference/ are of earlier ones."""
    kind = processor()["kind"]
    path = ROOT / "docs" / "reference" / f"smoke.{kind}.json"
    if not path.is_file():
        pytest.skip(f"docs/reference has no smoke grid of this kind of processor, {kind}")
    kept = reference.read("reference", path)
    files = json.loads((house / "results/smoke/manifest.json").read_text(encoding="utf-8"))["files"]
    found = reference.digests({name: entry["sha256"] for name, entry in files.items()})
    assert reference.differing_jobs(kept, found) == [], (
        f"numbers have moved since {kept.commit}: should they, build and write those of docs/reference/ anew"
    )


def test_a_mistake_that_a_job_finds_is_on_the_screen(house: Path, tmp_path: Path) -> None:
    """The log that holds it is one of many, and its line would otherwise be read by nobody; a log of an earlier start
    is silent."""
    logs = house / "results" / "faulty" / "logs"
    with claimed(logs.parent, "grid", {"identity": "faulty"}, outputs=["logs/"]):
        logs.mkdir()
        (logs / "old.log").write_text("alp: error: mended since\n")
    grid = tmp_path / "faulty.yaml"
    words = [f"task.train=[{{path: '{tmp_path}/none.jsonl'}}]", "task.test={}"]
    grid.write_text(
        "title: t\ndescription: d\ntask: mathematics\nmodel: smollm2_135m\nseeds: [0]\narms: [{method: grpo}]\n"
        f"overrides: {{task: {json.dumps(words)}}}\n"
    )
    done = _snakemake(house, "results/faulty/mathematics/data/summary.json", "--retries", "0", grid=str(grid))
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "alp: error:" in line]
    assert len(said) == 1
    assert said[0].startswith("results/faulty/logs/prepare.log: alp: error: task.train.0.path: no file")


def test_the_manifest_lists_every_result_and_verify_names_what_differs(house: Path) -> None:
    manifest = json.loads((house / "results/smoke/manifest.json").read_text(encoding="utf-8"))
    listed = set(manifest["files"])
    built = {
        path.relative_to(house / "results/smoke").as_posix()
        for path in (house / "results/smoke").rglob("*")
        if path.is_file()
    }
    apart = {
        name
        for name in built - listed
        if not name.startswith("logs/") and "timings.jsonl" not in name and ".alp/" not in name
    }
    assert apart == {"manifest.json", "manifest_values.json", "mlflow.json"}
    assert listed <= built
    done = _verify(house)
    assert (done.returncode, done.stdout) == (
        0,
        f"{len(listed)} files of smoke compared: 0 differing files, 0 missing\n",
    )

    path = _runs(house)[0] / "metrics.jsonl"
    content = path.read_bytes()
    place = content.index(b'"reward/mean": 0.') + len('"reward/mean": 0.')
    path.write_bytes(content[:place] + (b"7" if content[place : place + 1] != b"7" else b"3") + content[place + 1 :])
    try:
        done = _verify(house)
    finally:
        path.write_bytes(content)
    assert done.returncode == 1
    assert (
        "differs  arithmetic/arithmetic_tiny/grpo/seed0/metrics.jsonl: differing entries: 1, 1 of them numbers"
        in done.stdout
    )
    assert re.search(r"line \d: reward/mean: 0\.\d+ there, 0\.\d+ here", done.stdout)
    assert "1 differing files, 0 missing" in done.stdout


def _alp(house: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alp.cli", *words]
    known = os.environ | {"PYTHONPATH": str(house)} | environment
    return subprocess.run(command, cwd=house, env=known, capture_output=True, text=True, encoding="utf-8")


@pytest.fixture(scope="module")
def committed(house: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The house as a checkout with everything committed, and the reference of its smoke grid."""
    copy = tmp_path_factory.mktemp("committed") / "house"
    shutil.copytree(house, copy, symlinks=True)
    (copy / ".gitignore").write_text("/results/\n/.snakemake/\n__pycache__/\n", encoding="utf-8")
    identity = ("-c", "user.name=x", "-c", "user.email=x@y", "-c", "commit.gpgsign=false")
    for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-qm", "x")):
        subprocess.run(["git", *words], cwd=copy, check=True)
    done = _alp(copy, "manifest", "grid=smoke", "reference=docs/reference")
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("docs/reference/smoke.")
    return copy


def test_a_build_reproduces_the_reference_that_was_written_from_it(committed: Path) -> None:
    done = _alp(committed, "verify", "docs/reference", "results/smoke")
    assert (done.returncode, "every byte is that of the reference of commit" in done.stdout) == (0, True), done.stdout
    assert "report" in _planned(committed), "the page is made again, to say so"
    assert _alp(committed, "report", "grid=smoke").returncode == 0
    page = (committed / "results/smoke/report.html").read_text(encoding="utf-8")
    assert "This build reproduces the reference smoke." in page
    said = (
        "from pathlib import Path; from alp.reporting.reference import FOLDER, stale; print(stale(*FOLDER.iterdir()))"
    )
    code = [sys.executable, "-c", said]
    ask = {"cwd": committed, "env": os.environ | {"PYTHONPATH": str(committed)}, "capture_output": True, "text": True}
    assert subprocess.run(code, **ask).stdout == "[]\n"
    with _edited(committed / "alp/policy/ratio.py", "from __future__ import annotations\n", "EDITED = 1\n"):
        assert subprocess.run(code, **ask).stdout == "['the code of train']\n"
        done = _alp(committed, "manifest", "grid=smoke", "reference=docs/reference")
        assert (done.returncode, "there are uncommitted changes" in done.stderr) == (2, True)


@pytest.mark.long
def test_the_same_commit_under_other_instructions_concludes_the_same(committed: Path) -> None:
    """Torch and its libraries held down to AVX2: every number is another, as on another kind of processor."""
    held = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "grid=smoke", "results=other"]
    done = subprocess.run(command, cwd=committed, env=os.environ | held, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    here = json.loads((committed / "other/smoke/manifest.json").read_text(encoding="utf-8"))
    there = json.loads((committed / "results/smoke/manifest.json").read_text(encoding="utf-8"))
    if here["processor"]["kind"] == there["processor"]["kind"]:
        pytest.skip("this processor has no instructions beyond AVX2 to hold torch from")
    assert here["numbers"] != there["numbers"]
    for named in ("results/smoke/manifest.json", "docs/reference"):
        done = _alp(committed, "verify", named, "other/smoke")
        assert done.returncode == 0, done.stdout
        assert "which is another draw of the seeds; conclusions are compared, not bytes" in done.stdout
        assert done.stdout.endswith("no conclusion differs\n")


@pytest.mark.long
def test_results_without_marks_are_kept(house: Path, tmp_path: Path) -> None:
    """Those of a version that left none: refused before a rule runs (Snakemake would delete its outputs first), with
    how to keep them."""
    copy = tmp_path / "house"
    shutil.copytree(house, copy, symlinks=True)
    for folder in list((copy / "results").rglob(".alp")):
        shutil.rmtree(folder)
    plant(copy / "results" / "smoke" / "mine")
    before = snapshot(copy / "results")
    for words in ([], ["--forceall"], ["--dry-run"]):
        done = _snakemake(copy, *words)
        assert done.returncode == 2
        said = done.stderr.splitlines()[-1]
        assert said.startswith("alp: error: --config results: results/smoke holds ")
        assert said.endswith("to keep what is there move it, or build elsewhere: --config results=<another folder>")
    assert snapshot(copy / "results") == before


@pytest.mark.long
def test_an_edited_method_replaces_its_own_results_alone(house: Path, tmp_path: Path) -> None:
    copy = tmp_path / "house"
    shutil.copytree(house, copy, symlinks=True)
    run, other = _runs(copy)[-1], _runs(copy)[0]
    plant(run / "mine")
    (run / "model" / "notes.txt").write_text("a user's")
    mine, kept = snapshot(run / "mine"), snapshot(other)
    before = {name: (run / name).read_bytes() for name in ("metrics.jsonl", "model/model.safetensors")}
    target = str((run / "evaluation" / "test.json").relative_to(copy))
    with _edited(copy / "configs/method/seq_alp.yaml", "perturbation: {}", "perturbation: {std: 0.03}"):
        done = _snakemake(copy, target)
        assert done.returncode == 0, done.stderr[-3000:]
        by_hand = (copy / "results/smoke/logs/train/seq_alp_seed1.log").read_text(encoding="utf-8").splitlines()[0]
    assert all((run / name).read_bytes() != content for name, content in before.items())
    assert read_mark(run, "train")["state"] == read_mark(run, "evaluate.test")["state"] == "finished"  # type: ignore[index]
    assert snapshot(run / "mine") == mine
    assert (run / "model" / "notes.txt").read_text(encoding="utf-8") == "a user's"
    assert snapshot(other) == kept
    # By hand, without the word that the rules say, the results of the edited method would not have been touched.
    words = [word for word in shlex.split(by_hand)[1:] if word != "run.replace=true"]
    command = [sys.executable, "-m", "alp.cli", *words]
    done = subprocess.run(command, cwd=copy, env=os.environ | {"PYTHONPATH": str(copy)}, capture_output=True, text=True)
    assert done.returncode == 2
    assert "another identity (method.perturbation.std: 0.03 there, 0.02 here); name another: run.dir=" in done.stderr


@pytest.mark.long
def test_a_second_grid_takes_over_what_the_first_made(house: Path, tmp_path: Path) -> None:
    """Data, base model, training and evaluation; and whether that is allowed is no reason to make them again."""
    copy = tmp_path / "house"
    shutil.copytree(house, copy, symlinks=True)
    shutil.copy(copy / "configs/grid/smoke.yaml", copy / "twin.yaml")
    there = _runs(copy)[-1]
    here = copy / "results/twin" / there.relative_to(copy / "results/smoke")
    target = str((here / "evaluation/test.json").relative_to(copy))
    done = _snakemake(copy, target, grid="twin.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("prepare", "pretrain", "train/seq_alp_seed1", "evaluate/seq_alp_seed1"):
        log = (copy / f"results/twin/logs/{name}.log").read_text(encoding="utf-8")
        assert "taken over from results/smoke/" in log, name
    files = [path.relative_to(there) for path in there.rglob("*") if path.is_file() and ".alp" not in path.parts]
    differ = {str(name) for name in files if (there / name).read_bytes() != (here / name).read_bytes()}
    assert differ == {"config.yaml"}
    assert "results/smoke" not in (here / "config.yaml").read_text(encoding="utf-8")
    done = _snakemake(copy, target, "--dry-run", grid="twin.yaml", config=("share=false",))
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.long
def test_a_killed_workflow_goes_on_where_it_was(house: Path, tmp_path: Path) -> None:
    """SIGKILL of Snakemake alone in the middle of a training: its job stops too, the lock is cleared, the bytes are the
    same."""
    copy = tmp_path / "house"
    shutil.copytree(house, copy, symlinks=True)
    run = _runs(copy)[0]
    whole = {
        name: (run / name).read_bytes()
        for name in (
            "metrics.jsonl",
            "updates.jsonl",
            "trajectories.jsonl",
            "provenance.json",
            "model/model.safetensors",
        )
    }
    shutil.rmtree(run)
    target = str((run / "metrics.jsonl").relative_to(copy))
    command = [sys.executable, "-m", "snakemake", "--cores", "1", target, "--config", "grid=smoke"]
    process = subprocess.Popen(command, cwd=copy, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step_*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert list((copy / ".snakemake/locks").iterdir()), "it left its lock"
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "continuing" in (copy / "results/smoke/logs/train/grpo_seed0.log").read_text(encoding="utf-8")
    assert {name: (run / name).read_bytes() for name in whole} == whole
