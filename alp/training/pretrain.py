"""The embedded base model: supervised learning on worked and careless solutions (``alp pretrain``)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import torch
from numpy.random import Generator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alp import models
from alp.configuration.compose import code_of, identity, origin_of, to_yaml
from alp.configuration.pretrain_schema import PretrainConfig
from alp.ownership import claimed
from alp.progress import Progress
from alp.reproducibility import fix_threads, json_line, stream, write_text
from alp.sharing import twins_of
from alp.tasks.catalogue import load_task
from alp.tasks.task import Problem, Teachable, content_hash

_IGNORED = -100  # cross entropy's label for positions outside the loss
_LOG_EVERY = 50
OUTPUTS = ("model/*", "metrics.jsonl", "timings.jsonl", "config.yaml")


def pretrain(config: PretrainConfig) -> None:
    """Teach the model and write ``model/``, ``metrics.jsonl`` and ``config.yaml`` below ``run.dir``."""
    task = load_task(config.task)
    parts = {
        "config_hash": identity(config),
        "code_hash": code_of("pretrain", config),
        "data_hash": content_hash(task.problems("train")),
    }
    rewrites = {"config.yaml": lambda _: to_yaml(config).encode()}
    with claimed(
        config.run.dir,
        "pretrain",
        origin_of(parts, config),
        outputs=OUTPUTS,
        replace=config.run.replace,
        dependents="evaluate",
        twins=twins_of(config.run.dir, config.run.grid, share=config.run.share, rewrites=rewrites),
    ) as claim:
        if not claim.taken_over:
            _pretrain(config)


def _pretrain(config: PretrainConfig) -> None:
    settings = config.pretrain
    fix_threads(settings.threads)
    task = cast(Teachable, load_task(config.task))  # the schema allows no other
    problems = task.problems("train")
    tokenizer = models.character_tokenizer(task.pieces)
    model = models.build_embedded(config.model, tokenizer, settings.seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=settings.steps, pct_start=0.1)
    random = stream("pretraining examples", settings.seed)
    lines, total, started = [], 0.0, time.perf_counter()
    with Progress(f"pretrain {config.model.name} seed {settings.seed}", settings.steps, "step") as progress:
        for step in range(1, settings.steps + 1):
            input_ids, labels = _batch(task, problems, tokenizer, random, config)
            loss = model(
                input_ids=input_ids, attention_mask=input_ids != int(tokenizer.pad_token_id), labels=labels
            ).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            if step % _LOG_EVERY == 0 or step == settings.steps:
                span = (step - 1) % _LOG_EVERY + 1
                lines.append(json_line({"step": step, "pretrain/loss": total / span}))
                progress.update(step, f"loss {total / span:.3f}")
                total = 0.0
        folder = Path(config.run.dir)
        models.save_model(model.eval(), tokenizer, folder / "model")
        write_text(folder / "metrics.jsonl", "".join(lines))
        write_text(
            folder / "timings.jsonl", json_line({"seconds": time.perf_counter() - started, "steps": settings.steps})
        )
        write_text(folder / "config.yaml", to_yaml(config))


def _batch(
    task: Teachable,
    problems: list[Problem],
    tokenizer: PreTrainedTokenizerBase,
    random: Generator,
    config: PretrainConfig,
) -> tuple[Tensor, Tensor]:
    """Right-padded ids (batch, tokens) and labels: what the model writes and its end token, nothing else."""
    settings = config.pretrain
    rows, learnt = [], []
    for index in random.integers(len(problems), size=settings.batch):
        problem = problems[index]
        parts = task.demonstration(problem, random, worked=settings.worked, careless_right=settings.careless_right)
        pieces: list[tuple[list[Any], bool]] = [
            (tokenizer.encode(text), written) for text, written in [(task.prompt(problem), False), *parts]
        ]
        pieces.append(([tokenizer.eos_token_id], True))
        rows.append([token for ids, _ in pieces for token in ids])
        learnt.append([written for ids, written in pieces for _ in ids])
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), int(tokenizer.pad_token_id))
    labels = torch.full((len(rows), width), _IGNORED)
    for row, (ids, written) in enumerate(zip(rows, learnt, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(ids)] = torch.where(torch.tensor(written), input_ids[row, : len(ids)], _IGNORED)
    return input_ids, labels
