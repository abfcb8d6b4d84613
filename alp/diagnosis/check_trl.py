"""Two configurations of TRL's ``GRPOTrainer`` on the same batches: TRL itself trains a tiny model, watched.

What has to be there for an option to act is made: rewards that differ, responses that end and that are cut off, an
engine that is off (by more at some tokens), and weights that move between the updates of a batch by 5 %, the same for
both. Sampling, data, saving and the machine are not tried: a pair that differs there is refused.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from alp import models
from alp.diagnosis.changes import Difference, Found, Update, difference
from alp.diagnosis.check import MARKER, differing, in_words
from alp.errors import UserError, nearest
from alp.foreign import reason

TRAINER = "GRPOTrainer"
BATCHES, TOKENS, MOVED = 2, 12, 0.05
_PIECES = "0123456789abcdefghijklmnop"
_FIXED: dict[str, Any] = {  # of the machine, and of what stands around an update
    "use_cpu": True,
    "bf16": False,
    "fp16": False,
    "use_vllm": False,  # set again on the trainer, whose constructor would start an engine
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_strategy": "no",
    "eval_strategy": "no",
    "do_eval": False,
    "push_to_hub": False,
    "gradient_checkpointing": False,
    "lr_scheduler_type": "constant",
    "warmup_steps": 0,
    "max_grad_norm": 0.0,  # a gradient is compared as it is
}
_UNTRIED = {
    *(_FIXED.keys() - {"use_vllm"}),
    *("top_p", "top_k", "min_p", "repetition_penalty", "generation_kwargs", "chat_template_kwargs", "warmup_ratio"),
    *("cache_implementation", "model_init_kwargs", "output_dir", "max_steps", "num_train_epochs", "deepspeed", "fsdp"),
    *("accelerator_config", "torch_compile", "run_name", "logging_steps", "save_steps", "eval_steps", "hub_model_id"),
}


def compared(first: Mapping[str, Any], second: Mapping[str, Any], folder: Path) -> Found:
    """What differs between both, each with the keys of ``GRPOConfig`` and the marker. Raises UserError."""
    plain = []
    for one in (first, second):
        if one[MARKER] != TRAINER:
            raise UserError(f"check: {MARKER}: '{one[MARKER]}' is no trainer that is known{nearest('', [TRAINER])}")
        plain.append({key: value for key, value in one.items() if key != MARKER})
    keys = differing(plain[0], plain[1])
    said = in_words(keys)
    for key in keys:
        sampling = key.startswith("vllm_") and not key.startswith("vllm_importance_sampling")
        if key.partition(".")[0] in _UNTRIED or sampling:
            raise UserError(
                f"check: {key} is not tried here, as all of sampling, data, saving, the machine, the schedule of the"
                " learning rate and the clipping of gradients"
            )
    if importlib.util.find_spec("trl") is None:
        raise UserError("check: TRL is not installed here, and it is TRL that is run: pip install trl")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    with contextlib.redirect_stdout(sys.stderr):
        _check_keys(plain)
        tokenizer = models.character_tokenizer(_PIECES)
        size: Any = SimpleNamespace(hidden=16, intermediate=32, layers=2, heads=2)
        models.save_model(models.build_embedded(size, tokenizer, seed=3), tokenizer, folder / "model")
        runs = [Run(one, folder) for one in plain]
        updates = [run.updates(runs[0].count) for run in runs]
    pairs = zip(updates[0], updates[1], strict=False)
    differences: list[Difference] = [difference(one, other) for one, other in pairs]
    batch = (
        f"TRL on a tiny model: {BATCHES} generation batches of {runs[0].rows} made-up sequences,"
        f" {len(differences)} optimizer steps"
    )
    return Found(said, batch, differences)


def _check_keys(plain: list[dict[str, Any]]) -> None:
    from trl import GRPOConfig

    known = {field.name for field in fields(GRPOConfig)}
    for key in (key for one in plain for key in one):
        if key not in known:
            raise UserError(f"check: {key} is no setting of TRL's GRPOConfig{nearest(key, known)}")


class Run:
    """One configuration's trainer, and what its updates did."""

    def __init__(self, plain: Mapping[str, Any], folder: Path) -> None:
        from trl import GRPOConfig

        self.folder, self.corrects = folder, bool(plain.get("use_vllm", False))
        made = {**plain, **_FIXED, "output_dir": str(folder / "out")}
        try:
            settings = GRPOConfig(**made)
            self.rows = int(settings.generation_batch_size)
            pieces = settings.steps_per_generation * settings.num_iterations
            self.count = BATCHES * max(1, math.ceil(pieces / settings.gradient_accumulation_steps))
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"check: TRL refuses the configuration: {reason(error)}") from None
        self._made = made
        self.found: list[Update] = []
        self._pushes: list[Tensor] = []
        self._losses: list[float] = []
        self._base: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._gradient: dict[str, Tensor] = {}
        self._batches = 0

    def updates(self, count: int) -> list[Update]:
        """So many optimizer steps."""
        trainer = self._trainer(count)
        self._base = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        self._watch(trainer)
        trainer.train()
        return self.found

    def _trainer(self, count: int) -> Any:
        from datasets import Dataset
        from transformers import PrinterCallback
        from trl import GRPOConfig, GRPOTrainer

        tokenizer = models.load_tokenizer(self.folder / "model")
        try:
            trainer = GRPOTrainer(
                model=str(self.folder / "model"),
                reward_funcs=lambda completions, **_: [(7 * row % 5) / 4 for row in range(len(completions))],
                args=GRPOConfig(**self._made, max_steps=count),
                train_dataset=Dataset.from_dict({"prompt": [_PIECES[row % 20] for row in range(self.rows)]}),
                processing_class=tokenizer,
                rollout_func=self._rollout,
            )
        except (TypeError, ValueError, ImportError, NotImplementedError) as error:
            raise UserError(f"check: TRL refuses the configuration: {reason(error)}") from None
        trainer.remove_callback(PrinterCallback)
        trainer.use_vllm = self.corrects
        trainer._last_loaded_step = -1
        trainer.vllm_generation = SimpleNamespace(sync_weights=lambda: None)  # μ is made from the weights themselves
        return trainer

    @torch.no_grad()
    def _rollout(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """Random tokens; μ is off by 0.1 of a nat, and by 2 at one token of twenty."""
        random = torch.Generator().manual_seed(self._batches)
        self._batches += 1
        rows, longest = len(prompts), min(TOKENS, trainer.max_completion_length)
        end = int(trainer.processing_class.eos_token_id)
        ids = torch.randint(2, 2 + len(_PIECES), (rows, 1 + longest), generator=random)
        lengths = torch.randint(1 + longest // 3, longest + 1, (rows,), generator=random)
        ended = torch.arange(rows) % 3 > 0
        ids[ended, lengths[ended]] = end
        logits = trainer.model(input_ids=ids).logits[:, :-1].float() / trainer.temperature
        own = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        far = torch.rand(own.shape, generator=random) < 0.05
        rollout = (own + torch.where(far, 2.0, 0.1) * torch.randn(own.shape, generator=random)).clamp(max=0)
        cut = [int(length) for length in lengths]
        return {
            "prompt_ids": ids[:, :1].tolist(),
            "completion_ids": [row[:length] for row, length in zip(ids[:, 1:].tolist(), cut, strict=True)],
            "logprobs": [row[:length] for row, length in zip(rollout.tolist(), cut, strict=True)],
        }

    def _watch(self, trainer: Any) -> None:
        from transformers import TrainerCallback

        run, forward, loss_of = self, trainer._get_per_token_logps_and_entropies, trainer.compute_loss

        def watched(*given: Any, **named: Any) -> Any:
            made = forward(*given, **named)
            if made[0].requires_grad:
                made[0].register_hook(lambda gradient: run._pushes.append(-gradient.detach()))
            return made

        def loss(*given: Any, **named: Any) -> Any:
            made = loss_of(*given, **named)
            run._losses.append(float(made.detach()))
            return made

        class Watch(TrainerCallback):  # type: ignore[misc]
            """Weights before an update, gradients in it, weights after it."""

            def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
                run._begin(model, state.global_step)

            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
                run._gradient = {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}

            def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:  # noqa: ARG002
                run._end(model)

        trainer._get_per_token_logps_and_entropies, trainer.compute_loss = watched, loss
        trainer.add_callback(Watch())

    @torch.no_grad()
    def _begin(self, model: Any, step: int) -> None:
        """The weights of a step: those of the start, and moved ones from the second on."""
        random = torch.Generator().manual_seed(step)
        for name, weight in model.named_parameters():
            moved = 1 + MOVED * (step > 0) * torch.randn(weight.shape, generator=random)
            weight.copy_(self._base[name] * moved)
        self._before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        self._pushes, self._losses = [], []

    def _end(self, model: Any) -> None:
        steps = {name: weight.detach() - self._before[name] for name, weight in model.named_parameters()}
        self.found.append(Update(sum(self._losses), self._gradient, steps, _joined(self._pushes)))


def _joined(pieces: list[Tensor]) -> Tensor | None:
    """Micro-batches of an update as one, padded to the widest."""
    if not pieces:
        return None
    width = max(piece.shape[1] for piece in pieces)
    padded: Iterator[Tensor] = (torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces)
    return torch.cat(list(padded))
