"""One optimizer step on one mini-batch: the method's ratio, its loss over the whole mini-batch, clipping, noise
projected."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from alp.configuration.schema import Method, Trainer
from alp.policy import LayerwisePerturbation, kl_penalty, log_ratio, policy_loss
from alp.policy.objective import loss_normaliser
from alp.training.batch import Batch
from alp.training.forward import token_log_probs


@dataclass
class UpdateResult:
    """What one update did. ``raw`` is numerator minus denominator, (batch, tokens), before clamping; 0 where masked."""

    raw: Tensor
    metrics: dict[str, float]
    skipped: bool
    noise: dict[str, list[float]] = field(default_factory=dict)


class Updater:
    """Holds the optimizer, and counts the updates skipped in a row."""

    def __init__(
        self,
        model: Any,
        method: Method,
        trainer: Trainer,
        *,
        perturbation: LayerwisePerturbation | None,
        temperature: float,
        reference: bool,
    ) -> None:
        self.model, self.method, self.trainer = model, method, trainer
        self.perturbation, self.temperature, self.reference = perturbation, temperature, reference
        self.skipped_in_a_row = 0
        self.perturbed_updates = 0
        groups: list[dict[str, Any]] = [
            {"params": list(model.parameters()), "lr": trainer.lr, "weight_decay": trainer.weight_decay}
        ]
        noise = list(perturbation.parameters()) if perturbation is not None else []
        if noise and method.perturbation is not None:
            # No decay: it would pull σ towards 1. Not part of the clipped norm either.
            groups.append({"params": noise, "lr": method.perturbation.lr, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def update(self, batch: Batch, index: int) -> UpdateResult:
        """Step on the mini-batch ``batch`` as update number ``index`` of the run. Raises RuntimeError after too many
        skips."""
        self.optimizer.zero_grad(set_to_none=True)
        normaliser = loss_normaliser(batch.loss_mask, self.method.aggregation)
        tokens = loss_normaliser(batch.loss_mask, "token-mean")
        result = UpdateResult(torch.zeros_like(batch.rollout_log_probs), {}, skipped=False)
        totals: dict[str, float] = {}
        for rows, piece in batch.split(self.trainer.micro_batch):
            raw, metrics = self._accumulate(piece, index, normaliser, tokens, result)
            result.raw[rows, : raw.shape[1]] = raw
            for name, value in metrics.items():
                totals[name] = totals.get(name, 0.0) + value
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        totals["policy/grad_norm"] = float(norm)
        self._finish(result, norm, normaliser)
        result.metrics = {
            name: value for name, value in totals.items() if math.isfinite(value)
        }  # the others are skips, and counted
        return result

    def _accumulate(
        self, piece: Batch, index: int, normaliser: int, tokens: int, result: UpdateResult
    ) -> tuple[Tensor, dict[str, float]]:
        """Forward and backward of one micro-batch, as its share of the mini-batch's loss."""
        noise, method = self.perturbation, self.method
        active = (
            noise.active(update=index, sequence_ids=piece.sequence_ids, attention_mask=piece.attention_mask)
            if noise is not None and noise.enabled
            else nullcontext()
        )
        with active:
            log_probs, _ = token_log_probs(self.model, piece, self.temperature)
            denominator = piece.rollout_log_probs if method.denominator == "rollout" else piece.old_log_probs
            ratio = log_ratio(log_probs, denominator, piece.response_mask, level=method.level, turn_ids=piece.turn_ids)
            loss, shares = policy_loss(
                ratio,
                piece.advantages,
                piece.loss_mask,
                clip_low=method.clip_low,
                clip_high=method.clip_high,
                dual_clip=method.dual_clip,
                weights=piece.weights,
                normaliser=normaliser,
                aggregation=method.aggregation,
            )
            weight = float(piece.loss_mask.sum()) / max(tokens, 1)
            metrics = {name: share * weight for name, share in shares.items()}
            metrics["policy/loss"] = float(loss.detach())
            if self.reference:
                penalty = kl_penalty(log_probs, piece.ref_log_probs, piece.loss_mask).sum() / max(tokens, 1)
                metrics["policy/kl"] = float(penalty.detach())
                loss = loss + self.trainer.kl * penalty
            loss.backward()
        if noise is not None and noise.enabled:
            result.noise = {"realised_rms": noise.realised_rms.tolist(), "hidden_rms": noise.hidden_rms.tolist()}
        raw = torch.where(piece.response_mask, log_probs.detach() - denominator, 0.0)
        return raw, metrics

    def _finish(self, result: UpdateResult, norm: Tensor, normaliser: int) -> None:
        """Clip and step, or skip and count."""
        noise = self.perturbation
        if noise is not None and noise.enabled:
            result.noise["grad"] = noise.std_grad.tolist()
            if not any(
                result.noise["realised_rms"]
            ):  # one layer's may round to nothing, all of them are a method that is off
                raise RuntimeError("perturbation on, but nothing was added in any layer: the realised RMS is 0")
            self.perturbed_updates += 1
        finite = bool(norm.isfinite()) and (noise is None or bool(noise.std_grad.isfinite().all()))
        result.skipped = not finite or not normaliser
        if result.skipped:
            self.skipped_in_a_row += not finite  # an empty loss is no sign of divergence
            if self.skipped_in_a_row >= self.trainer.max_skipped:
                raise RuntimeError(
                    f"{self.skipped_in_a_row} updates skipped in a row: the gradient norm is {float(norm)}"
                )
            return
        self.skipped_in_a_row = 0
        torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.trainer.max_grad_norm, norm)
        self.optimizer.step()
        if noise is not None:
            noise.project_()

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and counters."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "skipped": self.skipped_in_a_row,
            "perturbed": self.perturbed_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped_in_a_row, self.perturbed_updates = state["skipped"], state["perturbed"]
