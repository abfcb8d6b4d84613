"""One MLflow run per training job, filled from the files of its folder: the files are the record, MLflow is a view of
them.

Every call compares what the folder holds (formats: docs/results.md) with what MLflow already has and logs the
difference. So a call that fails, a killed job or a second attempt loses nothing and doubles nothing: the next call
catches up. Nothing here stops a training job: failures become one warning line. MLflow is imported only when something
is logged (it takes seconds).

A step that was logged once stays as it is, even if a resumed job that is not deterministic computes it again with other
values.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from alp.configuration import compose
from alp.configuration.grid import Grid
from alp.errors import UserError
from alp.foreign import read_json, read_yaml, reading
from alp.nested import leaves
from alp.ownership import claimed
from alp.reporting import tracking_database, tracking_view
from alp.reporting.arms import build_command
from alp.reproducibility import sha256_file, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Metric, Run

LOG = logging.getLogger("alp.reporting.tracking")
METRICS, PAIRS, KEY, PARAM, TAG = 1000, 100, 250, 6000, 8000  # MLflow's limits: entries in one call, then characters
BEHIND = "MLflow is behind the files of %s, everything else goes on: %s"
PAGES = "alp.report_sha256"  # the tag of the run that holds a grid's pages
_FOREIGN = re.compile(r"[^\w\-. :/]")  # not allowed in MLflow's names


class Identity(TypedDict):
    """What places a folder in MLflow: ``sync(run_dir, uri=uri, finished=None, **describe(run_dir))``."""

    experiment: str
    name: str
    tags: dict[str, str]


def describe(run_dir: Path) -> Identity:
    """Experiment (the grid), run name and tags of a training folder, from its ``config.yaml``. Callers may add tags."""
    chosen = compose.validate("train", read_yaml("run", run_dir / "config.yaml"))
    tags = {
        "method": chosen.method.name,
        "task": chosen.task.name,
        "model": chosen.model.name,
        "seed": str(chosen.trainer.seed),
    }
    arm = chosen.run.arm or chosen.method.name
    tags |= {
        "config_hash": compose.identity(chosen),
        "variant": arm.removeprefix(chosen.method.name).removeprefix("-") or "none",
    }
    if (run_dir / "provenance.json").is_file():  # of the training, not of the moment of logging
        origin = read_json("run", run_dir / "provenance.json")
        with reading("run", run_dir / "provenance.json"):
            tags |= {
                "commit": str(origin["commit"]),
                "dirty": str(origin["dirty"]).lower(),
                "alp.identity": str(origin["identity"]),
            }
    tags |= tracking_view.run_tags(chosen, arm, tags.get("commit"))
    return Identity(experiment=chosen.run.grid or "adhoc", name=f"{arm}/seed{chosen.trainer.seed}", tags=tags)


def sync(
    run_dir: Path, *, uri: str | None, experiment: str, name: str, tags: dict[str, str], finished: bool | None
) -> str | None:
    """Bring the folder's run up to date and return its id; None (and one warning) when that failed, None without a
    ``uri``.

    The run is found by the folder and the training's identity (``tags["alp.identity"]``, else ``tags["config_hash"]``),
    or created. ``finished`` None: still running (a run that was FINISHED stays so), True: FINISHED, False: FAILED; the
    last two also copy the small files as artifacts.
    """
    status = {None: "RUNNING", True: "FINISHED", False: "FAILED"}[finished]
    return _attempt(run_dir, uri, Identity(experiment=experiment, name=name, tags=tags), status)


def sync_evaluation(run_dir: Path, *, uri: str | None) -> str | None:
    """Add ``evaluation/*.json`` to the run of a trained folder and leave its status alone; otherwise like :func:`sync`.

    A folder without a run (MLflow was out of reach during training) gets a FINISHED one with everything the files hold.
    """
    return _attempt(run_dir, uri, None, None)


def track(grid: Grid, results: Path, *, replace: bool = False) -> Path:
    """Bring every run of a finished grid up to date, evaluations too; writes and returns ``mlflow.json`` (run ids by
    folder).

    A run that could not be logged is null there and a warning says so: MLflow is a view, no grid fails for want of it.
    The next call catches up. Raises UserError for a folder whose configuration cannot be read.
    """
    uri = grid.tracking_uri(results)
    ids: dict[str, str | None] = {}
    for arm in grid.arms:
        for seed in grid.seeds:
            folder = grid.run_dir(results, arm.name, seed)
            if not (folder / "config.yaml").is_file():
                raise UserError(f"track: no {folder / 'config.yaml'}: build it with '{build_command(grid)}'")
            with reading("track", folder / "config.yaml"):
                identity = describe(folder)
            logged = sync(folder, uri=uri, finished=True, **identity)
            ids[f"{arm.name}/seed{seed}"] = sync_evaluation(folder, uri=uri) if logged else None
    if any(ids.values()):
        _log_pages(grid, results, uri)
    path = grid.folder(results) / "mlflow.json"
    with claimed(path.parent, "track", grid.origin, outputs=[path.name], key="results", replace=replace, beside=True):
        write_json(path, ids)
    if missing := [name for name, run_id in ids.items() if run_id is None]:
        text = (
            "%d of %d runs could not be logged to %s, the first is %s: null in %s; the same `alp track` logs them later"
        )
        LOG.warning(text, len(missing), len(ids), uri, missing[0], path)
    return path


def _log_pages(grid: Grid, results: Path, uri: str) -> None:
    """The report, tables and figures of a grid as the artifacts of one run beside those of its jobs, again whenever the
    report changed, and the grid's description. Like every call here: a failure is one warning."""
    root = grid.folder(results)
    report = root / "report.html"
    try:
        _import_mlflow()
        from mlflow import MlflowClient

        with tracking_database.exclusive(uri) as database:
            client = MlflowClient(tracking_database.address(database) if database else uri)
            experiment = client.get_experiment(_experiment(client, grid.name, database))
            _tag_experiment(client, experiment, tracking_view.grid_tags(grid))
            if not report.is_file():
                return
            content = sha256_file(report)
            found = client.search_runs([experiment.experiment_id], f"tags.`{PAGES}` != ''", max_results=1)
            if found and found[0].data.tags[PAGES] == content:
                return
            note = {"mlflow.note.content": f"{grid.title}: the report, its tables and figures are the artifacts."}
            run = found[0] if found else client.create_run(experiment.experiment_id, tags=note, run_name="report")
            client.log_artifact(run.info.run_id, str(report))
            for kind in ("tables", "figures"):
                client.log_artifacts(run.info.run_id, str(root / kind), kind)
            client.set_tag(run.info.run_id, PAGES, content)
            client.set_terminated(run.info.run_id, "FINISHED")
    except Exception as error:  # as in _attempt
        LOG.warning(BEHIND, root, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


class Live:
    """Keeps a run current during training, at most every ``interval`` seconds of ``clock``; each call waits for MLflow,
    so it lives in a process of its own (``alp.reporting.live``).

    Make it once the folder holds what a resumed job starts from, call :meth:`step` after every step and :meth:`close`
    at the end, also of a failed one. Repeated failures give one warning until a call succeeds again.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        uri: str | None,
        experiment: str,
        name: str,
        tags: dict[str, str],
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.run_id: str | None = None
        self._run_dir, self._uri = run_dir, uri
        self._identity = Identity(experiment=experiment, name=name, tags=dict(tags))
        self._interval, self._clock = interval, clock
        self._due, self._warned = -math.inf, False
        self.step()

    def step(self) -> None:
        """Log what is new, unless the last call began less than ``interval`` seconds ago."""
        if self._clock() >= self._due:
            self._due = self._clock() + self._interval
            self._log("RUNNING")

    def close(self, finished: bool) -> None:
        """Make the last call, with how the job ended."""
        self._log("FINISHED" if finished else "FAILED")

    def _log(self, status: str) -> None:
        run_id = _attempt(self._run_dir, self._uri, self._identity, status, quiet=self._warned)
        self.run_id, self._warned = run_id or self.run_id, run_id is None


def _attempt(
    run_dir: Path, uri: str | None, identity: Identity | None, status: str | None, quiet: bool = False
) -> str | None:
    try:
        return _sync(run_dir, uri, identity, status) if uri else None
    except Exception as error:  # whatever MLflow, its database or the disk may raise: results never depend on it
        if not quiet:
            LOG.warning(BEHIND, run_dir, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return None


def _sync(run_dir: Path, uri: str, identity: Identity | None, status: str | None) -> str:
    """Log what the run lacks; ``status`` None leaves it, ``identity`` None means :func:`describe`. Raises whatever goes
    wrong."""
    identity = identity or describe(run_dir)
    _import_mlflow()  # seconds, before the lock is taken
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tracking_database.exclusive(uri) as database:
        client = MlflowClient(tracking_database.address(database) if database else uri)
        lines = records(run_dir / "metrics.jsonl")
        tags = _tags(run_dir, identity["tags"], database)
        experiment = _experiment(client, identity["experiment"], database)
        run = _find(client, experiment, tags, lines[-1]["step"] if lines else -1)
        if run is None:
            run = client.create_run(experiment, tags=tags, run_name=identity["name"])
            status = status or "FINISHED"  # an evaluation came first: training is over
        run_id = str(run.info.run_id)
        _log_pairs(client, run, run_dir / "config.yaml", tags)
        for batch in _batches(run, lines, _numbers(evaluated(run_dir / "evaluation"))):
            client.log_batch(run_id, metrics=batch)
        if status == "RUNNING" and run.info.status == "FAILED":  # a second attempt
            client.update_run(run_id, status=status)
        elif status in ("FINISHED", "FAILED") and run.info.status != status:
            client.set_terminated(run_id, status)
        if (
            status != "RUNNING"
        ):  # not by the client, which remembers for a whole process where a run's artifacts once lay
            store = get_artifact_repository(str(run.info.artifact_uri), tracking_uri=client.tracking_uri)
            for path in filter(
                Path.is_file, (run_dir / "config.yaml", run_dir / "active.json", *run_dir.glob("evaluation/*.json"))
            ):
                store.log_artifact(str(path), None if path.parent == run_dir else "evaluation")
    return run_id


def _import_mlflow() -> None:
    for name in ("DISABLE_TELEMETRY", "SUPPRESS_PRINTING_URL_TO_STDOUT"):
        os.environ.setdefault(f"MLFLOW_{name}", "true")
    for name, value in (("MAX_RETRIES", "2"), ("TIMEOUT", "20")):  # a server that is down costs seconds, not minutes
        os.environ.setdefault(f"MLFLOW_HTTP_REQUEST_{name}", value)
    os.environ.setdefault(
        "MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool"
    )  # a pool would go on with a database that was replaced
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - the first client would import it later, with the lock held

    for name in ("mlflow", "alembic"):  # progress of migrations, tracebacks of errors that are reported here
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _experiment(client: MlflowClient, name: str, database: Path | None) -> str:
    """Id of the experiment, made or brought back from the bin if need be. Artifacts lie beside the database."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            place = (database.parent / tracking_database.ARTIFACTS).as_uri() if database else None
            return str(client.create_experiment(name, place, tags=tracking_view.experiment_tags()))
        except MlflowException:  # another writer (the UI, another job through a server) was faster
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    _tag_experiment(client, experiment, tracking_view.experiment_tags())
    return str(experiment.experiment_id)


def _tag_experiment(client: MlflowClient, experiment: Experiment, tags: dict[str, str]) -> None:
    for key, value in tags.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)


def _find(client: MlflowClient, experiment: str, tags: dict[str, str], last: int) -> Run | None:
    """The newest run of this configuration in this folder, unless it is FINISHED with more steps than the folder holds.

    Then it belongs to an earlier training (the code changed, the workflow started over) and its steps cannot be
    replaced.
    """
    query = f"tags.`alp.identity` = '{tags['alp.identity']}'"
    for run in client.search_runs([experiment], query, max_results=1000, order_by=["attributes.start_time DESC"]):
        if run.data.tags.get("alp.run_dir") == tags["alp.run_dir"]:
            return None if run.info.status == "FINISHED" and run.data.metrics.get("step", -1) > last else run
    return None


def _tags(run_dir: Path, tags: dict[str, str], database: Path | None) -> dict[str, str]:
    """The caller's tags, the two that find the run again, and what was really active.

    Folders below the database's are named relative to it, so that a results tree can move.
    """
    folder, root = run_dir.resolve(), database.parent.resolve() if database else None
    named = folder.relative_to(root) if root and folder.is_relative_to(root) else folder
    complete = {"alp.identity": tags["config_hash"]} | tags
    complete["alp.run_dir"] = named.as_posix()
    active = run_dir / "active.json"
    if active.is_file():
        complete["alp.active"] = json.dumps(read_json("run", active), sort_keys=True)
    return {key: value[:TAG] for key, value in complete.items()}


def _params(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A configuration under dotted keys, cut to what MLflow takes; a list is one value."""
    for key, value in leaves(config):
        yield _FOREIGN.sub("_", key)[:KEY], (value if isinstance(value, str) else json.dumps(value))[:PARAM]


def _log_pairs(client: MlflowClient, run: Run, path: Path, tags: dict[str, str]) -> None:
    """Params of the configuration that are not there yet (they can never change) and tags that differ."""
    from mlflow.entities import Param, RunTag

    params = _params(read_yaml("run", path)) if path.is_file() else ()
    new = [Param(key, value) for key, value in params if key not in run.data.params]
    for start in range(0, len(new), PAIRS):
        client.log_batch(run.info.run_id, params=new[start : start + PAIRS])
    if changed := [RunTag(key, value) for key, value in tags.items() if run.data.tags.get(key) != value]:
        client.log_batch(run.info.run_id, tags=changed)


def records(path: Path) -> list[dict[str, Any]]:
    """Complete lines: the trainer may be writing the last one."""
    content = path.read_bytes() if path.is_file() else b""
    return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


def evaluated(folder: Path) -> dict[str, Any]:
    """The headline figures of every evaluation, by metric name."""
    by_name: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        result = read_json("run", path)
        figures = {"accuracy": result.get("accuracy"), "greedy": result.get("greedy")}
        figures |= {f"pass_at_{k}": value for k, value in (result.get("pass_at_k") or {}).items()}
        by_name |= {f"evaluation/{path.stem}/{key}": value for key, value in figures.items()}
    return by_name


def _numbers(record: dict[str, Any]) -> dict[str, float]:
    """Finite numbers under names MLflow accepts; null, NaN and infinities are left out."""
    plain = (
        (key, value) for key, value in record.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    named = tracking_view.metric_name
    return {_FOREIGN.sub("_", named(key))[:KEY]: float(value) for key, value in plain if math.isfinite(value)}


def _batches(run: Run, records: list[dict[str, Any]], figures: dict[str, float]) -> Iterator[list[Metric]]:
    """Metrics the run lacks. A call is one transaction and holds whole steps, so the greatest "step" tells what is
    there."""
    from mlflow.entities import Metric

    now, logged = int(time.time() * 1000), run.data.metrics.get("step", -1)
    batch = [Metric(key, value, now, 0) for key, value in figures.items() if run.data.metrics.get(key) != value]
    for record in records:
        line = (
            [Metric(key, value, now, record["step"]) for key, value in _numbers(record).items()]
            if record["step"] > logged
            else []
        )
        if len(batch) + len(line) > METRICS:
            yield batch
            batch = []
        batch += line
    if batch:
        yield batch
