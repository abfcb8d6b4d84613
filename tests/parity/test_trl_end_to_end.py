"""Two optimizer steps of `GRPOTrainer.train()` on a real model, nothing prescribed but the rollout, against our
`Updater`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alp.configuration import compose
from alp.models import load_model
from alp.policy import group_advantages
from alp.rollout.episodes import Trajectory
from alp.training.batch import Batch, collate
from alp.training.forward import frozen_log_probs, token_log_probs
from alp.training.update import Updater

from .cases import Case, random_case
from .trl_side import FIRST_ROW_TOKEN, TrlSide

TEMPERATURE = 0.7
ROWS, SAMPLES = 8, 4
DEVICE = torch.device("cpu")
Weights = dict[str, Tensor]

# Our words, TRL's configuration of the same method.
METHODS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "token_tis": (
        ["method=token_tis"],
        {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 2.0},
    ),
    "gspo": (
        [
            *("method=gspo", "method.clip_low=0.02", "method.clip_high=0.03", "method.dual_clip=10"),
            *("method.corrections=[{kind: mask_keep_denominator, level: sequence, upper: 3.0}]",),
        ],
        {"importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    ),
}


def sampled_near(model: Any, case: Case) -> list[Trajectory]:
    """Random tokens with the lengths, holes and rewards of the case, and log-probs of a policy near the model."""
    random = torch.Generator().manual_seed(11)
    trajectories = [
        Trajectory(
            prompt_ids=[FIRST_ROW_TOKEN, FIRST_ROW_TOKEN + row // SAMPLES, 5],
            response_ids=torch.randint(FIRST_ROW_TOKEN, 25, (length,), generator=random).tolist(),
            rollout_log_probs=[0.0] * length,
            response_mask=case.mask[row, :length].int().tolist(),
            turn_ids=[0] * length,
            finished=False,
            reward=case.rewards[row],
            group=row // SAMPLES,
        )
        for row, length in enumerate(case.lengths)
    ]
    own, _ = frozen_log_probs(
        model, collate(trajectories, pad_token_id=0, first_sequence=0, device=DEVICE), TEMPERATURE, None
    )
    near = own + 0.5 * torch.randn(own.shape, generator=random)
    return [
        replace(t, rollout_log_probs=near[i, len(t.prompt_ids) :][: len(t.response_ids)].tolist())
        for i, t in enumerate(trajectories)
    ]


def trained_by_trl(
    trl_side: TrlSide, case: Case, trajectories: list[Trajectory], options: dict[str, Any]
) -> list[tuple[Weights, Weights]]:
    """Weights before, and gradients in, two updates on one rollout batch, each in two micro-batches."""
    from transformers import TrainerCallback

    def rollout(prompts: list[str], trainer: Any) -> dict[str, list[Any]]:
        names = {
            "prompt_ids": "prompt_ids",
            "completion_ids": "response_ids",
            "logprobs": "rollout_log_probs",
            "env_mask": "response_mask",
        }
        return {theirs: [getattr(item, mine) for item in trajectories] for theirs, mine in names.items()}

    found: list[tuple[Weights, Weights]] = []

    class Record(TrainerCallback):
        """Copies weights and gradients before they are used."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            named = list(model.named_parameters())
            found.append(({n: p.detach().clone() for n, p in named}, {n: p.grad.clone() for n, p in named}))

    trainer = trl_side.trainer(
        case,
        rollout,
        correct=True,
        loss_type="dapo",
        delta=10.0,
        temperature=TEMPERATURE,
        per_device_train_batch_size=ROWS // 2,
        gradient_accumulation_steps=2,
        max_steps=2,
        learning_rate=0.3,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        save_strategy="no",
        gradient_checkpointing=False,
        **options,
    )
    trainer.add_callback(Record())
    trainer.train()
    return found


def prepared(trajectories: list[Trajectory], model: Any, method: Any) -> Batch:
    """The batch with old log-probs, correction and advantages; these with TRL's epsilon, which has a test of its
    own."""
    batch = collate(trajectories, pad_token_id=0, first_sequence=0, device=DEVICE)
    old, _ = frozen_log_probs(model, batch, TEMPERATURE, None)
    corrected = method.correct(old, batch.rollout_log_probs, batch.response_mask)
    spread = batch.rewards.view(-1, SAMPLES).std(-1).repeat_interleave(SAMPLES)
    advantages = group_advantages(batch.rewards, batch.groups) * (spread + 1e-6) / (spread + 1e-4)
    return batch.with_(
        old_log_probs=old, weights=corrected.weights, loss_mask=corrected.mask, advantages=advantages.float()
    )


@pytest.mark.parametrize("name", METHODS)
def test_parameter_gradients(trl_side: TrlSide, tmp_path: Path, name: str) -> None:
    """A fault that prescribed log-probs hide: temperature, a shift by one token, padding, accumulation, staleness of a
    second update.

    Neither side computes log-probs in anything wider than float32, hence a tolerance of 1e-5 of the largest gradient.
    """
    words, options = METHODS[name]
    case = random_case(5, rows=ROWS, samples=SAMPLES)
    model = load_model(trl_side.folder / "model", DEVICE)
    fixed = [
        "model.path='unused'",
        f"run.dir='{tmp_path}'",
        "trainer.device=cpu",
        "trainer.max_grad_norm=1e9",
        "trainer.micro_batch=3",
    ]
    job = compose.load("train", [*words, *fixed])
    trajectories = sampled_near(model, case)
    batch = prepared(trajectories, model, job.method)
    steps = trained_by_trl(trl_side, case, trajectories, options)
    assert len(steps) == 2
    ratios = []
    for weights, gradients in steps:
        model.load_state_dict(weights, strict=False)
        current, _ = token_log_probs(model, batch, TEMPERATURE)
        ratios.append((current.detach() - batch.old_log_probs)[batch.response_mask].abs().max())
        Updater(model, job.method, job.trainer, perturbation=None, temperature=TEMPERATURE, reference=False).update(
            batch, 0
        )
        size = max(float(gradient.abs().max()) for gradient in gradients.values())
        assert size > 1e-3
        for parameter, value in model.named_parameters():
            assert (value.grad - gradients[parameter]).abs().max() < 1e-5 * size, parameter
    assert ratios[0] < 1e-5 < 1e-2 < ratios[1], "the second update was to be off-policy"
