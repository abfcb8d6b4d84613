"""The one contract of a method: plain data with a default for every field, what its loss is given, what it returns.

Trainer, ``alp diagnose`` and tests call :meth:`Method.loss`; the composition of ratio, correction, loss and aggregation
stands in composition.py alone. That module, and torch with it, is loaded by the first call: a configuration can be read
and checked where there is no torch. Specification: docs/method.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from . import losses
from .bands import FORM, in_band, is_band
from .choices import check_choice
from .correction_settings import LEGS, POLICIES, Correction
from .settings import bounded, check_fields

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Corrected",
    "Correction",
    "Counts",
    "Level",
    "LossInputs",
    "LossOutputs",
    "Method",
    "Perturbation",
]

Level = Literal["token", "sequence", "sequence_geometric", "prefix", "turn", "turn_geometric"]


@dataclass(frozen=True)
class Perturbation:
    """Layerwise noise (docs/method.md, Perturbation)."""

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
    """One off-policy method: one row of the preset table (docs/method.md, Presets). The defaults are those of GRPO."""

    name: str = "custom"
    """What it is called in folders, tables and figures."""
    numerator: Literal["current", "perturbed"] = "current"
    """π_θ, or π_θ,δ: the current policy under layerwise noise."""
    denominator: Literal["old", "rollout"] = "old"
    """π_old: the sampling weights as the training code computes them; or μ: as the inference engine does."""
    level: Level = "token"
    """Level of the ratio (docs/method.md, Ratios)."""
    loss_form: str = "clip"
    """The loss of a token: a name in ``alp/policy/losses``; ``alp methods`` lists them with their formulas."""
    loss_options: dict[str, float] = field(default_factory=dict)
    """Keyword arguments of that loss that are its own."""
    clip_low: float | None = bounded(0.2, ge=0, le=1)
    """The ratio is clipped to [1 - clip_low, …]; none, and clip_high with it: for a loss without such a range."""
    clip_high: float | None = bounded(0.28, ge=0)
    """The ratio is clipped to […, 1 + clip_high]."""
    dual_clip: float | None = bounded(10.0, gt=1)
    """Where A < 0 the loss is at most -dual_clip · A; none: no such ceiling."""
    log_square: float = bounded(0.0, ge=0)
    """Coefficient of the squared log-ratio that is added to the loss of every token that counts, whatever the
    corrections' weights."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "token-mean"
    """How the losses of tokens become that of the mini-batch (docs/method.md, Objective)."""
    corrections: list[Correction] = field(default_factory=list)
    """Rollout corrections (docs/method.md, Corrections)."""
    perturbation: Perturbation | None = None
    """The noise of numerator ``perturbed``."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.numerator == "current" and self.perturbation is not None:
            raise ValueError(f"method '{self.name}' has no perturbation: choose token_alp or seq_alp")
        if self.numerator == "perturbed" and self.perturbation is None:
            raise ValueError("numerator 'perturbed' and a perturbation block go together: one is set without the other")
        self._check_form()
        self._check_weights()

    def _check_form(self) -> None:
        """What the loss does not read must be empty, and what it reads must be there."""
        form, name = self.form, self.loss_form
        form.check(name, self.loss_options)
        for clip in losses.CLIPS:
            value = getattr(self, clip)
            if clip not in form.reads and value is not None:
                raise ValueError(f"{clip}: loss '{name}' has no such clip and would ignore {value}: leave {clip} empty")
            if clip in form.reads and value is None and clip != "dual_clip":
                raise ValueError(f"{clip}: loss '{name}' needs one")
        if form.aggregation not in (None, self.aggregation):
            raise ValueError(
                f"aggregation: loss '{name}' is one value a sequence: only '{form.aggregation}', not"
                f" '{self.aggregation}'"
            )
        if not self.reads_ratio and self.level != "token":
            raise ValueError(f"level: loss '{name}' reads no ratio and would ignore '{self.level}'")
        if self.log_square and self.level != "token":
            raise ValueError(f"log_square: of a token's log-ratio, not at level '{self.level}'")

    def _check_weights(self) -> None:
        """Between two policies that a ratio of the loss or a correction weighs, no other may weigh again."""
        own = {"old": "current_old", "rollout": "current_rollout"}[self.denominator]
        weighed = dict.fromkeys(LEGS[own], f"denominator '{self.denominator}'") if "ratio" in self.form.reads else {}
        for correction in self.corrections:
            if not correction.weighs:
                continue
            for leg in sorted(LEGS[correction.between]):
                if leg not in weighed:
                    continue
                if self.denominator == "rollout" and correction.between == "old_rollout" and "ratio" in self.form.reads:
                    raise ValueError(
                        "a rollout correction on top of denominator 'rollout' would correct twice: use denominator"
                        " 'old', or weight 'one'"
                    )
                raise ValueError(
                    f"corrections: two weights for one ratio: {weighed[leg]} and a {correction.kind} between"
                    f" '{correction.between}' both weigh the {leg}; give one of them weight 'one'"
                )
            weighed |= dict.fromkeys(LEGS[correction.between], f"a {correction.kind} between '{correction.between}'")

    @property
    def correction_acts(self) -> bool:
        """Whether any rollout correction does anything."""
        return any(correction.acts for correction in self.corrections)

    @property
    def reads_ratio(self) -> bool:
        """Whether the loss has a ratio of its own, beside those of the corrections."""
        return "ratio" in self.form.reads or self.log_square > 0

    @property
    def reads_old(self) -> bool:
        """Whether log π_old is needed: by the ratio, its figures, or a correction."""
        return self.denominator == "old" or any(
            correction.acts and "old" in POLICIES[correction.between] for correction in self.corrections
        )

    @property
    def surveys(self) -> bool:
        """Whether an update needs figures of its whole mini-batch (``composition.survey``) before any part of it."""
        return self.form.survey is not None or any(correction.surveys for correction in self.corrections)

    @property
    def surveys_policy(self) -> bool:
        """Whether those figures need the current policy: a forward of the mini-batch without gradient."""
        return (self.form.survey is not None and self.form.survey_reads_policy) or any(
            correction.surveys for correction in self.corrections
        )

    @cached_property
    def form(self) -> losses.Form:
        """The loss that ``loss_form`` names. Raises ValueError for an unknown one."""
        return losses.find(self.loss_form)

    @cached_property
    def token_loss(self) -> losses.TokenLoss:
        """Its function, with its options."""
        return self.form.bound(self.loss_options)

    def correct(self, old_log_probs: Tensor | None, rollout_log_probs: Tensor | None, mask: Tensor) -> Corrected:
        """What the corrections of a rollout batch leave of it, every argument (batch, tokens); ``mask`` is the response
        mask. Those that read the current policy or the advantages wait for :meth:`loss`.

        A log-prob that neither a correction nor the denominator reads may be None. Raises ValueError for wrong shapes
        and dtypes, a policy that is missing, NaN on a valid token.
        """
        corrected: Corrected = _composition().correct(self, old_log_probs, rollout_log_probs, mask)
        return corrected

    def loss(self, inputs: LossInputs) -> LossOutputs:
        """Ratio, correction, loss, aggregation and KL of ``inputs``. Nothing waits for the device, unless the inputs
        are not corrected or counted yet, a mask is not boolean, or the level is one of turns.

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
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """0-dim: what a method that ``surveys`` found in the mini-batch (``composition.survey``)."""


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
    """Integers that count turns from 0, for the levels ``turn`` and ``turn_geometric``."""
    rewards: Tensor | None = None
    """(batch,), for losses that read them."""
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


def _composition() -> Any:
    """By name: what reads a method's settings needs neither torch nor the code of its loss, and stays as it is when
    that changes."""
    return import_module(f"{__package__}.composition")
