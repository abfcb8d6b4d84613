"""What tables, figures and sentences of a diagnosis are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from alp import presets
from alp.diagnosis import measures as measures
from alp.diagnosis.causes import Cause, causes
from alp.diagnosis.dumps import Dump, Ints
from alp.diagnosis.measures import Effect, Figures, Pair

Parts = Sequence[tuple[int, Ints, Pair, Figures]]  # per step and pair, with the lengths of the step's sequences


@dataclass(frozen=True)
class Diagnosed:
    """A dump with its figures, and those of each of its steps alone (none without steps)."""

    dump: Dump
    figures: Figures
    parts: Parts

    @cached_property
    def effects(self) -> list[Effect]:
        """What each preset would do to it."""
        return measures.effects(self.dump, presets.known())

    @cached_property
    def causes(self) -> list[Cause]:
        """What most likely made the differences, the likeliest first."""
        return causes(self.dump)

    @classmethod
    def of(cls, dump: Dump) -> Diagnosed:
        """Measure a dump."""
        return cls(dump, measures.diagnostics(dump), measures.step_figures(dump))


def has_steps(dump: Dump) -> bool:
    """The condition of what is shown over training."""
    return dump.steps is not None and against_rollout(dump)


def has_pairs(dump: Dump) -> bool:
    """The condition of what compares two policies."""
    return bool(measures.pairs(dump))


def against_rollout(dump: Dump) -> bool:
    """The condition of what compares with μ."""
    return bool(measures.against_rollout(dump))
