"""``alp diagnose``: from a file of log-probs to figures, tables and one page (docs/diagnose.md).

Everything is read, checked, computed and drawn beside the folder before the first file of it is touched; files that are
not those of an earlier diagnosis of the same input are never replaced.
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from alp import reproducibility
from alp.configuration.schema import DiagnoseConfig
from alp.diagnosis import dump_formats, dumps
from alp.diagnosis import figures as drawings
from alp.diagnosis import measures as measures
from alp.diagnosis import tables as tables
from alp.diagnosis.dumps import Dump
from alp.diagnosis.measures import MISMATCH, Figures, Pair
from alp.diagnosis.tables import percent
from alp.errors import UserError, nearest
from alp.foreign import reading, shortened
from alp.ownership import Claim, check
from alp.policy.ratio import LOG_RATIO_BOUND
from alp.reporting import plots
from alp.reporting.report import Shown, environment, markdown_table
from alp.reporting.tables import Table, significant, to_csv, to_latex, to_markdown

DEFAULT = Path("results") / "diagnose"
KEY = "diagnose: output"
OUTPUTS = ("diagnostics.json", "report.html", "tables/*", "figures/*")
TITLES = {
    "mismatch": "Mismatch",
    "ratio_quantiles": "Quantiles of the log-ratios",
    "methods": "What each preset would do to this batch",
    "steps": "Per step",
}
CAPTIONS = {
    "mismatch": (
        "Over valid tokens, r the ratio of the two policies named above the column. Weights are untruncated; in chi2"
        " and in effective sample sizes their logarithm is clamped to ± 20."
    ),
    "ratio_quantiles": "Log-ratio per token, and summed over each sequence, in nats: before any clamp or clip.",
    "methods": (
        "Shares are percentages. Below, Above and Above c: tokens whose ratio is under the range, over it, over the"
        " dual clip, whatever their advantage, of those that the rollout correction leaves in the loss; with advantages"
        " in the file, the clipped ones are those whose gradient the clip holds back. Masked and weights: what the"
        " rollout correction by π_old / μ takes out and the weights it leaves, one per token or sequence; Effective is"
        " their (Σw)² / (N Σw²). Without its noise: the preset's numerator is π_θ,δ, and π_θ (or π_old) stands in for"
        " it. First update: the file has no current log-probs, so π_θ = π_old."
    ),
    "steps": (
        "Each step alone. ESS: effective share of tokens or sequences under untruncated weights. Quantiles of the"
        " log-ratio in nats."
    ),
}


def diagnose(config: DiagnoseConfig) -> str:
    """Write the folder; returns its path and a short summary for people. Raises :class:`UserError` for faults of the
    file."""
    if config.input is None:
        raise UserError(
            f"diagnose: no file given: input=<file>, one of {', '.join(sorted(dump_formats.READERS))} (quote: input='a"
            " b.npz')"
        )
    source = Path(config.input)
    folder = check(DEFAULT / source.stem if config.output is None else config.output, KEY)
    wanted = config.fields.model_dump()
    origin = {"identity": source.name, "config": {"input": source.name}}
    claim = Claim(folder, "diagnose", outputs=OUTPUTS, key=KEY, replace=config.replace)
    claim.compare(origin)
    with reading("diagnose", source.name):
        try:
            dump = dumps.check(dump_formats.read(source, wanted))
        except UserError as error:
            raise UserError(f"diagnose: {shortened(source.name)}: {error}") from None
    reproducibility.fix_threads(config.threads)
    figures = measures.diagnostics(dump)
    parts = measures.step_figures(dump)
    built = {
        "mismatch": tables.mismatch(dump, figures),
        "ratio_quantiles": tables.quantiles(dump, figures),
        "methods": tables.methods(measures.effects(dump, measures.presets())),
        **({"steps": tables.steps(parts)} if parts else {}),
    }
    with plots.style():
        drawn = {name: drawings.draw(name, dump, figures, parts) for name in drawings.names(dump)}
        summary = findings(dump, figures) + notes(dump, wanted)
        record = {
            **_counts(dump),
            **figures,
            "input/name": source.name,
            "input/sha256": reproducibility.sha256_file(source),
        }
        with claim:
            claim.begin(origin)
            with reproducibility.partial_folder(claim.root / "diagnosis") as made:
                for name, table in built.items():
                    for ending, text in _texts(table).items():
                        reproducibility.write_text(made / "tables" / f"{name}{ending}", text)
                for name, figure in drawn.items():
                    plots.save(figure, made / "figures" / name)
                reproducibility.write_text(made / "report.html", _page(record, made, summary, built, list(drawn)))
                reproducibility.write_json(
                    made / "diagnostics.json", {name: _plain(value) for name, value in record.items()}
                )
                reproducibility.install(made, claim.root)
            for target in _targets():  # what an earlier diagnosis with other fields left
                if target.stem not in built and target.stem not in drawn:
                    claim.forget(claim.root / target)
            claim.finish()
    return "\n".join([str(claim.root), *(f"  {sentence}" for sentence in summary)])


def _texts(table: Table) -> dict[str, str]:
    return {".csv": to_csv(table), ".md": to_markdown(table), ".tex": to_latex(table)}


def _counts(dump: Dump) -> dict[str, int]:
    found = {
        "count/sequences": dump.total,
        "count/valid_sequences": len(dump.lengths),
        "count/valid_tokens": int(dump.lengths.sum()),
    }
    return found if dump.steps is None else {**found, "count/steps": len(np.unique(dump.steps))}


def _plain(value: Any) -> Any:
    """JSON has no word for infinities: a divergence that overflows is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _targets() -> list[Path]:
    """Every table and figure that a diagnosis may write, relative to its folder."""
    found = [Path("tables", f"{name}{ending}") for name in TITLES for ending in (".csv", ".md", ".tex")]
    return found + [Path("figures", f"{name}{ending}") for name in drawings.TITLES for ending in (".svg", ".png")]


# ---- in words --------------------------------------------------------------------------------------------------------


def findings(dump: Dump, figures: Figures) -> list[str]:
    """The handful of figures to look at first, one sentence each, with how to read them."""
    known = measures.pairs(dump)
    ends = "" if dump.steps is None else f", steps {dump.steps.min()}–{dump.steps.max()}"
    empty = dump.total - len(dump.lengths)
    found = [
        f"{dump.total} sequences, {int(dump.lengths.sum())} valid tokens{ends}"
        + (f"; {empty} sequences have no valid token" if empty else "")
    ]
    found += [_pair(pair, figures) for pair in known]
    found.append(
        "how to read: kl and k3_kl are 0 where two policies agree (k3_kl is never negative); the effective share is 100"
        " % on-policy, and at a few % a few outliers carry the whole estimate; the ratio itself is e to the log-ratio"
    )
    return [*found, _furthest(dump)]


def _pair(pair: Pair, figures: Figures) -> str:
    """The figures of one pair in one line."""
    kl, k3 = (significant(figures[f"{pair.prefix}rollout_corr/{name}"]) for name in ("kl", "k3_kl"))
    size = f"{pair.prefix}rollout_corr/rollout_is_eff_sample_size"
    shares = f"effective {percent(figures[size])} % of tokens, {percent(figures[f'{size}_seq'])} % of sequences"
    token, sequence = (
        " … ".join(significant(figures[f"{pair.prefix}ratio/{level}/log_{name}"]) for name in ("q001", "q999"))
        for level in ("token", "sequence")
    )
    return (
        f"{pair.label}: kl {kl}, k3_kl {k3} nats per token; {shares}; 0.1–99.9 % of log-ratios {token} per token,"
        f" {sequence} per sequence"
    )


def _furthest(dump: Dump) -> str:
    """The sequence whose summed mismatch is largest in size: where to start looking."""
    tokens = dump.difference(MISMATCH.numerator, MISMATCH.denominator)
    sums = dump.sums(tokens)
    worst = int(np.argmax(np.abs(sums)))
    start = int(dump.lengths[:worst].sum())
    inside = tokens[start : start + dump.lengths[worst]]
    largest = significant(float(inside[np.argmax(np.abs(inside))]))
    row, total = int(dump.rows[worst]), significant(float(sums[worst]))
    place = "" if dump.place(row).startswith("row") else f", {dump.place(row)}"
    of = f"Σ log {MISMATCH.label} = {total} over {dump.lengths[worst]} tokens, largest token {largest}"
    return f"furthest sequence: index {row} (from 0){place}, {of}"


def notes(dump: Dump, wanted: dict[str, str]) -> list[str]:
    """What a reader of the figures must know about the file."""
    found = []
    if "log_probs" not in dump:
        found.append("no current log-probs in the file: presets are shown for the first update, π_θ = π_old")
    if np.array_equal(dump.tokens["old_log_probs"], dump.tokens["rollout_log_probs"]):
        found.append("old_log_probs and rollout_log_probs are equal on every token: was one tensor dumped twice?")
    tokens = dump.difference(MISMATCH.numerator, MISMATCH.denominator)
    far = (np.abs(tokens) > LOG_RATIO_BOUND, np.abs(dump.sums(tokens)) > LOG_RATIO_BOUND)
    if any(one.any() for one in far):
        counts = " token and ".join(str(int(one.sum())) for one in far)
        found.append(
            f"{counts} sequence log-ratios lie beyond ± {LOG_RATIO_BOUND:g}, where weights are clamped: ESS and chi2"
            " say little"
        )
    absent = [name for field, name in wanted.items() if field not in dump and field not in ("step", *dumps.REQUIRED)]
    absent += ["step"] if dump.steps is None else []
    for name in dump.unread:
        hint = nearest(name, absent)
        if "did you mean" in hint:
            found.append(f"not read: field '{name}'{hint}")
    return found


# ---- the page --------------------------------------------------------------------------------------------------------


def _page(record: dict[str, Any], folder: Path, summary: list[str], built: dict[str, Table], drawn: list[str]) -> str:
    """One self-contained page in the dress of a grid's report."""

    def image(name: str) -> str:
        return (
            "data:image/svg+xml;base64," + base64.b64encode((folder / "figures" / f"{name}.svg").read_bytes()).decode()
        )

    return (
        environment(Path(__file__).parent)
        .get_template("page.html.j2")
        .render(
            record=record,
            headline=summary,
            figures=[Shown(name, drawings.TITLES[name], drawings.CAPTIONS[name], image(name)) for name in drawn],
            tables=[
                Shown(name, TITLES[name], CAPTIONS[name], markdown_table(to_markdown(table)))
                for name, table in built.items()
            ],
        )
    )
