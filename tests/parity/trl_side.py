"""TRL's side: a real `GRPOTrainer` on a tiny random model, told which log-probs its forward passes return.

TRL's own code builds the batch from a rollout, scores it (`_generate_and_score_completions`: masks, old and reference
log-probs, importance-sampling correction, rewards, advantages), splits it (`_prepare_inputs`) and computes the loss
(`compute_loss`). Two seams: the public `rollout_func` hands over tokens, sampling log-probs and the tool mask; and
`_get_per_token_logps_and_entropies`, the model's forward, looks its answer up in a `Case` by the row's first prompt
token. `test_trl_end_to_end.py` leaves the forward alone as well. `use_vllm` is switched on after construction, because
the constructor would start an engine; in what runs here it decides whether the correction applies and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from alp.models import build_embedded, character_tokenizer, save_model

from .cases import Case

FIRST_ROW_TOKEN = 2  # after padding and end of sequence
POSITIONS = 16  # max_completion_length: wider than any case
CLIPS: dict[str, Any] = {"epsilon": 0.2, "epsilon_high": 0.28}
ALPHABET = "0123456789abcdefghijklmnop"


@dataclass
class Scored:
    """A generation batch as TRL prepared it, and the trainer that did."""

    trainer: Any
    inputs: dict[str, Tensor]
    current: Tensor

    @property
    def advantages(self) -> Tensor:
        """One per row."""
        return self.inputs["advantages"]

    @property
    def weights(self) -> Tensor:
        """Importance-sampling weights, (rows, tokens) or (rows, 1)."""
        return self.inputs["importance_sampling_ratio"]

    def metric(self, name: str) -> float:
        """The figure logged last under that name."""
        return float(self.trainer._metrics["train"][name][-1])

    def loss(self, inputs: dict[str, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """TRL's loss and its gradient in the current log-probs (rows, tokens)."""
        self.current.grad = None
        loss = self.trainer.compute_loss(self.trainer.model, self.inputs if inputs is None else inputs)
        loss.backward()
        assert self.current.grad is not None
        return loss.detach(), self.current.grad.clone()


class TrlSide:
    """Makes trainers on one saved model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = character_tokenizer(ALPHABET)
        size: Any = SimpleNamespace(hidden=16, intermediate=32, layers=2, heads=2)
        save_model(build_embedded(size, self.tokenizer, seed=3), self.tokenizer, folder / "model")

    def trainer(
        self,
        case: Case,
        rollout: Callable[..., Any] | None = None,
        *,
        correct: bool = False,
        geometric: bool = False,
        **config: Any,
    ) -> Any:
        """A trainer for batches of this case, its forward untouched; ``geometric``: TRL's experimental GMPO."""
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        kind, settings = GRPOTrainer, GRPOConfig
        if geometric:
            from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

            kind, settings = GMPOTrainer, GMPOConfig

        defaults = {
            "per_device_train_batch_size": case.rows,
            "num_generations": case.samples,
            # A second pass over each rollout: otherwise TRL would not compute π_old without the correction.
            "num_iterations": 2,
            "max_completion_length": POSITIONS,
            **CLIPS,
        }
        arguments = settings(
            output_dir=str(self.folder / "out"),
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
            **{**defaults, **config},
        )
        trainer = kind(
            model=str(self.folder / "model"),
            reward_funcs=lambda completions, **_: list(case.rewards),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["0"] * case.rows}),
            processing_class=self.tokenizer,
            rollout_func=rollout or (lambda prompts, _: sampled(case)),
        )
        trainer.use_vllm = correct
        trainer._last_loaded_step = 0
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = arguments.gradient_accumulation_steps
        return trainer

    def score(self, case: Case, *, dtype: torch.dtype = torch.float64, **options: Any) -> Scored:
        """TRL's own scoring of one generation batch, all rows in order."""
        trainer, current = self._prescribed(case, **options)
        with default_dtype(dtype):
            inputs = trainer._generate_and_score_completions([{"prompt": "0"}] * case.rows)
        return Scored(trainer, inputs, current)

    def pieces(self, case: Case, **options: Any) -> tuple[Scored, list[dict[str, Tensor]]]:
        """The same through TRL's own shuffling and splitting: the micro-batches of one generation batch."""
        trainer, current = self._prescribed(case, **options)
        pieces = []
        with default_dtype(torch.float64):
            for step in range(trainer.args.steps_per_generation):
                trainer._step = step
                pieces.append(trainer._prepare_inputs([{"prompt": "0"}] * case.rows))
        return Scored(trainer, pieces[0], current), pieces

    def _prescribed(self, case: Case, **options: Any) -> tuple[Any, Tensor]:
        trainer = self.trainer(case, **options)
        current = case.current.clone().requires_grad_()

        def forward(model: Any, input_ids: Tensor, *_: Any, **asked: Any) -> tuple[Tensor, Any, None]:
            in_loss = bool(
                asked.get("compute_entropy")
            )  # TRL asks for entropies with the loss, not when it scores a rollout
            table = case.reference if model is trainer.ref_model else current if in_loss else case.old
            values = table[rows_of(input_ids)]
            return values, torch.zeros_like(values) if in_loss else None, None

        trainer._get_per_token_logps_and_entropies = forward
        return trainer, current


def rows_of(prompt_ids: Tensor) -> Tensor:
    """Which rows of the case these are: the first prompt token tells."""
    return prompt_ids[:, 0] - FIRST_ROW_TOKEN


def sampled(case: Case) -> dict[str, list[Any]]:
    """What an engine would hand over for this case."""
    return {
        "prompt_ids": [[FIRST_ROW_TOKEN + row] for row in range(case.rows)],
        "completion_ids": [[FIRST_ROW_TOKEN] * length for length in case.lengths],
        "logprobs": [row[:length] for row, length in zip(case.rollout.tolist(), case.lengths, strict=True)],
        "env_mask": [row[:length] for row, length in zip(case.mask.int().tolist(), case.lengths, strict=True)],
    }


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """TRL builds sampling log-probs and rewards in torch's default dtype: float64 makes rounding no excuse."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
