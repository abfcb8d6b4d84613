"""``alp diagnose``: from a file of log-probs to figures, tables and one page (docs/diagnose.md).

Everything is read, checked, computed and drawn beside the folder before the first file of it is touched; files that are
not those of an earlier diagnosis of the same input are never replaced.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from alp import reproducibility
from alp.diagnosis import checking, readers
from alp.diagnosis.diagnosed import Diagnosed
from alp.diagnosis.dumps import Dump
from alp.diagnosis.figures import FIGURES
from alp.diagnosis.findings import findings, notes, verdict
from alp.diagnosis.tables import TABLES
from alp.errors import UserError
from alp.foreign import is_folder, reading, shortened
from alp.ownership import Claim, check
from alp.rendering import plots
from alp.rendering.artefact import forget_stale, paths
from alp.rendering.page import render, shown_figure, shown_table
from alp.rendering.tables import RENDERINGS, Table

if TYPE_CHECKING:
    from alp.diagnosis.rescoring import Scorer

DEFAULT = Path("results") / "diagnose"
KEY = "diagnose: output"
PAGE = "report.html"
OUTPUTS = ("diagnostics.json", PAGE, "tables/*", "figures/*")
TEMPLATE = Path(__file__).parent / "page.html.j2"


def write(
    source: Path,
    output: str | Path | None,
    wanted: dict[str, str],
    *,
    scorer: Scorer | None = None,
    replace: bool = False,
    threads: int = 1,
) -> str:
    """Write the folder; returns its path and a short summary for people. Raises :class:`UserError` for faults of the
    file.

    ``wanted`` maps every field of :data:`alp.diagnosis.dumps.FIELDS` to its name in the file; ``scorer`` gives
    the log-probs of the training code to one without.
    """
    name = source.name or source.resolve().name
    stem = name if is_folder(source) else source.stem
    folder = check(DEFAULT / stem if output is None else output, KEY)
    origin = {"identity": name, "config": {"input": name}}
    claim = Claim(folder, "diagnose", outputs=OUTPUTS, key=KEY, replace=replace)
    claim.compare(origin)
    reproducibility.fix_threads(threads)
    dump, files = _read(source, wanted, scorer)
    diagnosed = Diagnosed.of(dump)
    tables = {artefact.name: artefact.make(diagnosed) for artefact in TABLES if artefact.condition(dump)}
    summary = findings(dump, diagnosed.figures, diagnosed.causes) + notes(dump, wanted, diagnosed.figures)
    told = [verdict(dump, diagnosed.figures, diagnosed.causes), *summary]
    record = {
        **_counts(dump),
        **diagnosed.figures,
        "input/name": name,
        "input/read_as": dump.source,
        "input/sha256": _hash(source, files),
        **({} if scorer is None else {"input/model_sha256": scorer.sha256}),
    }
    with plots.style():
        figures = _drawn(diagnosed)
        with plots.narrow():
            small = {name: plots.svg(figure) for name, figure in _drawn(diagnosed).items()}
        with claim:
            claim.begin(origin)
            with reproducibility.partial_folder(claim.root / "diagnosis") as made:
                page = _write(made / "rest", record, told, tables, figures, small)
                reproducibility.write_text(made / "last" / PAGE, page)
                _install(claim, made, dump)
            claim.finish()
    return "\n".join([str(claim.root), *(f"  {sentence}" for sentence in summary)])


def _drawn(diagnosed: Diagnosed) -> dict[str, Figure]:
    """Every figure that the dump has something for."""
    return {artefact.name: artefact.make(diagnosed) for artefact in FIGURES if artefact.condition(diagnosed.dump)}


def _read(source: Path, wanted: Mapping[str, str], scorer: Scorer | None) -> tuple[Dump, Sequence[Path]]:
    """The checked dump and the files it came from. Raises :class:`UserError` that names the input."""
    name = source.name or source.resolve().name
    with reading("diagnose", name):
        try:
            read = readers.read(source, wanted)
            if scorer is not None:
                scorer.score(read.raw)
            return checking.check(read.raw), read.files
        except UserError as error:
            raise UserError(f"diagnose: {shortened(name)}: {error}") from None


def _hash(source: Path, files: Sequence[Path]) -> str:
    """Of the file; of a folder, over the names and hashes of the files that were read."""
    if list(files) == [source]:
        return reproducibility.sha256_file(source)
    lines = [f"{reproducibility.sha256_file(path)}  {path.relative_to(source).as_posix()}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _counts(dump: Dump) -> dict[str, int]:
    counts = {
        "count/sequences": dump.total,
        "count/valid_sequences": len(dump.lengths),
        "count/valid_tokens": int(dump.lengths.sum()),
    }
    return counts if dump.steps is None else {**counts, "count/steps": len(np.unique(dump.steps))}


def _plain(value: Any) -> Any:
    """JSON has no word for infinities: a divergence that overflows is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(
    folder: Path,
    record: dict[str, Any],
    summary: Sequence[str],
    tables: Mapping[str, Table],
    figures: Mapping[str, Figure],
    small: Mapping[str, str],
) -> str:
    """Every file of a diagnosis but the page, which is returned, in the dress of a grid's report. ``summary``: the
    verdict, what was read, findings; ``small``: the figures for a phone, as SVG."""
    for name, table in tables.items():
        for ending, text_of in RENDERINGS.items():
            reproducibility.write_text(folder / "tables" / f"{name}{ending}", text_of(table))
    for name, figure in figures.items():
        plots.save(figure, folder / "figures" / name)
    reproducibility.write_json(folder / "diagnostics.json", {name: _plain(value) for name, value in record.items()})
    return render(
        TEMPLATE,
        record=record,
        verdict=summary[0],
        read=summary[1],
        headline=summary[2:],
        figures=[
            shown_figure(
                artefact,
                (folder / "figures" / f"{artefact.name}.svg").read_bytes(),
                narrow=small[artefact.name].encode(),
            )
            for artefact in FIGURES
            if artefact.name in figures
        ],
        tables=[shown_table(artefact, tables[artefact.name]) for artefact in TABLES if artefact.name in tables],
    )


def _install(claim: Claim, made: Path, dump: Dump) -> None:
    """Put the files into their places, the page last: where one stands, all that belongs to it does."""
    claim.forget(claim.root / PAGE)  # of an earlier diagnosis
    reproducibility.install(made / "rest", claim.root)
    _forget_other_fields(claim, dump)
    reproducibility.install(made / "last", claim.root)


def _forget_other_fields(claim: Claim, dump: Dump) -> None:
    """Remove what an earlier diagnosis left, of a file with other fields."""
    known = paths("tables", TABLES) + paths("figures", FIGURES)
    tables = [artefact for artefact in TABLES if artefact.condition(dump)]
    figures = [artefact for artefact in FIGURES if artefact.condition(dump)]
    forget_stale(claim, known, paths("tables", tables) + paths("figures", figures))
