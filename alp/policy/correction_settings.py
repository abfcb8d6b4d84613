"""One off-policy correction as data, and what is refused by name. Without torch: configurations read it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from .settings import bounded, check_fields

LEGS = {
    "old_rollout": frozenset({"mismatch"}),
    "current_old": frozenset({"staleness"}),
    "current_rollout": frozenset({"mismatch", "staleness"}),
}
"""What lies between two policies: a weight on each part, once, is all that importance sampling allows."""
POLICIES = {name: tuple(name.split("_")) for name in LEGS}
"""``<numerator>_<denominator>``."""
_TWO_SIDED = ("ratio", "k1")  # every other statistic is 0 at best


@dataclass(frozen=True)
class Correction:
    """One correction on the ratio ω = p / q of two policies (docs/method.md, Corrections). Masks of several
    are joined by AND, weights multiply."""

    kind: Literal["none", "truncate", "mask", "mask_keep_denominator"] = "none"
    """``truncate``: the weight is ω in the bounds; ``mask``: what lies outside them leaves loss and normaliser;
    ``mask_keep_denominator``: it has weight 0, and the normaliser counts all; ``none``: the veto alone."""
    level: Literal["token", "sequence", "sequence_geometric"] = "token"
    """At which ω is taken: of a token, the product over the sequence, or its geometric mean."""
    upper: float | None = bounded(None, gt=0)
    """Upper bound on the statistic, ω itself (never its reciprocal) by default; every kind but ``none`` needs one."""
    lower: float | None = None
    """Lower bound on ω or k1; none: no bound."""
    veto: float | None = bounded(None, gt=0)
    """A sequence with any token ratio π_old / μ below it leaves loss and normaliser, whatever the kind."""
    between: Literal["old_rollout", "current_rollout", "current_old"] = "old_rollout"
    """p and q: π_old / μ, once a rollout batch; the others, anew in each update, with the numerator as it is then."""
    statistic: Literal["ratio", "k1", "k2", "k3", "log_square", "prob_gap", "binary_kl", "binary_kl_max"] = "ratio"
    """What a mask bounds, of d = log p − log q: ω at its level; −d; d²/2; e^d − 1 − d; d²; abs(p − q); the divergence
    of "this token or another" of q from p; the larger of that in both directions."""
    reduce: Literal["token", "sum", "mean", "max", "batch"] = "token"
    """``sum``, ``mean``, ``max``: the statistic of the sequence, which stays or goes whole; ``batch``: the tokens with
    the largest go until the mean of those left is within the bound; ``token``: each by itself."""
    weight: Literal["ratio", "one"] = "ratio"
    """What a mask leaves inside the bounds: ω at its level, or 1 (rejection alone)."""
    when: Literal["always", "negative", "outward"] = "always"
    """Which tokens it acts on (others keep their weight): all, those with A < 0, those whose update moves p further
    from q (A and d of one sign)."""
    batch_normalise: bool = False
    """Divide the truncated weights by their mean over the rollout batch: over tokens, or over sequences above the token
    level."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind == "none":
            self._check_none()
            return
        if self.upper is None:
            raise ValueError(f"upper: kind '{self.kind}' needs an upper bound")
        if self.lower is not None and self.lower >= self.upper:
            raise ValueError(f"lower = {self.lower} must be below upper = {self.upper}")
        if self.lower is not None and self.statistic not in _TWO_SIDED:
            raise ValueError(f"lower: statistic '{self.statistic}' is 0 at best and has an upper bound alone")
        if self.lower is not None and self.lower < 0 and self.statistic == "ratio":
            raise ValueError(f"lower: at least 0 expected, got {self.lower}")
        self._check_statistic()
        if self.at_update:
            self._check_at_update()
        if self.batch_normalise and (self.kind != "truncate" or self.at_update):
            raise ValueError("batch_normalise: of truncated weights between old_rollout alone")

    @property
    def acts(self) -> bool:
        """Whether it does anything at all."""
        return self.kind != "none" or self.veto is not None

    @property
    def weighs(self) -> bool:
        """Whether it multiplies the loss by a ratio."""
        return self.kind != "none" and self.weight == "ratio"

    @property
    def at_update(self) -> bool:
        """Whether it is computed in each update: it reads the current policy or the advantages."""
        return self.between != "old_rollout" or self.when != "always"

    @property
    def surveys(self) -> bool:
        """Whether it needs the whole mini-batch before any part of it."""
        return self.at_update and self.reduce == "batch"

    def _check_none(self) -> None:
        if self.upper is not None or self.lower is not None:
            raise ValueError(
                "upper/lower: bounds without a kind would be ignored: set kind to truncate, mask or"
                " mask_keep_denominator"
            )
        for setting in fields(self):
            if setting.name not in ("kind", "veto", "level") and getattr(self, setting.name) != setting.default:
                raise ValueError(f"{setting.name}: kind 'none' is the veto alone and would ignore it")

    def _check_statistic(self) -> None:
        if self.kind == "truncate":
            for name, plain in (("statistic", "ratio"), ("reduce", "token"), ("weight", "ratio")):
                if (value := getattr(self, name)) != plain:
                    raise ValueError(f"{name}: truncate bounds the weight, a ratio: '{value}' belongs to a mask")
        if self.statistic == "ratio" and self.reduce != "token":
            raise ValueError(
                f"reduce: '{self.reduce}' of a ratio is its level: set level instead, or another statistic"
            )
        if self.reduce == "batch" and self.statistic in _TWO_SIDED:
            raise ValueError(f"reduce: 'batch' needs a statistic that is 0 at best, not '{self.statistic}'")
        if self.statistic != "ratio" and self.weight == "one" and self.level != "token":
            raise ValueError(f"level: nothing is taken at '{self.level}' under weight 'one' and '{self.statistic}'")
        whole = self.reduce in ("sum", "mean", "max") or (self.statistic == "ratio" and self.level != "token")
        if self.when == "outward" and whole:
            raise ValueError("when: 'outward' is asked of single tokens: level and reduce must be token (or batch)")

    def _check_at_update(self) -> None:
        why = f"between '{self.between}'" if self.between != "old_rollout" else f"when '{self.when}'"
        if self.kind == "mask":
            raise ValueError(
                f"kind: 'mask' takes tokens out of the normaliser, which is counted before {why} is known: use"
                " mask_keep_denominator"
            )
        if self.veto is not None:
            raise ValueError(f"veto: is on old_rollout, not {why}: give it a correction of its own, of kind 'none'")
