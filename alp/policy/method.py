"""The one contract of a method: plain data with a default for every field, what its loss is given, what it returns.

Trainer, ``alp diagnose`` and tests call :meth:`Method.loss`; the composition of ratio, correction, loss and aggregation
stands in composition.py alone. That module, and torch with it, is loaded by the first call: a configuration can be read
and checked where there is no torch. Specification: docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from . import losses
from .bands import FORM, in_band, is_band
from .choices import check_choice

if TYPE_CHECKING:
    from torch import Tensor

_LATER = ("between", "statistic", "reduce", "weight", "when", "batch_normalise")  # of a correction: names without uses
Level = Literal["token", "sequence", "sequence_geometric", "prefix", "turn"]


def bounded(default: Any, **bounds: float) -> Any:
    """A field with its default and bounds (``ge``, ``gt``, ``le``), which :func:`check_fields` enforces."""
    return field(default=default, metadata=bounds)


@dataclass(frozen=True)
class Correction:
    """One rollout correction on the training-inference ratio ω = π_old / μ (specification §4). Masks of several are
    joined by AND, weights multiply. Fields of the larger contract that nothing implements yet are refused by name."""

    kind: Literal["none", "truncate", "mask", "mask_keep_denominator"] = "none"
    """``truncate``: w = min(ω, upper); ``mask``: w = ω inside the bounds, the rest leaves loss and normaliser;
    ``mask_keep_denominator``: w = ω inside, 0 outside, and the normaliser counts all; ``none``: the veto alone."""
    level: Literal["token", "sequence", "sequence_geometric"] = "token"
    """At which ω is taken: of a token, the product over the sequence, or its geometric mean."""
    upper: float | None = bounded(None, gt=0)
    """Upper bound on ω itself (never on its reciprocal); every kind but ``none`` needs one."""
    lower: float | None = bounded(None, ge=0)
    """Lower bound on ω of a mask; none is 0."""
    veto: float | None = bounded(None, gt=0)
    """A sequence with any token ratio below it leaves loss and normaliser, whatever the kind."""
    between: Literal["old_rollout", "current_rollout", "current_old"] = "old_rollout"
    """The two policies whose ratio is corrected."""
    statistic: Literal["ratio", "k1", "k2", "k3", "prob_gap", "binary_kl", "log_square"] = "ratio"
    """What is bounded."""
    reduce: Literal["token", "sum", "mean", "max"] = "token"
    """How a statistic of tokens becomes one of the sequence; ``token``: not at all."""
    weight: Literal["ratio", "one"] = "ratio"
    """What a token inside the bounds is weighted with; ``one`` is rejection alone."""
    when: Literal["always", "negative", "outward"] = "always"
    """Which tokens it acts on: all, those with A < 0, those whose update would move further out."""
    batch_normalise: bool = False
    """Divide the weights by their mean after truncation."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind == "none" and (self.upper is not None or self.lower is not None):
            raise ValueError(
                "upper/lower: bounds without a kind would be ignored: set kind to truncate, mask or"
                " mask_keep_denominator"
            )
        if self.kind != "none" and self.upper is None:
            raise ValueError(f"upper: kind '{self.kind}' needs an upper bound")
        if self.upper is not None and self.lower is not None and self.lower >= self.upper:
            raise ValueError(f"lower = {self.lower} must be below upper = {self.upper}")
        if self.kind == "truncate" and self.lower is not None:
            raise ValueError("lower: truncate has no lower bound: leave lower empty")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name in _LATER and value != setting.default:
                raise ValueError(f"{setting.name}: '{value}' is not implemented yet, only '{setting.default}' is")

    @property
    def acts(self) -> bool:
        """Whether it does anything at all."""
        return self.kind != "none" or self.veto is not None


@dataclass(frozen=True)
class Perturbation:
    """Layerwise noise (specification §2)."""

    layers: str | list[int] = "all"
    """``all``, ``early``, ``middle``, ``late``, ``logits``, a band ``start:end`` (end exclusive; ``1:`` leaves out the
    first layer, ``-2:`` takes the last two), or a list."""
    scale: Literal["absolute", "relative"] = "absolute"
    """``absolute``: noise of size σ_l; ``relative``: of size c_l times the RMS of the token's own hidden state."""
    std: float = bounded(0.02, ge=0)
    """σ_0 of every layer, c_0 where it is relative; 0 switches the noise off: the control."""
    learnable: bool = True
    """Whether the policy loss trains log σ (log c)."""
    lr: float = bounded(0.01, gt=0)
    """Learning rate of log σ."""
    weight_decay: float = bounded(0.0, ge=0)
    """AdamW's decay of log σ; it pulls σ towards 1."""
    in_global_norm: bool = False
    """Whether the gradient of log σ counts in the clipped global norm, and is clipped with it."""
    dtype: Literal["wide", "hidden"] = "wide"
    """In which log σ, the noise and the sum are held: float32 at least, or the dtype of the hidden state."""
    std_min: float = bounded(1e-8, gt=0)
    """Lower bound that σ (c) is projected to after each step."""
    std_max: float = bounded(1.0, gt=0)
    """Upper bound that σ (c) is projected to after each step."""

    def __post_init__(self) -> None:
        check_fields(self)
        if isinstance(self.layers, str) and not is_band(self.layers):
            check_choice("layers", self.layers, ("all", "early", "middle", "late", "logits", FORM))
        if self.std_min >= self.std_max:
            raise ValueError(f"std_min = {self.std_min} must be below std_max = {self.std_max}")
        if self.std and not self.std_min <= self.std <= self.std_max:
            raise ValueError(f"std = {self.std} lies outside [{self.std_min}, {self.std_max}]")

    def check_depth(self, depth: int) -> None:
        """Refuse bands and lists outside a model of ``depth`` layers. Raises ValueError."""
        if isinstance(self.layers, str):
            if is_band(self.layers):
                try:
                    in_band(self.layers, depth)
                except ValueError as error:
                    raise ValueError(f"method.perturbation.{error}") from None
        elif not self.layers or not all(0 <= layer < depth for layer in self.layers):
            raise ValueError(
                f"method.perturbation.layers: {self.layers} is empty or outside the model's {depth} layers (0:{depth})"
            )


@dataclass(frozen=True)
class Method:
    """One off-policy method: one row of the preset table (specification §5). The defaults are those of GRPO."""

    name: str = "custom"
    """What it is called in folders, tables and figures."""
    numerator: Literal["current", "perturbed"] = "current"
    """π_θ, or π_θ,δ: the current policy under layerwise noise."""
    denominator: Literal["old", "rollout"] = "old"
    """π_old: the sampling weights as the training code computes them; or μ: as the inference engine does."""
    level: Level = "token"
    """Level of the ratio (specification §1)."""
    loss_form: str = "clip"
    """The loss of a token: a name in ``alp/policy/losses``."""
    loss_options: dict[str, float] = field(default_factory=dict)
    """Keyword arguments of that loss that are its own."""
    clip_low: float = bounded(0.2, ge=0, le=1)
    """The ratio is clipped to [1 - clip_low, …]."""
    clip_high: float = bounded(0.28, ge=0)
    """The ratio is clipped to […, 1 + clip_high]."""
    dual_clip: float | None = bounded(10.0, gt=1)
    """Where A < 0 the loss is at most -dual_clip · A; none: no such ceiling."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "token-mean"
    """How the losses of tokens become that of the mini-batch (specification §3)."""
    corrections: list[Correction] = field(default_factory=list)
    """Rollout corrections (specification §4)."""
    perturbation: Perturbation | None = None
    """The noise of numerator ``perturbed``."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("loss_form", self.loss_form, losses.names())
        if self.numerator == "current" and self.perturbation is not None:
            raise ValueError(f"method '{self.name}' has no perturbation: choose token_alp or seq_alp")
        if self.numerator == "perturbed" and self.perturbation is None:
            raise ValueError("numerator 'perturbed' and a perturbation block go together: one is set without the other")
        if self.denominator == "rollout" and self.correction_acts:
            raise ValueError(
                "a rollout correction on top of denominator 'rollout' would correct twice: use denominator 'old'"
            )

    @property
    def correction_acts(self) -> bool:
        """Whether any rollout correction does anything."""
        return any(correction.acts for correction in self.corrections)

    @cached_property
    def token_loss(self) -> losses.TokenLoss:
        """The function ``loss_form`` with its options. Raises ValueError for options that it does not take."""
        return losses.find(self.loss_form, self.loss_options)

    def check_loss(self) -> None:
        """Raises ValueError for ``loss_options`` that the loss does not take."""
        losses.find(self.loss_form, self.loss_options)

    def correct(self, old_log_probs: Tensor | None, rollout_log_probs: Tensor | None, mask: Tensor) -> Corrected:
        """What the corrections leave of a batch, every argument (batch, tokens); ``mask`` is the response mask.

        A log-prob that neither a correction nor the denominator reads may be None. Raises ValueError for wrong shapes
        and dtypes, a policy that is missing, NaN on a valid token.
        """
        corrected: Corrected = _composition().correct(self, old_log_probs, rollout_log_probs, mask)
        return corrected

    def loss(self, inputs: LossInputs) -> LossOutputs:
        """Ratio, correction, loss, aggregation and KL of ``inputs``. Nothing waits for the device, unless the inputs
        are not corrected or counted yet, a mask is not boolean, or the level is ``turn``.

        Raises ValueError naming what is wrong or missing.
        """
        outputs: LossOutputs = _composition().loss(self, inputs)
        return outputs


@dataclass(frozen=True)
class Corrected:
    """What the rollout corrections left of a batch, detached."""

    weights: Tensor
    """(batch, tokens), the factor of each token's loss."""
    mask: Tensor
    """(batch, tokens) booleans: the tokens that the loss and its normaliser count."""
    metrics: dict[str, Tensor]
    """``correction/masked_tokens``, ``correction/masked_sequences``: shares of what was valid, 0-dim float64."""


@dataclass(frozen=True)
class Counts:
    """Of a whole mini-batch after correction (``composition.count``): the losses of its micro-batches add up to its
    loss."""

    normaliser: int
    """What the sum of the losses is divided by: valid tokens, or sequences with any (``aggregation``)."""
    tokens: int
    """Valid tokens: the KL penalty is their mean, and so are the shares among the metrics."""


@dataclass(frozen=True, kw_only=True)
class LossInputs:
    """A mini-batch or a micro-batch: tensors (batch, tokens) unless said otherwise, of the sampled tokens, at the
    sampling temperature. What a method does not read may stay None."""

    log_probs: Tensor
    """The numerator, with its gradient: log π_θ, or log π_θ,δ computed under the noise."""
    response_mask: Tensor
    """1 on response tokens that count: what ratios are aggregated over. What lies under 0 is never read."""
    advantages: Tensor
    """(batch,) or (batch, tokens)."""
    old_log_probs: Tensor | None = None
    """log π_old."""
    rollout_log_probs: Tensor | None = None
    """log μ, as the engine returned it."""
    ref_log_probs: Tensor | None = None
    """log π_ref of the KL penalty; None: no penalty."""
    turn_ids: Tensor | None = None
    """Integers that count turns from 0, for level ``turn``."""
    kl: float = 0.0
    """Coefficient of the k3 penalty."""
    weights: Tensor | None = None
    """Those of :meth:`Method.correct` over the whole rollout batch, with ``loss_mask``; None: computed here."""
    loss_mask: Tensor | None = None
    """The mask after correction."""
    counts: Counts | None = None
    """Those of the mini-batch that this is a part of; None: this is all of it."""


@dataclass(frozen=True)
class LossOutputs:
    """The loss and its metrics, on the device."""

    loss: Tensor
    """0-dim, with its gradient: the share of the mini-batch's loss, the KL penalty included."""
    metrics: dict[str, Tensor]
    """0-dim float64; summed over the micro-batches they are those of the mini-batch."""
    raw_log_ratio: Tensor
    """(batch, tokens), detached: numerator minus denominator before aggregation, clamp and clip; 0 where masked."""

    def floats(self) -> dict[str, float]:
        """The metrics on the host, in one transfer."""
        import torch

        values: list[float] = torch.stack(list(self.metrics.values())).tolist()
        return dict(zip(self.metrics, values, strict=True))


def check_fields(settings: Any) -> None:
    """Choices and bounds of a dataclass's fields, as its annotations and metadata state them. Raises ValueError."""
    for setting in fields(settings):
        value, hint = getattr(settings, setting.name), type_hints(type(settings))[setting.name]
        if get_origin(hint) is Literal:
            check_choice(setting.name, value, get_args(hint))
        if value is None:
            continue
        for word, bound in setting.metadata.items():
            inside = {"ge": value >= bound, "gt": value > bound, "le": value <= bound}[word]
            if not inside:  # nor is NaN
                raise ValueError(f"{setting.name}: {_WORDS[word]} {bound} expected, got {value}")


_WORDS = {"ge": "at least", "gt": "more than", "le": "at most"}


def type_hints(kind: type[Any]) -> dict[str, Any]:
    """The resolved annotations of a dataclass."""
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _composition() -> Any:
    """By name: what reads a method's settings needs neither torch nor the code of its loss, and stays as it is when
    that changes."""
    return import_module(f"{__package__}.composition")


_HINTS: dict[type[Any], dict[str, Any]] = {}
