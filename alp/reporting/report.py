"""One self-contained page per grid: results/<grid>/report.html. Tables and figures come from disk as they are; nothing
is computed anew.

No scripts, no external references, no clock and no host name: the same results and code give the same bytes.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from alp import reproducibility
from alp.configuration.grid import Grid
from alp.foreign import reading
from alp.ownership import claimed
from alp.reporting import mismatch, records, runs
from alp.reporting.runs import Results

CAPTIONS = Path(__file__).resolve().parents[2] / "workflow" / "report"
TITLES = {
    "accuracy": "Accuracy",
    "sets": "Evaluation sets",
    "validation": "Validation accuracy during training",
    "pass_at_k": "pass@k",
    "dynamics": "Training dynamics",
    "length": "Response length",
    "limit": "Responses cut at the length limit",
    "ratio_quantiles": "Ratio quantiles during training",
    "tails": "Ratio tails",
    "envelope": "Ratio envelope",
    "mismatch": "Engines compared",
    "sigma": "Learned noise per layer",
    "main": "Main table",
    "controls": "Controls",
    "ratio_tails": "Ratio tails",
    "leakage": "Evaluation problems in the training set",
}
_TABLES_BELOW = ("sets", "mismatch", "controls", "ratio_tails", "pass_at_k")
Row = dict[str, str]


@dataclass(frozen=True)
class Shown:
    """A figure or table of the page: ``content`` is a data URI or finished HTML."""

    name: str
    title: str
    caption: str
    content: str


def report(grid: Grid, results: Path, *, replace: bool = False) -> None:
    """Write the page. Raises :class:`UserError` when a table, a figure or a run is missing."""
    loaded = runs.load(grid, results)
    folder = grid.folder(results)
    names = runs.table_names(grid)
    tables = {name: _table(grid, results, name) for name in names}
    origins = _origins(loaded)
    page = (
        environment(Path(__file__).parent)
        .get_template("report.html.j2")
        .render(
            grid=grid,
            headline=headline(loaded, {name: _rows(grid, results, name) for name in names}),
            main=tables["main"],
            figures=[_figure(grid, results, name) for name in runs.figure_names(grid)],
            tables=[
                *(tables[name] for name in _TABLES_BELOW if name in tables),
                _leakage(grid, results),
            ],
            setting_names=SETTINGS,
            settings=[_settings(loaded, arm.name, arm.runs[0].folder) for arm in loaded.arms],
            provenance=_distinct(origins),
            origins=origins,
            base_identity=loaded.base.config_hash,
        )
    )
    with claimed(folder, "report", grid.origin, outputs=["report.html"], key="results", beside=True, replace=replace):
        reproducibility.write_text(folder / "report.html", page)


def environment(folder: Path) -> jinja2.Environment:
    """Of the templates in ``folder``: escaped, no undefined names."""
    loader = jinja2.FileSystemLoader(folder)
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


# ---- tables and figures ----------------------------------------------------------------------------------------------


def _command(verb: str, grid: Grid, results: Path) -> str:
    return f"alp {verb} {runs.named(grid)} results={results}"


def _caption(name: str) -> str:
    return " ".join(records.read_text(CAPTIONS / f"{name}.rst", "git checkout workflow/report").split())


def _figure(grid: Grid, results: Path, name: str) -> Shown:
    text = records.read_text(grid.folder(results) / "figures" / f"{name}.svg", _command("figures", grid, results))
    # an <img> is a document of its own: ids of different figures cannot meet, as they would inline
    encoded = base64.b64encode(text.encode()).decode()
    return Shown(name, TITLES[name], _caption(name), f"data:image/svg+xml;base64,{encoded}")


def _table(grid: Grid, results: Path, name: str) -> Shown:
    path = grid.folder(results) / "tables" / f"{name}.md"
    text = records.read_text(path, _command("aggregate", grid, results))
    with reading("results", path):
        return Shown(name, TITLES[name], _caption(name), markdown_table(text))


def _leakage(grid: Grid, results: Path) -> Shown:
    """How much of the evaluation sets stands in the training set, as `alp prepare` found it."""
    path = grid.data_dir(results) / "leakage.md"
    text = records.read_text(path, shlex.join(["alp", "prepare", *grid.overrides("prepare", results)]))
    with reading("results", path):
        return Shown("leakage", TITLES["leakage"], _caption("leakage"), markdown_table(text))


def _rows(grid: Grid, results: Path, name: str) -> list[Row]:
    text = records.read_text(grid.folder(results) / "tables" / f"{name}.csv", _command("aggregate", grid, results))
    return list(csv.DictReader(io.StringIO(text)))


def markdown_table(text: str) -> str:
    """A pipe table as HTML; a rule of ``---:`` aligns right, ``**x**`` is bold, everything else is plain text."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line.strip()
    ]
    header, rule, body = lines[0], lines[1], lines[2:]
    kinds = ["number" if mark.endswith(":") else "text" for mark in rule]

    def cells(tag: str, values: list[str]) -> str:
        inner = (re.sub(r"^\*\*(.*)\*\*$", r"<strong>\1</strong>", html.escape(value)) for value in values)
        return "".join(f'<{tag} class="{kind}">{value}</{tag}>' for kind, value in zip(kinds, inner, strict=True))

    rows = "".join(f"<tr>{cells('td', values)}</tr>\n" for values in body)
    if not body:
        rows = f'<tr><td colspan="{len(header)}">nothing to compare in this grid</td></tr>\n'
    return f"<table>\n<thead><tr>{cells('th', header)}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>"


# ---- findings --------------------------------------------------------------------------------------------------------


def headline(loaded: Results, tables: Mapping[str, list[Row]]) -> list[str]:
    """What was run and what was measured, one sentence each, straight from the tables: no finding is left out for its
    sign."""
    grid, main = loaded.grid, {row["method"]: row for row in tables["main"]}
    seeds, base = len(grid.seeds), main[runs.BASE]
    best = max((row for name, row in main.items() if name != runs.BASE), key=lambda row: float(row["accuracy_mean"]))
    sentences = [
        (
            f"{len(grid.arms)} arms × {seeds} {'seed' if seeds == 1 else 'seeds'} on the task {grid.task} with the"
            f" model {grid.model}; every model answered the same {loaded.base.problems} test problems"
            f" {loaded.base.samples} times at T = 1.{_averaged(loaded)}"
        ),
        (
            f"Highest mean accuracy: {runs.label(best['method'])}, {_share(best, 'accuracy')}; base model"
            f" {_share(base, 'accuracy')}."
        ),
    ]
    alp = [arm.name for arm in loaded.arms if arm.method.perturbation is not None and not runs.is_control(arm.arm)]
    for name in alp:
        if main[name]["difference_to_grpo"]:
            sentences.append(f"{runs.label(name)} minus GRPO: {_gap(main[name], 'difference_to_grpo', 'difference')}.")
    sentences += mismatch.sentences(tables.get("mismatch", []))
    controlled = [row for row in tables["controls"] if row["changed"] == "noise"]
    for row in controlled:
        against = f"{runs.label(row['method'])} minus {runs.label(row['control'])}, which differs in the noise alone"
        sentences.append(f"{against}: {_gap(row, 'difference', 'difference')}.")
    missing = [runs.label(name) for name in alp if name not in {row["method"] for row in controlled}]
    if missing:
        sentences.append(
            "No control for the noise alone in this grid: nothing here can be ascribed to the noise of"
            f" {', '.join(missing)}."
        )
    for row in tables["ratio_tails"]:
        arm = loaded.find(row["method"])
        if arm and arm.name in alp and arm.ratio_level == row["level"] and row["width_reduction"]:
            change = 100 * float(row["width_reduction"])
            words = (
                f"{abs(change):.0f} % {'narrower' if change >= 0 else 'wider'} than {runs.label(row['reference'])}'s"
            )
            sentences.append(
                f"{runs.label(arm.name)}: log-ratio tails (0.1 % to 99.9 %, {row['level']} level) {words}."
            )
    sentences.append(
        f"Brackets hold 95 % intervals of the hierarchical bootstrap over {seeds} {'seed' if seeds == 1 else 'seeds'}"
        f" and {loaded.base.problems} problems; few seeds make them too narrow, and they are not corrected for the"
        " number of comparisons."
    )
    return sentences


def _averaged(loaded: Results) -> str:
    """How several evaluation sets count; nothing to say of one."""
    if len(loaded.sets) == 1:
        return ""
    sizes = ", ".join(f"{name} ({place.stop - place.start} problems)" for name, place in loaded.sets.items())
    return f" Accuracies are the plain mean over {len(loaded.sets)} evaluation sets: {sizes}."


def _share(row: Row, name: str) -> str:
    mean, low, high = (100 * float(row[f"{name}_{part}"]) for part in ("mean", "low", "high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def _gap(row: Row, mean: str, ends: str) -> str:
    low, high = float(row[f"{ends}_low"]), float(row[f"{ends}_high"])
    verdict = "includes" if low <= 0 <= high else "excludes"
    return f"{_points(float(row[mean]))} points [{_points(low)}, {_points(high)}]; the interval {verdict} zero"


def _points(fraction: float) -> str:
    """Signed, one digit, as the tables print it."""
    text = f"{100 * fraction:+.1f}"
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


# ---- settings and provenance -----------------------------------------------------------------------------------------

SETTINGS = (
    "Numerator",
    "Denominator",
    "Level",
    "Clip range",
    "Dual clip",
    "Correction",
    "Noise",
    "Rollout",
    "Training",
)


def _settings(loaded: Results, name: str, folder: Path) -> list[str]:
    """What was active in the arm's first seed, by its own record: name and one cell per entry of ``SETTINGS``."""
    path = folder / "active.json"
    active = records.read_json(path, runs.build_command(loaded.grid))
    with reading("results", path):
        return [runs.label(name), *_cells(active)]


def _cells(active: dict[str, Any]) -> list[str]:
    low, high = active.get("clip_low"), active.get("clip_high")
    clip = f"[{1 - low:.6g}, {1 + high:.6g}]" if low is not None and high is not None else None
    cells = [active.get(key) for key in ("numerator", "denominator", "level")]
    cells += [clip, active.get("dual_clip"), _correction(active.get("correction")), _noise(active.get("perturbation"))]
    cells += [_rollout(active), active.get("train_dtype")]
    return ["–" if cell in (None, "") else f"{cell:g}" if isinstance(cell, float) else str(cell) for cell in cells]


def _rollout(active: dict[str, Any]) -> str:
    words = [str(active[key]) for key in ("engine", "rollout_dtype") if active.get(key) is not None]
    words += ["quantised weights"] if active.get("quantised_weights") else []
    words += [f"weight noise {active['weight_noise']:g}"] if active.get("weight_noise") else []
    return ", ".join(words)


def _correction(value: Any) -> str:
    if not isinstance(value, Mapping):
        return str(value or "none")
    if value.get("kind", "none") == "none":
        return "none" if value.get("veto") is None else f"veto below {value['veto']:g}"
    low, high = value.get("lower"), value.get("upper")
    bounds = f"at {high:g}" if low is None else f"to [{low:g}, {high:g}]"
    veto = "" if value.get("veto") is None else f", veto below {value['veto']:g}"
    return f"{value['kind']} per {value.get('level', '?')} {bounds}{veto}"


def _noise(value: Any) -> str:
    if not isinstance(value, Mapping) or value.get("hooks") == 0 or not value.get("std"):
        return "none"
    return (
        f"σ₀ = {value['std']:g}, {'learned' if value.get('learnable') else 'fixed'}, layers"
        f" {_layers(value.get('layers'))}"
    )


def _layers(value: Any) -> str:
    """``0–27`` for a band of layers, else what was recorded."""
    if not isinstance(value, list):
        return str(value)
    if len(value) > 2 and all(isinstance(one, int) for one in value) and value == list(range(value[0], value[-1] + 1)):
        return f"{value[0]}–{value[-1]}"
    return ", ".join(map(str, value))


def _origins(loaded: Results) -> list[tuple[str, int, dict[str, Any]]]:
    """Arm, seed and ``provenance.json`` of every run: what each was really trained with, whatever is checked out
    now."""
    every = (run for arm in loaded.arms for run in arm.runs)
    return [
        (runs.label(run.arm), run.seed, records.read_json(run.folder / "provenance.json", run.rebuild)) for run in every
    ]


def _distinct(origins: list[tuple[str, int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """The states of code and environment the runs come from, usually one, with the number of runs of each."""
    shared = ("commit", "dirty", "lock", "lock_sha256", "versions")
    found: dict[str, dict[str, Any]] = {}
    for _, _, origin in origins:
        state = {key: origin.get(key) for key in shared}
        entry = found.setdefault(json.dumps(state, sort_keys=True), state | {"runs": 0})
        entry["runs"] += 1
    return list(found.values())
