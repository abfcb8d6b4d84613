"""Every verb killed again and again beside a user's files: an undisturbed run's results, no temporary file, nothing
else touched."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.marks import marks
from alp.ownership import claimed
from alp.reporting.manifest import outputs
from tests.canary import plant, snapshot
from tests.conftest import TINY_MODEL, TINY_TASK
from tests.faults import jobs
from tests.faults.conftest import ALL, Ledger
from tests.reporting.conftest import GRID, fabricate, write_grid
from tests.reporting.test_tracking import history
from tests.wheels import only_from, package_words, write_gguf, write_wheel

_AT_LINES, _AT_MOMENTS = (8, 3) if ALL else (1, 0)
Words = Callable[[Path], list[str]]
Results = dict[str, str | None]


class Case:
    """A verb, its words for a place, and the folder there that it writes."""

    def __init__(
        self,
        verb: str,
        words: Words,
        run: str,
        before: Callable[[Path], object] = bool,
        *,
        results: Callable[[Path], Results] | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.verb, self.words, self.run, self.before = verb, words, run, before
        self.results, self.environment = results or _results, environment or {}

    def fault(self, then: jobs.Fault | None = None) -> jobs.Fault:
        """What the job's process does first: it takes the environment, then comes the fault."""
        return jobs.InEnvironment(self.environment, then)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Grid, Path]:
    """A small grid whose runs are there, and a file of whatever else a manifest lists."""
    root = tmp_path_factory.mktemp("built")
    grid, results = fabricate(write_grid(root, GRID), root / "results", steps=3)
    return grid, results


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `alp fetch` is to find."""
    pytest.importorskip("gguf", reason="the smol extra reads GGUF files")
    folder = tmp_path_factory.mktemp("wheels")
    write_gguf(folder / "tiny.gguf")
    return write_wheel(folder, folder / "tiny.gguf")


def _complete(grid: Grid, results: Path) -> None:
    """Something in the place of every file that the manifest names."""
    while True:
        try:
            outputs(grid, results)
            return
        except UserError as missing:
            path = Path(str(missing).removeprefix("manifest: ").partition(" is missing")[0])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}\n", encoding="utf-8")


def _dump(place: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: -rng.random((4, 6)) for name in ("old_log_probs", "rollout_log_probs")}
    np.savez(place / "dump.npz", **arrays, response_mask=np.ones((4, 6)))


def _cases(base_model: Path, built: tuple[Grid, Path], wheel: Path) -> dict[str, Case]:
    grid, results = built

    def grid_words(place: Path) -> list[str]:
        return [f"grid='{results.parent / 'tiny.yaml'}'", f"results='{place}/results'"]

    def copy(place: Path) -> None:
        shutil.copytree(results, place / "results", dirs_exist_ok=True)

    def whole(place: Path) -> None:
        copy(place)
        _complete(grid, place / "results")

    def pages(place: Path) -> None:
        copy(place)
        assert jobs.train(grid_words(place), None, verb="aggregate") == 0
        assert jobs.train(grid_words(place), None, verb="figures") == 0

    tiny = [*TINY_TASK, *TINY_MODEL, "pretrain.steps=20", "pretrain.batch=8"]
    scored = [
        *TINY_TASK,
        f"model.path='{base_model}'",
        "evaluation.samples=2",
        "evaluation.batch_size=4",
        "evaluation.device=cpu",
    ]
    measured = [*TINY_TASK, f"model.path='{base_model}'", "noise.problems=4", "noise.draws=2", "noise.device=cpu"]
    return {
        "prepare": Case("prepare", lambda place: [*TINY_TASK, f"run.dir='{place}/run'"], "run"),
        "pretrain": Case("pretrain", lambda place: [*tiny, f"run.dir='{place}/run'"], "run"),
        "evaluate": Case("evaluate", lambda place: [*scored, f"run.dir='{place}/run'"], "run"),
        "diagnose": Case(
            "diagnose", lambda place: [f"input='{place}/dump.npz'", f"output='{place}/run'"], "run", _dump
        ),
        "noise": Case("noise", lambda place: [*measured, f"output='{place}/run'"], "run"),
        "aggregate": Case("aggregate", grid_words, "results", copy),
        "figures": Case("figures", grid_words, "results", copy),
        "report": Case("report", grid_words, "results", pages),
        "manifest": Case("manifest", grid_words, "results", whole),
        "track": Case("track", grid_words, "results", copy, results=_tracked),
        "fetch": Case(
            "fetch",
            lambda place: [*package_words(wheel), f"run.dir='{place}/run'"],
            "run",
            environment=only_from(wheel),
        ),
    }


VERBS = ("evaluate", "fetch", "manifest")
OTHERS = ("prepare", "pretrain", "diagnose", "noise", "aggregate", "figures", "report", "track")


def _tracked(results: Path) -> Results:
    """What MLflow holds of each run that ``mlflow.json`` names; ids and clocks are of the day."""
    database = results / "mlflow.db"
    logged = {
        f"{path.relative_to(results)}: {run}": str(history(database, run_id))
        for path in results.glob("*/mlflow.json")
        for run, run_id in json.loads(path.read_text(encoding="utf-8")).items()
    }
    files = {name: value for name, value in _results(results / "tiny").items() if name != "mlflow.json"}
    return {**files, **logged}


def _results(folder: Path) -> Results:
    """Everything below the folder but marks and times."""
    found = {
        name: value
        for name, value in snapshot(folder).items()
        if ".alp" not in Path(name).parts and "timings.jsonl" not in name
    }
    for name in found:
        if Path(name).name == "config.yaml":  # it names the folder
            found[name] = (folder / name).read_text(encoding="utf-8").replace(str(folder), "")
    return dict(found)


@pytest.mark.parametrize("verb", [*VERBS, *(pytest.param(verb, marks=pytest.mark.long) for verb in OTHERS)])
def test_killed_anywhere(
    verb: str, base_model: Path, built: tuple[Grid, Path], wheel: Path, tmp_path: Path, ledger: Ledger
) -> None:
    case, dice = _cases(base_model, built, wheel)[verb], random.Random(verb)
    places = {name: tmp_path / name for name in ("whole", "killed")}
    for place in places.values():
        place.mkdir()
        case.before(place)
    counted = tmp_path / "lines"
    assert jobs.train(case.words(places["whole"]), tmp_path / "log", case.fault(jobs.CountLines(counted)), verb) == 0, (
        tmp_path / "log"
    ).read_text()
    total, whole = int(counted.read_text(encoding="utf-8")), case.results(places["whole"] / case.run)
    place, run, log = places["killed"], places["killed"] / case.run, tmp_path / "killed.log"
    plant(place)
    planted = {name: value for name, value in snapshot(place).items() if Path(name).parts[0] != case.run}
    kills = 0
    for attempt in range(_AT_LINES + _AT_MOMENTS):
        if attempt < _AT_LINES:
            code = jobs.train(case.words(place), log, case.fault(jobs.KillAtLine(dice.randrange(1, total + 1))), verb)
        else:
            process = jobs.start(case.words(place), log, case.fault(), verb=verb)
            jobs.kill_later(process, dice.uniform(0.1, 2.0), signal.SIGKILL)
            code = process.exitcode or 0
        assert code in (0, -signal.SIGKILL), log.read_text(encoding="utf-8")[-2000:]
        kills += code != 0
    assert jobs.train(case.words(place), log, case.fault(), verb=verb) == 0, log.read_text(encoding="utf-8")[-2000:]
    ledger.compare(f"alp {verb} killed", {**dict.fromkeys(whole), **case.results(run)}, whole, count=kills)
    assert case.results(run).keys() == whole.keys(), "nothing more than the undisturbed run has"
    assert not [path for path in run.rglob("*") if path.name == "tmp" and ".alp" in path.parts], "no temporary file"
    left = {name: value for name, value in snapshot(place).items() if Path(name).parts[0] != case.run}
    ledger.touched(f"a user's files beside alp {verb}", sum(left.get(name) != value for name, value in planted.items()))
    assert left == planted


def test_a_user_s_files_inside_a_marked_folder(tmp_path: Path, ledger: Ledger) -> None:
    """Put there between two kills: they stay, and the results are what they were to be."""
    words = [*TINY_TASK, *TINY_MODEL, "pretrain.steps=20", "pretrain.batch=8", f"run.dir='{tmp_path}/run'"]
    run, log = tmp_path / "run", tmp_path / "log"
    with claimed(run, "other", {"identity": "x"}, outputs=[]):
        pass
    plant(run, checkout=False)
    planted = {name: value for name, value in snapshot(run).items() if not name.startswith(".alp/")}
    assert jobs.train(words, log, jobs.KillAtLine(60), "pretrain") == -signal.SIGKILL
    assert jobs.train(words, log, verb="pretrain") == 0, log.read_text(encoding="utf-8")[-2000:]
    assert set(marks(run)) == {"other", "pretrain"}
    left = snapshot(run)
    ledger.touched(
        "a user's files inside a run folder", sum(left.get(name) != value for name, value in planted.items())
    )
    assert {name: left.get(name) for name in planted} == planted
