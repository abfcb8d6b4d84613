"""What differs between two updates that begin at the same weights: loss, gradient, the optimizer's step, and where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alp.rendering.numbers import share, significant

ROUNDING = 1e-5  # of a length: two float32 programs of one sum differ by less
_LAYERS = 6  # that are told


@dataclass(frozen=True)
class Update:
    """One update: its loss; the gradient before it is clipped, and what the optimizer added, by parameter.

    ``pushes``: −∂loss/∂log π of every token (rows, tokens), None where it is not known.
    """

    loss: float
    gradient: Mapping[str, Tensor]
    step: Mapping[str, Tensor]
    pushes: Tensor | None = None


@dataclass(frozen=True)
class Difference:
    """Between two updates. ``gradient`` and ``step`` are lengths of differences over the larger of both lengths,
    ``layers`` those of the gradient inside of each layer; ``tokens`` counts the tokens that are pushed otherwise."""

    losses: tuple[float, float]
    gradient: float
    step: float
    cosine: float | None
    layers: Mapping[str, float]
    tokens: Tokens | None

    @property
    def loss(self) -> float:
        """The difference of the losses over the larger of their sizes."""
        first, second = self.losses
        return abs(first - second) / max(abs(first), abs(second), 1e-12)

    @property
    def own(self) -> float:
        """The larger difference of gradient and loss; a loss of nearly 0 says nothing in parts of itself."""
        return max(self.gradient, min(self.loss, abs(self.losses[0] - self.losses[1])))

    @property
    def size(self) -> float:
        """The same with the step, in which an optimizer remembers earlier updates."""
        return max(self.own, self.step)

    def sentence(self) -> str:
        """For people."""
        first, second = map(significant, self.losses)
        cosine = "" if self.cosine is None else f", cosine {self.cosine:.4f}".replace("-", "−")
        loss = f"loss {first}" if first == second else f"loss {first} against {second}"
        return f"{loss}; gradient {_part(self.gradient)}{cosine}; optimizer step {_part(self.step)}"

    def where(self) -> list[str]:
        """Which tokens and which layers."""
        lines = [] if self.tokens is None else [self.tokens.sentence()]
        largest = sorted(self.layers.items(), key=lambda pair: -pair[1])
        if self.gradient > ROUNDING:
            rest = f", {len(largest) - _LAYERS} others" if len(largest) > _LAYERS else ""
            lines.append("layers: " + ", ".join(f"{name} {_part(size)}" for name, size in largest[:_LAYERS]) + rest)
        return lines


@dataclass(frozen=True)
class Tokens:
    """Tokens that are pushed otherwise: how many of how many, in how many sequences, and the one that differs most."""

    hit: int
    total: int
    sequences: int
    rows: int
    worst: tuple[int, int]
    pushes: tuple[float, float]

    def sentence(self) -> str:
        """For people."""
        if not self.hit:
            return f"tokens: none of {self.total} is pushed otherwise"
        row, token = self.worst
        first, second = map(significant, self.pushes)
        return (
            f"tokens: {self.hit} of {self.total} ({share(self.hit / self.total)} %) are pushed otherwise, in"
            f" {self.sequences} of {self.rows} sequences; most of all token {token} of sequence {row} (from 0): {first}"
            f" against {second}"
        )


def _part(size: float) -> str:
    """A relative difference in words."""
    if size <= ROUNDING:
        return "the same but for rounding" if size else "the same"
    return f"differs by {share(size)} %"


def difference(first: Update, second: Update) -> Difference:
    """Of two updates of one model; a parameter that only one of them moves counts as zero in the other."""
    names = [*dict.fromkeys([*first.gradient, *second.gradient])]
    of_layers: dict[str, list[str]] = {}
    for name in names:
        of_layers.setdefault(layer_of(name), []).append(name)
    return Difference(
        (first.loss, second.loss),
        _apart(first.gradient, second.gradient, names),
        _apart(first.step, second.step, [*dict.fromkeys([*first.step, *second.step])]),
        _cosine(first.gradient, second.gradient),
        {layer: _apart(first.gradient, second.gradient, inside) for layer, inside in of_layers.items()},
        _tokens(first.pushes, second.pushes),
    )


def layer_of(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` is in layer 3, ``model.embed_tokens.weight`` in embed_tokens."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return f"layer {found[1]}" if found else name.removesuffix(".weight").rpartition(".")[2]


def _square(values: Sequence[Tensor]) -> float:
    return float(sum((value.double().square().sum() for value in values), torch.zeros(())))


def _apart(first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: Sequence[str]) -> float:
    sizes = [[one[name] for name in names if name in one] for one in (first, second)]
    zero = torch.zeros(())
    gaps = [first.get(name, zero) - second.get(name, zero) for name in names]
    longest = max(map(_square, sizes))
    return float((_square(gaps) / longest) ** 0.5) if longest else 0.0


def _cosine(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float | None:
    both = [name for name in first if name in second]
    product = sum(float((first[name].double() * second[name].double()).sum()) for name in both)
    lengths = (_square([*first.values()]) * _square([*second.values()])) ** 0.5
    return product / lengths if lengths else None


def _tokens(first: Tensor | None, second: Tensor | None) -> Tokens | None:
    """None where both are not of the same places."""
    if first is None or second is None or first.shape != second.shape:
        return None
    gap, largest = (first - second).abs(), torch.maximum(first.abs(), second.abs())
    hit = gap > ROUNDING * largest.max()
    row, token = divmod(int(gap.argmax()), gap.shape[1])
    return Tokens(
        int(hit.sum()),
        int((largest > 0).sum()),
        int(hit.any(-1).sum()),
        len(gap),
        (row, token),
        (float(first[row, token]), float(second[row, token])),
    )


# ---- the whole comparison --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Both configurations' updates one by one, what was updated on, and what differs already before any update."""

    keys: str
    batch: str
    differences: Sequence[Difference]
    before: Sequence[str] = ()

    @property
    def active(self) -> bool:
        """Whether anything differs beyond rounding."""
        return bool(self.before) or any(one.size > ROUNDING for one in self.differences)

    def lines(self) -> list[str]:
        """For people: the verdict first."""
        count = len(self.differences)
        own = [at for at, one in enumerate(self.differences) if one.own > ROUNDING]
        steps = [at for at, one in enumerate(self.differences) if one.step > ROUNDING]
        if not self.active:
            verdict = f"no difference: {self.keys} changes neither loss nor gradient nor step in {count} updates"
        elif own:
            verdict = f"active: {self.keys} changes loss or gradient in {len(own)} of {count} updates"
        elif steps:
            verdict = f"active: {self.keys} changes the optimizer's step alone, in {len(steps)} of {count} updates"
        else:
            verdict = f"active: {self.keys} changes what is trained on, and no update of it"
        lines = [verdict, f"  {self.batch}", *(f"  {line}" for line in self.before)]
        differ = own or steps
        if differ:
            largest = max(differ, key=lambda at: self.differences[at].size)
            for at, which in {largest: "that differs most", differ[0]: "the first that differs"}.items():
                lines.append(f"  update {at + 1}, {which}: {self.differences[at].sentence()}")
                lines += [f"    {line}" for line in self.differences[at].where()]
        return lines
