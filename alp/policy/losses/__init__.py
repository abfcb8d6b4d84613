"""Losses of a token: one module each, of the loss's name, with one registered function. None of them imports torch, so
that a configuration which names a loss is checked where there is no torch.

A new loss is such a module, a preset that names it (``loss_form``, and ``loss_options`` for keyword arguments of its
own), and a test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import check_choice

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method

CLIPS = ("clip_low", "clip_high", "dual_clip")


@dataclass(frozen=True)
class Terms:
    """What the loss of a token is made of: (batch, tokens) tensors, all 0 (``ratio``: 1) where ``mask`` is 0."""

    log_ratio: Tensor
    """At the method's level, clamped; the gradient flows through it."""
    ratio: Tensor
    """Its exponential."""
    advantages: Tensor
    """Detached."""
    mask: Tensor
    """Booleans, after correction."""
    log_probs: Tensor
    """The numerator's log-probability itself, with its gradient."""
    rewards: Tensor | None = None
    """(batch,), where they were given."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """0-dim: what the loss's ``survey`` found in the whole mini-batch."""

    def row_mean(self, values: Tensor) -> Tensor:
        """(batch, 1): the mean of ``values`` over each sequence's tokens under ``mask``; 0 without any."""
        kept = values.where(self.mask, values.new_zeros(()))
        return kept.sum(-1, keepdim=True) / self.mask.sum(-1, keepdim=True).clamp(min=1)


Count = dict[str, "Tensor"]
"""Numbers of tokens, 0-dim: the metrics are their shares."""
Loss = Callable[..., "tuple[Tensor, Count]"]
"""``(terms, method, **options)`` → the loss of each token, minimised, and counts for the metrics."""
TokenLoss = Callable[["Terms", "Method"], "tuple[Tensor, Count]"]
Survey = Callable[..., "dict[str, Tensor]"]
"""``(terms of the whole mini-batch, **options)`` → figures, 0-dim, that the loss of every part of it needs."""


@dataclass(frozen=True)
class Form:
    """A registered loss and what it reads."""

    function: Loss
    formula: str
    """For people: the loss of a token."""
    reads: tuple[str, ...]
    """Of ``ratio``, ``rewards`` and ``CLIPS``: settings and inputs that mean something to it."""
    limits: Mapping[str, tuple[float, float]]
    """The least and the largest value of its options."""
    aggregation: str | None
    """The only aggregation under which it is what its name says; None: any."""
    survey: Survey | None
    survey_reads_policy: bool
    """Whether the survey needs the current policy's log-probs, which cost a forward of the mini-batch."""

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the loss and of its survey, with their defaults."""
        return _options(self.function) | ({} if self.survey is None else _options(self.survey))

    def check(self, name: str, options: Mapping[str, float]) -> None:
        """Raises ValueError for an option that it does not take, and for a value outside its limits."""
        for option, value in options.items():
            if option not in self.options:
                known = ", ".join(self.options) or "none"
                raise ValueError(f"loss_options: loss '{name}' has no option '{option}', only: {known}")
            low, high = self.limits.get(option, (float("-inf"), float("inf")))
            if not low <= value <= high:
                raise ValueError(f"loss_options.{option}: {low:g} to {high:g} expected, got {value}")

    def bound(self, options: Mapping[str, float]) -> TokenLoss:
        """The loss with those of the options that it takes."""
        return partial(self.function, **{name: options[name] for name in _options(self.function) if name in options})

    def surveyed(self, terms: Terms, options: Mapping[str, float]) -> dict[str, Tensor]:
        """What the survey of the whole mini-batch finds; nothing without one."""
        if self.survey is None:
            return {}
        return self.survey(terms, **{name: options[name] for name in _options(self.survey) if name in options})


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}


LOSSES: dict[str, Form] = {}


def register(
    name: str,
    *,
    formula: str = "",
    reads: tuple[str, ...] = ("ratio",),
    limits: Mapping[str, tuple[float, float]] | None = None,
    aggregation: str | None = None,
    survey: Survey | None = None,
    survey_reads_policy: bool = True,
) -> Callable[[Loss], Loss]:
    """Decorates the function of a loss; what the arguments mean stands at :class:`Form`."""

    def add(function: Loss) -> Loss:
        if name in LOSSES:
            raise ValueError(f"'{name}' is registered twice")
        LOSSES[name] = Form(function, formula, reads, limits or {}, aggregation, survey, survey_reads_policy)
        return function

    return add


def names() -> list[str]:
    """Every loss there is: the modules beside this one, and what was registered elsewhere."""
    modules = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__"}
    return sorted(modules | set(LOSSES))


def find(name: str) -> Form:
    """The loss ``name``. Raises ValueError for an unknown one."""
    check_choice("loss_form", name, names())
    if name not in LOSSES:
        import_module(f"{__name__}.{name}")
    return LOSSES[name]
