"""Rollouts of real models, and faults put into them: what `benchmarks.causes` judges.

An engine (the model in another precision, Hugging Face's `generate` with its own logits processors and a KV cache)
samples, the training code (float32) scores, and one fault is put in: into the forward pass, the sampling, the ids, the
weights or the file, whichever it is of. Every fault has three strengths.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alp.rollout.hf import quantise

STEPS = 8
STRENGTHS = (0, 1, 2)
ENGINES = ("float32", "bfloat16", "float16", "int8")
FAULTS = (  # of every model, in the order of the matrix
    *("temperature", "top-p, top-k", "off by one", "retokenised", "other prompt", "stale", "quantised", "placeholders"),
    *("padding", "wrong sequences", "draft model", "wrong head"),
)
ROUTING = "routing"
OF_MODEL = {  # which faults and engines a model is tried with
    "embedded": (FAULTS, ENGINES),
    "experts": ((ROUTING,), ENGINES),
    "SmolLM2": (FAULTS, ENGINES),
}
Rows = list[list[int]]
Pair = tuple[list[list[float]], list[list[float]]]


class Lab:
    """A model, its prompts, and what can be done to them: ``rows`` sequences a step of at most ``longest`` tokens."""

    def __init__(self, folder: Path, rows: int, longest: int, ask: Callable[[int, int], str], batch: int = 256) -> None:
        from alp import models

        self.model = models.load_model(folder, torch.device("cpu")).eval()
        self.tokenizer = models.load_tokenizer(folder)
        self.pad, self.end = int(self.tokenizer.pad_token_id), int(self.tokenizer.eos_token_id)
        self.encode: Callable[[str], list[int]] = self.tokenizer.encode
        self.rows, self.longest, self.batch, self.ask = rows, longest, batch, ask

    def prompts(self, random: np.random.Generator) -> Rows:
        """Sums of two numbers below 100, one a sequence, step by step."""
        return [self.encode(self.ask(a, b)) for a, b in random.integers(0, 100, size=(STEPS * self.rows, 2)).tolist()]

    @torch.no_grad()
    def sample(self, engine: Any, prompts: Rows, seed: int, **processed: float) -> tuple[Rows, list[list[float]]]:
        """Responses to the end token, and the log-probs of what they were drawn from. ``processed``: temperature,
        top_p, top_k."""
        torch.manual_seed(seed)
        responses: Rows = []
        chosen: list[list[float]] = []
        for start in range(0, len(prompts), self.batch):
            part = prompts[start : start + self.batch]
            width = max(map(len, part))
            made = engine.generate(
                input_ids=torch.tensor([[self.pad] * (width - len(row)) + row for row in part]),
                attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part]),
                **({"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0} | processed),
                max_new_tokens=self.longest,
                pad_token_id=self.pad,
                eos_token_id=self.end,
                output_scores=True,
                return_dict_in_generate=True,
            )
            ids = made.sequences[:, width:]
            steps = [
                scores.float().log_softmax(-1).gather(1, ids[:, [i]])[:, 0] for i, scores in enumerate(made.scores)
            ]
            log_probs = torch.stack(steps, 1)
            for row, values in zip(ids.tolist(), log_probs.tolist(), strict=True):
                length = row.index(self.end) + 1 if self.end in row else len(row)
                responses.append(row[:length])
                chosen.append(values[:length])
        return responses, chosen

    @torch.no_grad()
    def score(self, model: Any, prompts: Rows, responses: Rows) -> list[list[float]]:
        """Log-probs of responses."""
        found: list[list[float]] = []
        for start in range(0, len(prompts), self.batch):
            rows = slice(start, start + self.batch)
            found += [row.tolist() for row in self.scored(model, prompts[rows], responses[rows])]
        return found

    def scored(self, model: Any, prompts: Rows, responses: Rows) -> list[Tensor]:
        """The same with its gradient."""
        sequences = [prompt + response for prompt, response in zip(prompts, responses, strict=True)]
        width = max(map(len, sequences))
        ids = torch.tensor([row + [self.pad] * (width - len(row)) for row in sequences])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sequences])
        log_probs = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float().log_softmax(-1)
        found = []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            places = torch.arange(len(prompt) - 1, len(prompt) + len(response) - 1)
            found.append(log_probs[row, places, torch.tensor(response)])
        return found


def _in_float32(module: Any, values: Tensor) -> Tensor:
    """A product of half-precision numbers, summed in float32 and rounded once, as units for it do: torch's own is seven
    times slower on a CPU that has none."""
    product = torch.nn.functional.linear(values.float(), module.weight.float())
    return (product if module.bias is None else product + module.bias).to(values.dtype)


def in_half(made: Any, dtype: torch.dtype) -> Any:
    """``made`` with weights and activations in ``dtype``."""
    made.to(dtype)
    for module in made.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = partial(_in_float32, module)
    return made


def served(model: Any, kind: str) -> Any:
    """A copy of the model as an engine of that kind has it."""
    made = copy.deepcopy(model)
    if kind == "int8":
        for module in made.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.data = quantise(module.weight.data)
        kind = "bfloat16"
    return made if kind == "float32" else in_half(made, getattr(torch, kind))


def rounded(model: Any, bits: int) -> Any:
    """A copy with matrices rounded per row to so many bits, in bfloat16."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if parameter.ndim == 2:
            scale = parameter.data.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
            parameter.data = (parameter.data / scale).round() * scale
    return in_half(made, torch.bfloat16)


class Run:
    """Rollouts of one seed, clean, and each fault put into them."""

    def __init__(self, lab: Lab, seed: int, kind: str = "bfloat16") -> None:
        self.lab, self.seed, self.random = lab, seed, np.random.default_rng(seed)
        self.engine = served(lab.model, kind)
        self.prompts = lab.prompts(self.random)
        self.responses, self.rollout = lab.sample(self.engine, self.prompts, seed)
        self.old = lab.score(lab.model, self.prompts, self.responses)

    def put_in(self, fault: str, strength: int) -> Pair:
        """(π_old, μ), lists per sequence; the same whatever else was made before."""
        self.random = np.random.default_rng((self.seed, [*FAULTS, ROUTING].index(fault), strength))
        made: Pair = getattr(self, "_" + fault.replace(", ", "_").replace("-", "_").replace(" ", "_"))(strength)
        return made

    def _chosen(self, share: float) -> set[int]:
        """Sequences that a fault hits, at least one."""
        count = max(1, round(share * len(self.responses)))
        return set(self.random.choice(len(self.responses), count, replace=False).tolist())

    def _resampled(self, engine: Any, **processed: float) -> Pair:
        responses, rollout = self.lab.sample(engine, self.prompts, self.seed, **processed)
        return self.lab.score(self.lab.model, self.prompts, responses), rollout

    def _temperature(self, strength: int) -> Pair:
        """The engine's log-probs are of hotter (or colder) logits, the trainer's are not."""
        heat = (1.05, 1.2, 1.5)[strength]
        return self._resampled(self.engine, temperature=heat if self.seed % 2 == 0 else 1 / heat)

    def _top_p_top_k(self, strength: int) -> Pair:
        if self.seed % 2 == 0:
            return self._resampled(self.engine, top_p=(0.98, 0.9, 0.8)[strength])
        return self._resampled(self.engine, top_k=(8, 4, 2)[strength])

    def _off_by_one(self, strength: int) -> Pair:
        hit = self._chosen((0.1, 0.5, 1.0)[strength])
        return self.old, [[row[-1], *row[:-1]] if i in hit else row for i, row in enumerate(self.rollout)]

    def _retokenised(self, strength: int) -> Pair:
        """One token is lost on the way to the trainer; its log-probs are as many as the mask has."""
        hit, ids = self._chosen((0.1, 0.3, 1.0)[strength]), []
        for i, row in enumerate(self.responses):
            place = int(self.random.integers(2, max(3, len(row) - 1)))
            ids.append(row[:place] + row[place + 1 :] + [self.lab.pad] if i in hit and len(row) > 4 else row)
        return self.lab.score(self.lab.model, self.prompts, ids), self.rollout

    def _other_prompt(self, strength: int) -> Pair:
        before = self.lab.encode((";", "#;", "#1;#")[strength])
        return self.lab.score(self.lab.model, [before + row for row in self.prompts], self.responses), self.rollout

    def _stale(self, strength: int) -> Pair:
        """The trainer takes steps of policy gradient, the engine keeps its weights."""
        model, old = copy.deepcopy(self.lab.model), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=(1e-4, 3e-4, 1e-3)[strength])
        rewards = np.random.default_rng(self.seed).normal(size=len(self.responses))
        for step in range(STEPS):
            rows = slice(step * self.lab.rows, (step + 1) * self.lab.rows)
            old += self.lab.score(model, self.prompts[rows], self.responses[rows])
            for _ in range(2):
                optimizer.zero_grad()
                log_probs = self.lab.scored(model, self.prompts[rows], self.responses[rows])
                pushed = [-reward * row.mean() for reward, row in zip(rewards[rows], log_probs, strict=True)]
                torch.stack(pushed).mean().backward()
                optimizer.step()
        return old, self.rollout

    def _quantised(self, strength: int) -> Pair:
        return self._resampled(rounded(self.lab.model, (6, 5, 4)[strength]))

    def _placeholders(self, strength: int) -> Pair:
        part = (0.01, 0.05, 0.2)[strength]
        return self.old, [[0.0 if self.random.random() < part else x for x in row] for row in self.rollout]

    def _padding(self, strength: int) -> Pair:
        behind = (1, 2, 4)[strength]
        longer = [row + [self.lab.pad] * behind for row in self.responses]
        old = self.lab.score(self.lab.model, self.prompts, longer)
        return old, [row + [0.0] * behind for row in self.rollout]

    def _wrong_sequences(self, strength: int) -> Pair:
        """The trainer scores another sequence's tokens in their place."""
        ids = list(self.responses)
        for i in self._chosen((1, 3, 6)[strength] / 192):
            like = [j for j, row in enumerate(self.responses) if len(row) == len(ids[i]) and row != self.responses[i]]
            ids[i] = self.responses[int(self.random.choice(like))] if like else ids[i][::-1]
        return self.lab.score(self.lab.model, self.prompts, ids), self.rollout

    def _draft_model(self, strength: int) -> Pair:
        """Some tokens carry the log-probs of the model that proposed them."""
        part = (0.2, 0.4, 0.6)[strength]
        pairs = zip(self.rollout, self.draft, strict=True)
        return self.old, [
            [b if self.random.random() < part else a for a, b in zip(row, other, strict=True)] for row, other in pairs
        ]

    @cached_property
    def draft(self) -> list[list[float]]:
        """What a model of 3 bits gives the same tokens."""
        return self.lab.score(rounded(self.lab.model, 3), self.prompts, self.responses)

    def _wrong_head(self, strength: int) -> Pair:
        """The trainer's head is another one: the right matrix and a random one of its size, mixed."""
        model = copy.deepcopy(self.lab.model)
        right = model.get_output_embeddings().weight.detach()
        random = torch.randn(right.shape, generator=torch.Generator().manual_seed(self.seed))
        head = torch.nn.Linear(right.shape[1], right.shape[0], bias=False)
        other = random * right.norm(dim=-1, keepdim=True) / random.norm(dim=-1, keepdim=True)
        head.weight.data = right + (0.1, 0.3, 1.0)[strength] * other
        model.set_output_embeddings(head)
        return self.lab.score(model, self.prompts, self.responses), self.rollout

    def _routing(self, strength: int) -> Pair:
        """The engine's routers round otherwise: tokens near a tie of two experts take the other one."""
        engine = copy.deepcopy(self.engine)
        random = torch.Generator().manual_seed(self.seed)
        for name, parameter in engine.named_parameters():
            if name.endswith("mlp.gate.weight"):
                noise = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
                parameter.data *= 1 + (0.003, 0.01, 0.03)[strength] * noise
        return self._resampled(engine)


# ---- the models ------------------------------------------------------------------------------------------------------


def embedded(folder: Path) -> Lab:
    """The model of `alp pretrain`, in ``folder``/embedded/model."""
    return Lab(folder / "embedded" / "model", rows=24, longest=26, ask=lambda a, b: f"{a}+{b}=")


def experts(folder: Path) -> Lab:
    """The mixture of experts of :func:`teach_experts`."""
    return Lab(folder / "experts", rows=24, longest=26, ask=lambda a, b: f"{a}+{b}=")


def smollm2(folder: Path) -> Lab:
    """SmolLM2-135M-Instruct, 4-bit GGUF weights in float32, in ``folder``/smollm2: it goes on with a line of sums."""
    return Lab(folder / "smollm2", rows=4, longest=24, ask=lambda a, b: f"Sums: 3 + 4 = 7, {a} + {b} =", batch=64)


LABS: dict[str, Callable[[Path], Lab]] = {"embedded": embedded, "experts": experts, "SmolLM2": smollm2}


def teach_experts(folder: Path, steps: int) -> None:
    """A mixture of 8 experts, 2 of them a token, of about the embedded model's size, taught as that one is."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    from alp import models
    from alp.configuration import compose
    from alp.tasks.catalogue import load_task
    from alp.training.pretrain import _batch

    config = compose.load("pretrain", ["pretrain.batch=48"])
    task: Any = load_task(config.task)
    tokenizer = models.character_tokenizer(task.pieces)
    torch.manual_seed(0)
    model = Qwen2MoeForCausalLM(
        Qwen2MoeConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_experts=8,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            moe_intermediate_size=64,
            shared_expert_intermediate_size=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    random, problems = np.random.default_rng(0), task.problems("train")
    for step in range(steps):
        ids, labels = _batch(task, problems, tokenizer, random, config)
        loss = model(input_ids=ids, attention_mask=ids != int(tokenizer.pad_token_id), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"experts: step {step + 1}, loss {float(loss.detach()):.3f}", flush=True)
    models.save_model(model.eval(), tokenizer, folder / "experts")
