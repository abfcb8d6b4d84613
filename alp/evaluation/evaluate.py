"""avg@k, greedy accuracy and pass@k of one model on one set (``alp evaluate``). Never perturbed.

The set is worked through in chunks of whole problems. Each is kept when it is done, so an interrupted evaluation goes
on behind its last chunk and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alp import models
from alp.configuration.compose import identity, origin_of
from alp.configuration.schema import EvaluateConfig
from alp.evaluation.passk import pass_at_k, powers_of_two
from alp.evaluation.samples import Chunks, Sample, record
from alp.evaluation.statistics import interval
from alp.ownership import Claim, check_finished
from alp.progress import Progress
from alp.reproducibility import code_hash, fix_threads, json_line, write_json, write_text
from alp.rollout import contract
from alp.rollout.engine import Purpose
from alp.rollout.episodes import collect, response_text
from alp.rollout.hf import HFEngine
from alp.rollout.prompts import sampling
from alp.tasks.catalogue import load_task
from alp.tasks.task import Problem


def evaluate(config: EvaluateConfig) -> Path:
    """Score every problem of the set; write ``evaluation/<set>.json`` and the raw samples below ``run.dir``; returns
    the former."""
    name = config.evaluation.set
    outputs = [f"evaluation/{name}{ending}" for ending in (".json", ".samples.jsonl.gz", ".timings.jsonl", ".parts/")]
    with Claim(config.run.dir, f"evaluate.{name}", outputs=outputs, replace=config.run.replace) as claim:
        sampler = Sampler(config)
        claim.begin(sampler.origin)
        path = _evaluate(config, sampler, claim.root / "evaluation" / f"{name}.json")
        claim.finish()
    return path


def _evaluate(config: EvaluateConfig, sampler: Sampler, path: Path) -> Path:
    settings, started = config.evaluation, time.perf_counter()
    problems = sampler.problems
    size = max(1, settings.batch_size // settings.samples)
    parts = [problems[start : start + size] for start in range(0, len(problems), size)]
    chunks = Chunks(path.with_suffix(".parts"), sampler.origin["identity"])
    found: list[Sample] = []
    new = 0
    with Progress(f"evaluate {config.run.arm or config.model.name} on {settings.set}", len(problems)) as progress:
        for place, part in enumerate(parts):
            kept = chunks.read(place, sampler.expected(part))
            if kept is None:
                chunks.write(place, sampler.lines(part, first=place * size))
                kept = chunks.read(place, sampler.expected(part))
                new += len(part)
            assert kept is not None  # written a moment ago
            found += kept
            sampled = [item.reward == 1.0 for item in found if item.sample is not None]
            progress.update(min((place + 1) * size, len(problems)), f"accuracy {sum(sampled) / len(sampled):.3f}")
    result = summarise(problems, found, settings.samples) | {"set": settings.set, "config_hash": identity(config)}
    chunks.join(len(parts), path.with_suffix(".samples.jsonl.gz"))
    write_json(path, result)
    write_text(
        path.with_suffix(".timings.jsonl"), json_line({"seconds": time.perf_counter() - started, "problems": new})
    )
    chunks.remove()
    return path


class Sampler:
    """The model, its problems, and what its samples follow from. Weights are loaded when the first chunk needs them."""

    def __init__(self, config: EvaluateConfig) -> None:
        self._config = config
        self._folder = models.check_model(config.model)
        check_finished(self._folder, "model.path")
        self._task = load_task(config.task)
        self._device = models.resolve_device(config.evaluation.device)
        self.problems = self._task.problems(config.evaluation.set)
        fix_threads(config.evaluation.threads)
        self._tokenizer = models.load_tokenizer(self._folder)
        self._sampling = {
            greedy: sampling(
                self._tokenizer,
                config.model,
                temperature=0.0 if greedy else config.evaluation.temperature,
                max_new_tokens=config.evaluation.max_new_tokens,
            )
            for greedy in (False, True)
        }
        self._limits = contract.limits_of(self._folder, self._tokenizer)
        contract.check_prompts(
            self._tokenizer,
            self._task,
            {config.evaluation.set: self.problems},
            model=config.model,
            limits=self._limits,
            max_new_tokens=config.evaluation.max_new_tokens,
        )
        self._engine: HFEngine | None = None

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Hashes of everything a sample follows from, and ``identity`` over them: what may stand in one evaluation."""
        parts = {
            "config_hash": identity(self._config),
            "code_hash": code_hash("alp.evaluation.evaluate"),
            "model_hash": models.content_hash(self._folder),
            "data_hash": hashlib.sha256(
                "".join(json_line(asdict(problem)) for problem in self.problems).encode()
            ).hexdigest(),
        }
        return origin_of(parts, self._config)

    def expected(self, part: list[Problem]) -> list[tuple[str, int | None]]:
        """(problem, sample) of every line of a chunk, in order; the greedy answer is sample None."""
        settings = self._config.evaluation
        samples: list[int | None] = [*range(settings.samples), *([None] if settings.greedy else [])]
        return [(problem.id, sample) for problem in part for sample in samples]

    def lines(self, part: list[Problem], first: int) -> list[str]:
        """Sample and grade a chunk whose first problem is number ``first`` of the set."""
        settings = self._config.evaluation
        columns = [self._records(part, first, greedy=False)] + (
            [self._records(part, first, greedy=True)] if settings.greedy else []
        )
        return [line for rows in zip(*columns, strict=True) for lines in rows for line in lines]

    def _records(self, part: list[Problem], first: int, *, greedy: bool) -> list[list[str]]:
        samples = 1 if greedy else self._config.evaluation.samples
        found = collect(
            self._loaded(),
            self._task,
            self._tokenizer,
            part,
            model=self._config.model,
            samples=samples,
            sampling=self._sampling[greedy],
            purpose=Purpose.EVALUATION,
            seed=self._config.evaluation.seed,
            first_problem=first,
            vocabulary=self._limits.vocabulary,
        )
        texts = [response_text(self._tokenizer, item.response_ids, finished=item.finished) for item in found]
        return [
            [
                record(
                    problem,
                    None if greedy else sample,
                    found[place * samples + sample],
                    texts[place * samples + sample],
                )
                for sample in range(samples)
            ]
            for place, problem in enumerate(part)
        ]

    def _loaded(self) -> HFEngine:
        if self._engine is None:
            settings = self._config.evaluation
            model = models.load_model(self._folder, self._device)
            self._engine = HFEngine(
                model.config, dtype=settings.dtype, device=self._device, batch_size=settings.batch_size
            )
            self._engine.sync_weights(model.named_parameters(), version=0)
        return self._engine


def summarise(problems: list[Problem], found: list[Sample], samples: int) -> dict[str, Any]:
    """Figures of an evaluation (docs/results.md). Raises RuntimeError unless every problem has every sample, once."""
    sampled = [item for item in found if item.sample is not None]
    if [(item.problem_id, item.sample) for item in sampled] != [
        (problem.id, sample) for problem in problems for sample in range(samples)
    ]:
        raise RuntimeError(
            f"{len(sampled)} samples of {len(problems)} problems with {samples} samples each, or in another order"
        )
    greedy = [int(item.reward == 1.0) for item in found if item.sample is None]
    correct = _per_problem([item.reward == 1.0 for item in sampled], samples)
    cut = _per_problem([not item.finished for item in sampled], samples)
    chances = {str(k): pass_at_k(samples, correct, k) for k in powers_of_two(samples)}
    return {
        "problems": len(problems),
        "problem_ids": [problem.id for problem in problems],
        "samples": samples,
        "accuracy": int(correct.sum()) / len(sampled),
        "accuracy_interval": _interval(correct / samples),
        "correct": correct.tolist(),
        "greedy": sum(greedy) / len(greedy) if greedy else None,
        "greedy_correct": greedy,
        "pass_at_k": {k: float(chance.mean()) for k, chance in chances.items()},
        "pass_at_k_interval": {k: _interval(chance) for k, chance in chances.items()},
        "response_length": sum(item.tokens for item in sampled) / len(sampled),
        "truncated": int(cut.sum()) / len(sampled),
        "truncated_samples": cut.tolist(),
    }


def _per_problem(flags: list[bool], samples: int) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.asarray(flags, dtype=np.int64).reshape(-1, samples).sum(axis=1)
    return counts


def _interval(values: NDArray[np.float64]) -> list[float]:
    """95 % by the bootstrap over problems."""
    found = interval(values[None])
    return [found.low, found.high]
