"""avg@k, greedy accuracy and pass@k of one model on one set (``alp evaluate``). Never perturbed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from alp import models
from alp.analysis.passk import pass_at_k
from alp.config import identity
from alp.progress import Progress
from alp.reproducibility import fix_threads, json_line, write_json, write_text
from alp.rollout.engine import Purpose, Sampling
from alp.rollout.episodes import Trajectory, collect
from alp.rollout.hf import HFEngine
from alp.schema import EvaluateConfig
from alp.tasks.catalogue import load_task


def evaluate(config: EvaluateConfig) -> Path:
    """Score every problem of the set and write ``evaluation/<set>.json`` below ``run.dir``; returns that path."""
    settings = config.evaluation
    folder = models.check_folder(config.model.path)
    task = load_task(config.task)
    problems = task.problems(settings.set)
    device = models.resolve_device(settings.device)
    fix_threads(settings.threads)
    started = time.perf_counter()
    model, tokenizer = models.load_model(folder, device), models.load_tokenizer(folder)
    engine = HFEngine(model.config, dtype=settings.dtype, device=device, batch_size=settings.batch_size)
    engine.sync_weights(model.named_parameters(), version=0)
    piece = max(1, settings.batch_size // settings.samples)
    sampled: list[Trajectory] = []
    greedy: list[Trajectory] = []
    with Progress(f"evaluate {config.run.arm or config.model.name} on {settings.set}", len(problems)) as progress:
        for start in range(0, len(problems), piece):
            part = problems[start : start + piece]
            keys: dict[str, Any] = {"purpose": Purpose.EVALUATION, "seed": settings.seed, "first_problem": start}
            sampled += collect(
                engine, task, tokenizer, part, samples=settings.samples, sampling=_sampling(config, tokenizer, settings.temperature), **keys
            )
            if settings.greedy:
                greedy += collect(engine, task, tokenizer, part, samples=1, sampling=_sampling(config, tokenizer, 0.0), **keys)
            progress.update(start + len(part))
    result = summarise(sampled, greedy, settings.samples) | {
        "set": settings.set,
        "problem_ids": [problem.id for problem in problems],
        "config_hash": identity(config),
    }
    if not result["problems"] == len(problems) == len(result["correct"]):
        raise RuntimeError(f"{result['problems']} of {len(problems)} problems scored")
    path = Path(config.run.dir) / "evaluation" / f"{settings.set}.json"
    write_json(path, result)
    write_text(path.with_suffix(".timings.jsonl"), json_line({"seconds": time.perf_counter() - started}))
    return path


def _sampling(config: EvaluateConfig, tokenizer: Any, temperature: float) -> Sampling:
    return Sampling(temperature, config.evaluation.max_new_tokens, tokenizer.eos_token_id, tokenizer.pad_token_id)


def summarise(sampled: list[Trajectory], greedy: list[Trajectory], samples: int) -> dict[str, Any]:
    """Figures of an evaluation (docs/results.md) from trajectories in problem order, ``samples`` of each problem."""
    correct = [int(sum(item.reward == 1.0 for item in sampled[start : start + samples])) for start in range(0, len(sampled), samples)]
    powers = [1 << exponent for exponent in range(samples.bit_length())]
    greedy_correct = [int(item.reward == 1.0) for item in greedy]
    return {
        "problems": len(correct),
        "samples": samples,
        "accuracy": sum(correct) / len(sampled),
        "correct": correct,
        "greedy": sum(greedy_correct) / len(greedy_correct) if greedy else None,
        "greedy_correct": greedy_correct,
        "pass_at_k": {str(k): sum(pass_at_k(samples, count, k) for count in correct) / len(correct) for k in powers},
        "response_length": sum(len(item.response_ids) for item in sampled) / len(sampled),
        "truncated": sum(not item.finished for item in sampled) / len(sampled),
    }
