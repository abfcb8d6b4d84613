"""ALP in a training loop of one's own: `alp.policy` needs torch and a Hugging Face model, no trainer of ours.

    python examples/own_trainer.py

A tiny random model learns to prefer small token numbers. The rollout policy is the model rounded to bfloat16, so the
training code's log-probs differ from those that sampled; the ratio of the perturbed policy to that rollout policy
covers both gaps.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from alp.policy import LayerwisePerturbation, LossInputs, Method, group_advantages

VOCABULARY, PROMPT, LENGTH, PROMPTS, SAMPLES, UPDATES = 32, 2, 8, 8, 8, 4


def token_log_probs(model: Qwen2ForCausalLM, ids: Tensor) -> Tensor:
    """Log-probs of the response tokens, (batch, LENGTH), at temperature 1."""
    logits = model(input_ids=ids, use_cache=False).logits[:, PROMPT - 1 : -1].float()
    return logits.log_softmax(-1).gather(-1, ids[:, PROMPT:, None]).squeeze(-1)


@torch.no_grad()
def sample(model: Qwen2ForCausalLM, prompts: Tensor) -> Tensor:
    """Prompts and LENGTH sampled tokens."""
    ids = prompts
    for _ in range(LENGTH):
        probabilities = model(input_ids=ids, use_cache=False).logits[:, -1].float().softmax(-1)
        ids = torch.cat([ids, probabilities.multinomial(1)], dim=1)
    return ids


def train(steps: int = 20, seed: int = 0) -> list[float]:
    """Mean reward of every step."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model, engine = Qwen2ForCausalLM(config), Qwen2ForCausalLM(config).bfloat16()
    perturbation = LayerwisePerturbation(model, std=0.02, seed=seed)
    optimizer = torch.optim.AdamW(
        [
            {"params": model.parameters(), "lr": 3e-3},
            {"params": perturbation.parameters(), "lr": 1e-2, "weight_decay": 0.0},
        ]
    )
    method = Method(denominator="rollout", level="sequence", clip_low=0.5, clip_high=3.0)
    rewards = []
    for step in range(steps):
        engine.load_state_dict(model.state_dict())  # the noise is no part of the state
        prompts = torch.randint(VOCABULARY, (PROMPTS, PROMPT)).repeat_interleave(SAMPLES, dim=0)
        ids = sample(engine, prompts)
        with torch.no_grad():
            rollout_log_probs = token_log_probs(engine, ids)
        reward = (ids[:, PROMPT:] < VOCABULARY // 4).float().mean(-1)
        rewards.append(float(reward.mean()))
        advantages = group_advantages(reward, torch.arange(PROMPTS).repeat_interleave(SAMPLES))
        mask = torch.ones_like(rollout_log_probs, dtype=torch.bool)
        for number, rows in enumerate(torch.randperm(len(ids)).chunk(UPDATES)):
            optimizer.zero_grad()
            with perturbation.active(update=step * UPDATES + number, sequence_ids=step * len(ids) + rows):
                inputs = LossInputs(
                    log_probs=token_log_probs(model, ids[rows]),
                    rollout_log_probs=rollout_log_probs[rows],
                    response_mask=mask[rows],
                    advantages=advantages[rows],
                )
                method.loss(inputs).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            perturbation.project_()
        realised = ", ".join(f"{size:.4f}" for size in perturbation.realised_rms.tolist())
        print(f"step {step:2d}  reward {rewards[-1]:.3f}  noise {realised}", file=sys.stderr)
    return rewards


if __name__ == "__main__":
    train()
