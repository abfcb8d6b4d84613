"""One optimizer step on one mini-batch: the method's ratio, its loss over the whole mini-batch, clipping, noise
projected."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from alp.configuration.train_schema import Trainer
from alp.policy.composition import count, survey
from alp.policy.method import Counts, LossInputs, LossOutputs, Method
from alp.policy.perturbation import LayerwisePerturbation
from alp.training.attention import strict
from alp.training.batch import Batch
from alp.training.compiled import MULTIPLE, CompiledLayers
from alp.training.distributed import ALONE, World
from alp.training.forward import token_log_probs
from alp.training.head import Head
from alp.training.masters import Masters


@dataclass
class UpdateResult:
    """What one update did; ``noise`` per perturbed layer: realised and hidden RMS, mean σ, gradient of log σ."""

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
        head: Head | None = None,
        masters: Masters | None = None,
        compiled: CompiledLayers | None = None,
        world: World = ALONE,
    ) -> None:
        self.compiled, self.world = compiled, world
        self.model, self.method, self.trainer, self.head, self.masters = model, method, trainer, head, masters
        self.perturbation, self.temperature, self.reference = perturbation, temperature, reference
        self.skipped_in_a_row = 0
        self.perturbed_updates = 0
        groups: list[dict[str, Any]] = [
            {
                "params": [weight for weight in self._weights() if weight.requires_grad],
                "lr": trainer.lr,
                "weight_decay": trainer.weight_decay,
            }
        ]
        noise = self._noise_parameters = list(perturbation.parameters()) if perturbation is not None else []
        self.clipped = groups[0]["params"]  # together, to the global norm
        if noise and method.perturbation is not None:
            settings = method.perturbation
            groups.append({"params": noise, "lr": settings.lr, "weight_decay": settings.weight_decay})
            if settings.in_global_norm:
                self.clipped = [*self.clipped, *noise]
        self.optimizer = torch.optim.AdamW(groups, fused=True)

    def _weights(self) -> list[nn.Parameter]:
        """What the optimizer steps, and what else the model has."""
        return list(self.model.parameters() if self.masters is None else self.masters.weights.values())

    def update(self, batch: Batch, index: int) -> tuple[Tensor, UpdateResult]:
        """Step on the mini-batch ``batch`` as update number ``index`` of the run.

        Returns numerator minus denominator, (batch, tokens), before clamping, 0 where masked; and what was done. Its
        figures come to the host in one transfer. Raises RuntimeError after too many skips.
        """
        self.optimizer.zero_grad(set_to_none=True)
        counts = count(self.method, batch.loss_mask)
        if self.method.surveys:
            counts = survey(self.method, self._inputs(batch, self._surveyed(batch, index)), counts)
        raw = torch.zeros_like(batch.rollout_log_probs)
        totals: dict[str, Tensor] = {}
        zero = torch.zeros((), dtype=torch.float64, device=raw.device)
        squares = torch.zeros((), dtype=torch.float64, device=raw.device)
        measured = self._measured(batch)
        for rows, piece in self._pieces(batch):
            outputs = self._backward(piece, index, counts)
            if self.masters is not None:
                self.masters.gather_gradients()
            if measured is not None and self._noise is not None:
                squares = squares + self._squares(self._noise, piece) * measured[rows].any()
            width = min(outputs.raw_log_ratio.shape[1], raw.shape[1])
            raw[rows, :width] = outputs.raw_log_ratio[: len(rows), :width]
            for name, value in outputs.metrics.items():
                totals[name] = totals.get(name, zero) + value
        raw, totals, squares = self.world.sum(raw), self.world.sums(totals), self.world.sum(squares)
        self.world.sum_gradients(self._noise_parameters)
        norm = self.world.norm(self.clipped)
        totals["policy/grad_norm"] = norm.double()
        means = None if measured is None or not squares.dim() else squares / batch.lengths[measured].sum()
        metrics, noise = self._to_host(totals, means)
        skipped = self._finish(norm, metrics["policy/grad_norm"], noise, empty=not counts.normaliser)
        # A figure that is not finite belongs to a skip, and skips are counted.
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return raw, UpdateResult(finite, skipped, noise)

    @property
    def _noise(self) -> LayerwisePerturbation | None:
        """What perturbs the model, if anything does."""
        return self.perturbation if self.perturbation is not None and self.perturbation.enabled else None

    def _measured(self, batch: Batch) -> Tensor | None:
        """The rows (batch,) whose noise is measured piece by piece: all, or those of the last forward of one process.
        None: as the last forward left it."""
        trainer = self.trainer
        if trainer.micro_tokens is None and self.world.size == 1:
            return None
        measured = torch.ones_like(batch.lengths, dtype=torch.bool)
        if trainer.micro_tokens is None and trainer.micro_batch is not None:
            measured[: (len(batch) - 1) // trainer.micro_batch * trainer.micro_batch] = False
        return measured

    @staticmethod
    def _squares(noise: LayerwisePerturbation, piece: Batch) -> Tensor:
        """Realised and hidden squares of the last forward, and σ, summed over its tokens, (3, layers): means are over
        tokens."""
        sizes = torch.stack([noise.realised_rms, noise.hidden_rms]).to(piece.lengths.device).double().square()
        return torch.cat([sizes, noise.mean_std.to(sizes)[None]]) * piece.lengths.sum()

    def _backward(self, piece: Batch, index: int, counts: Counts) -> LossOutputs:
        """Forward and backward of one micro-batch, as its share of the mini-batch's loss."""
        with self._forward(piece, index) as log_probs:
            outputs = self.method.loss(replace(self._inputs(piece, log_probs), counts=counts))
            with strict(self.trainer.deterministic_attention):
                outputs.loss.backward()
        return outputs

    @contextmanager
    def _forward(self, piece: Batch, index: int) -> Iterator[Tensor]:
        """The numerator's log-probs of a micro-batch, in the surroundings in which its backward runs."""
        active = (
            self._noise.active(update=index, sequence_ids=piece.sequence_ids, attention_mask=piece.attention_mask)
            if self._noise is not None
            else nullcontext()
        )
        with active, nullcontext() if self.compiled is None else self.compiled.used():
            log_probs, _ = token_log_probs(self.model, piece, self.temperature, head=self.head)
            yield log_probs

    def _pieces(self, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """This rank's micro-batches, as (row indices, rows)."""
        multiple = 1 if self.compiled is None else MULTIPLE
        return self.world.pieces(batch, self.trainer.micro_batch, self.trainer.micro_tokens, multiple)

    def _inputs(self, piece: Batch, log_probs: Tensor) -> LossInputs:
        return LossInputs(
            log_probs=log_probs,
            old_log_probs=piece.old_log_probs if self.trainer.old_log_probs else None,
            rollout_log_probs=piece.rollout_log_probs,
            ref_log_probs=piece.ref_log_probs if self.reference else None,
            response_mask=piece.response_mask,
            advantages=piece.advantages,
            rewards=piece.rewards,
            turn_ids=piece.turn_ids,
            kl=self.trainer.kl,
            weights=piece.weights,
            loss_mask=piece.loss_mask,
        )

    @torch.no_grad()
    def _surveyed(self, batch: Batch, index: int) -> Tensor:
        """The numerator's log-probs of the whole mini-batch before its update, where the method asks for them; costs a
        forward."""
        log_probs = torch.zeros_like(batch.rollout_log_probs)
        if not self.method.surveys_policy:
            return log_probs
        for rows, piece in self._pieces(batch):
            with self._forward(piece, index) as part:
                width = min(part.shape[1], log_probs.shape[1])
                log_probs[rows, :width] = part[: len(rows), :width]
        return self.world.sum(log_probs)

    def _to_host(
        self, totals: dict[str, Tensor], means: Tensor | None
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The metrics, and the noise per layer: ``means`` of squares and of σ (3, layers), or as its last forward left
        it."""
        noise = self._noise
        layers: dict[str, Tensor] = {}
        if noise is not None:
            layers = {"realised_rms": noise.realised_rms, "hidden_rms": noise.hidden_rms, "std": noise.mean_std}
            if means is not None:
                layers = dict(zip(layers, [*means[:2].sqrt(), means[2]], strict=True))
            layers["grad"] = noise.std_grad
        device = totals["policy/grad_norm"].device
        parts = [torch.stack(list(totals.values())), *(value.double().to(device) for value in layers.values())]
        values = iter(torch.cat(parts).tolist())
        metrics = {name: next(values) for name in totals}
        return metrics, {name: [next(values) for _ in range(len(value))] for name, value in layers.items()}

    def _finish(self, norm: Tensor, norm_value: float, noise: dict[str, list[float]], *, empty: bool) -> bool:
        """Clip and step, or skip and count; whether it was skipped."""
        if noise:
            # One layer's noise may round to nothing; all of them are a method that is off.
            if not any(noise["realised_rms"]):
                raise RuntimeError("perturbation on, but nothing was added in any layer: the realised RMS is 0")
            self.perturbed_updates += 1
        finite = all(map(math.isfinite, [norm_value, *noise.get("grad", [])]))
        if not finite or empty:
            self.skipped_in_a_row += not finite  # an empty loss is no sign of divergence
            if self.skipped_in_a_row >= self.trainer.max_skipped:
                raise RuntimeError(
                    f"{self.skipped_in_a_row} updates skipped in a row: the gradient norm is {norm_value}"
                )
            return True
        self.skipped_in_a_row = 0
        self.world.clip(self.clipped, self.trainer.max_grad_norm, norm)
        self.optimizer.step()
        if self.masters is not None:
            self.masters.copy_back()
        if self.perturbation is not None:
            self.perturbation.project_()
        return False

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and counters."""
        return {
            "optimizer": self.world.optimizer_state(self.optimizer.state_dict()),
            "skipped": self.skipped_in_a_row,
            "perturbed": self.perturbed_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.optimizer.load_state_dict(self.world.cut_state(state["optimizer"], self.optimizer))
        self.skipped_in_a_row, self.perturbed_updates = state["skipped"], state["perturbed"]
