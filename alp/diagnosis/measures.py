"""What a dump says, in numbers: the functions of :mod:`alp.policy` on its valid tokens.

A dump holds sequences of very different lengths, and padding all of them to the longest can cost many times their size.
A figure over tokens needs no rows, so all tokens pass through the policy functions as one row; a figure over sequences
passes as a column of the sequences' sums or means. Where a method's ratio mixes both, blocks of sequences are padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from alp.diagnosis.counterfactual import Gradient
from alp.diagnosis.dumps import Block, Dump, Floats, Ints
from alp.policy import composition
from alp.policy.correction_settings import POLICIES
from alp.policy.diagnostics import mismatch_diagnostics, ratio_diagnostics
from alp.policy.method import LossInputs, Method
from alp.progress import Progress

Figures = dict[str, float]
CELLS = 1_000_000  # padded places at a time: some hundred megabytes of intermediates


@dataclass(frozen=True)
class Pair:
    """Two policies of a dump; ``name`` is the key in files, ``label`` what people read."""

    name: str
    numerator: str
    denominator: str
    label: str

    @property
    def prefix(self) -> str:
        """Before its keys in diagnostics.json: π_old / μ carries the field's own names, the others are told apart."""
        return "" if self.name == MISMATCH.name else f"{self.name}/"


MISMATCH = Pair("old_rollout", "old_log_probs", "rollout_log_probs", "π_old / μ")
PAIRS = (
    MISMATCH,
    Pair("current_old", "log_probs", "old_log_probs", "π_θ / π_old"),
    Pair("current_rollout", "log_probs", "rollout_log_probs", "π_θ / μ"),
    Pair("perturbed_rollout", "perturbed_log_probs", "rollout_log_probs", "π_θ,δ / μ"),
)


def pairs(dump: Dump) -> list[Pair]:
    """The pairs whose policies the dump holds."""
    return [pair for pair in PAIRS if pair.numerator in dump and pair.denominator in dump]


def against_rollout(dump: Dump) -> list[Pair]:
    """Those with μ below."""
    return [pair for pair in pairs(dump) if pair.denominator == MISMATCH.denominator]


def main_pair(dump: Dump) -> Pair | None:
    """The pair to look at first: π_old / μ, or what the dump has in its place."""
    return next(iter([*against_rollout(dump), *pairs(dump)]), None)


def row(values: Floats) -> Tensor:
    """(1, n): all of them as tokens of one sequence."""
    return torch.from_numpy(values)[None]


def column(values: Floats) -> Tensor:
    """(n, 1): each of them as a sequence of one token."""
    return torch.from_numpy(values)[:, None]


def everywhere(like: Tensor) -> Tensor:
    """The mask of nothing but valid tokens."""
    return torch.ones_like(like, dtype=torch.bool)


def mismatch(dump: Dump, pair: Pair = MISMATCH) -> Figures:
    """``mismatch_diagnostics`` of a pair, its numerator in the place of π_old and its denominator in that of μ."""
    over, under = dump.tokens[pair.numerator], dump.tokens[pair.denominator]
    figures = [
        mismatch_diagnostics(first, second, everywhere(first))
        for first, second in (
            (row(over), row(under)),
            (column(dump.sums(over)), column(dump.sums(under))),
            (column(dump.means(over)), column(dump.means(under))),
        )
    ]
    return {key: figures[1 if key.endswith("_seq") else 2 if "ppl" in key else 0][key] for key in figures[0]}


def ratios(dump: Dump, pair: Pair) -> Figures:
    """``ratio_diagnostics`` of a pair: per token, and summed per sequence."""
    tokens = dump.difference(pair.numerator, pair.denominator)
    single, summed = (
        ratio_diagnostics(values, everywhere(values)) for values in (row(tokens), column(dump.sums(tokens)))
    )
    return {key: (summed if key.startswith("ratio/sequence/") else single)[key] for key in single}


def figures_of(dump: Dump, pair: Pair) -> Figures:
    """Mismatch and ratio figures of one pair, under the bare names."""
    return {**mismatch(dump, pair), **ratios(dump, pair)}


def diagnostics(dump: Dump) -> Figures:
    """Every pair's figures as one flat dictionary, under the names of ``diagnostics.json``."""
    return {f"{pair.prefix}{name}": value for pair in pairs(dump) for name, value in figures_of(dump, pair).items()}


def step_figures(dump: Dump) -> list[tuple[int, Ints, Pair, Figures]]:
    """The lengths (sequences,) and figures of each step alone, for every pair against μ; empty without steps."""
    if dump.steps is None:
        return []
    against = against_rollout(dump)
    return [(step, part.lengths, pair, figures_of(part, pair)) for step, part in dump.by_step() for pair in against]


# ---- what each preset would do to the batch --------------------------------------------------------------------------


@dataclass
class Weights:
    """Weights of a correction, as sums over blocks: with a preset's in full, 5 M tokens would hold 40 MB each."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    lowest: float = float("inf")
    highest: float = float("-inf")

    def add(self, values: Floats) -> None:
        """Those of a block (n,)."""
        if values.size:
            self.count += values.size
            self.total += float(values.sum())
            self.squares += float(np.square(values).sum())
            self.lowest, self.highest = min(self.lowest, float(values.min())), max(self.highest, float(values.max()))

    @property
    def effective(self) -> float:
        """(Σw)² / (N Σw²); 0 where every weight is."""
        return self.total**2 / (self.count * self.squares) if self.squares else 0.0


@dataclass
class Effect:
    """One preset on the whole dump. Shares are of valid tokens; ``None`` where the dump does not allow the figure.

    ``below``, ``above`` and ``above_dual``: of the tokens left after correction, those whose ratio is under 1 - low,
    over 1 + high, over the dual clip; ``clipped_low``, ``clipped_high``, ``dual_clipped``: those that the clip holds
    given their advantage. ``weights`` are the correction's, one per token or (above the token level) per sequence left.
    ``gradient`` is what is left of its push, with A = 1 where the dump has no advantages.
    """

    method: Method
    numerator: str  # the field that stands for the numerator
    shares: dict[str, float] = field(default_factory=dict)
    weights: Weights | None = None
    missing: str = ""
    gradient: Gradient = field(default_factory=Gradient)


def stand_in(method: Method, dump: Dump) -> str:
    """The field nearest to the method's numerator: noise that was not dumped is left out, an update that was not is the
    first."""
    wanted = ["perturbed_log_probs"] if method.numerator == "perturbed" else []
    return next((name for name in [*wanted, "log_probs", "old_log_probs"] if name in dump), "")


def _missing(method: Method, numerator: str, dump: Dump) -> str:
    """What the dump lacks to show the method at all."""
    acting = [correction for correction in method.corrections if correction.acts]
    if not numerator:
        return "needs log-probs of the training code"
    if method.reads_old and "old_log_probs" not in dump:
        return "needs old_log_probs"
    reads = method.denominator == "rollout" or any("rollout" in POLICIES[one.between] for one in acting)
    if reads and "rollout_log_probs" not in dump:
        return "needs rollout_log_probs"
    if method.level in ("turn", "turn_geometric") and "turn_ids" not in dump:
        return "needs turn_ids"
    return "needs rewards" if "rewards" in method.form.reads else ""


def effects(dump: Dump, methods: Sequence[Method]) -> list[Effect]:
    """What each method's ratio, clip and correction do to the dump's tokens."""
    measured = [Effect(method, stand_in(method, dump)) for method in methods]
    for effect in measured:
        effect.missing = _missing(effect.method, effect.numerator, dump)
    totals: list[_Total] = [_Total() for _ in measured]
    tokens, done = int(dump.lengths.sum()), 0
    with Progress("presets, tokens", tokens) as progress:
        for block in dump.blocks(CELLS):
            for effect, total in zip(measured, totals, strict=True):
                if not effect.missing:
                    _add(effect, total, block)
            done += int(block.mask.sum())
            if done < tokens:
                progress.update(done)
    for effect, total in zip(measured, totals, strict=True):
        effect.shares = {
            name: count / max(total.counts[_OF.get(name, "kept")], 1) for name, count in total.shares.items()
        }
    return measured


_OF = {"masked_tokens": "tokens", "masked_sequences": "sequences"}  # every other share is of the tokens that were kept


@dataclass
class _Total:
    """Sums over blocks: numbers of tokens and sequences, and what the shares stand for in them."""

    counts: dict[str, int] = field(default_factory=lambda: {"tokens": 0, "sequences": 0, "kept": 0})
    shares: dict[str, float] = field(default_factory=dict)


def _add(effect: Effect, total: _Total, block: Block) -> None:
    """The shares of a block, as numbers of its tokens or sequences, and its weights."""
    method, mask = effect.method, torch.from_numpy(block.mask)
    policies = {name: torch.from_numpy(array) for name, array in block.fields.items()}
    old, rollout = policies.get("old_log_probs"), policies.get("rollout_log_probs")
    corrected = method.correct(old, rollout, mask)
    kept = corrected.mask

    def clipped(advantages: Tensor, log_probs: Tensor = policies[effect.numerator]) -> Figures:
        inputs = LossInputs(
            log_probs=log_probs,
            old_log_probs=old,
            rollout_log_probs=rollout,
            response_mask=mask,
            advantages=advantages,
            turn_ids=policies["turn_ids"].long() if "turn_ids" in policies else None,
            weights=corrected.weights,
            loss_mask=kept,
        )
        outputs = method.loss(inputs)
        if log_probs.requires_grad:
            outputs.loss.backward()
        figures = outputs.floats()
        return {name.removeprefix("ratio/"): share for name, share in figures.items() if name.startswith("ratio/")}

    # The loss itself counts: with A < 0 everywhere what lies below the range is clipped, with A > 0 what lies above.
    positive = torch.ones(len(mask), dtype=torch.float64)
    low, leaf = clipped(-positive), policies[effect.numerator].clone().requires_grad_()
    given = policies.get("advantages")
    high = clipped(positive) if given is not None else clipped(positive, leaf)
    counted = {"below": (low, "clipped_low"), "above": (high, "clipped_high"), "above_dual": (low, "dual_clipped")}
    shares = {name: figures[key] for name, (figures, key) in counted.items() if key in figures}  # a loss may not clip
    if given is not None:
        shares |= clipped(given, leaf)
    normaliser = composition.count(method, kept).normaliser
    advantages = torch.ones_like(leaf) if given is None else given
    pushed = torch.zeros_like(leaf) if leaf.grad is None else -leaf.grad * normaliser
    effect.gradient.add(pushed.detach(), advantages.detach(), mask, normaliser)
    shares |= {name.removeprefix("correction/"): float(share) for name, share in corrected.metrics.items()}
    counts = {"tokens": int(mask.sum()), "sequences": len(mask), "kept": int(kept.sum())}
    for name, share in shares.items():
        total.shares[name] = total.shares.get(name, 0.0) + share * counts[_OF.get(name, "kept")]
    for name, count in counts.items():
        total.counts[name] += count
    levels = {correction.level for correction in method.corrections if correction.weighs and not correction.at_update}
    if levels:
        if "token" not in levels:  # one weight per sequence: its first token's stands for all
            kept = kept & (kept.cumsum(-1) == 1)
        effect.weights = effect.weights or Weights()
        effect.weights.add(corrected.weights[kept].numpy())
