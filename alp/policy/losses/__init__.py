"""Losses of a token: one module each, of the loss's name, with one registered function. Imports no torch by itself.

A new loss is such a module, a preset that names it (``loss_form``, and ``loss_options`` for keyword arguments of its
own), and a test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..choices import check_choice, registers

if TYPE_CHECKING:
    from torch import Tensor

    from ..method import Method


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


Count = dict[str, "Tensor"]
"""Numbers of tokens, 0-dim: the metrics are their shares."""
Loss = Callable[..., "tuple[Tensor, Count]"]
"""``(terms, method, **options)`` → the loss of each token, minimised, and counts for the metrics."""
TokenLoss = Callable[["Terms", "Method"], "tuple[Tensor, Count]"]

LOSSES: dict[str, Loss] = {}


def register(name: str) -> Callable[[Loss], Loss]:
    """Decorates the function of a loss."""
    return registers(LOSSES, name)


def names() -> list[str]:
    """Every loss there is: the modules beside this one, and what was registered elsewhere."""
    modules = {path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__"}
    return sorted(modules | set(LOSSES))


def find(name: str, options: dict[str, Any]) -> TokenLoss:
    """The loss ``name`` with its options. Raises ValueError for an unknown name or option."""
    check_choice("loss_form", name, names())
    if name not in LOSSES:
        import_module(f"{__name__}.{name}")
    function = LOSSES[name]
    known = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in known:
            raise ValueError(
                f"loss_options: loss '{name}' has no option '{option}', only: {', '.join(known) or 'none'}"
            )
    return partial(function, **options)
