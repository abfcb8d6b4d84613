"""avg@k, greedy accuracy and pass@k of one model on one set (``alp evaluate``). Never perturbed.

The set is worked through in chunks of whole problems. Each is kept when it is done, so an interrupted evaluation goes
on behind its last chunk and ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alp import models
from alp.configuration.compose import code_of, identity, origin_of
from alp.configuration.evaluate_schema import EvaluateConfig
from alp.configuration.fields import Strict
from alp.evaluation.passk import pass_at_k, powers_of_two
from alp.evaluation.samples import Chunks, Sample, record
from alp.evaluation.statistics import problem_interval
from alp.ownership import Claim, check_finished
from alp.progress import Progress
from alp.reproducibility import fix_threads, json_line, write_json, write_text
from alp.rollout import contract, probe, registry
from alp.rollout.ends import ends_of
from alp.rollout.engine import Engine, Host, Probe, Purpose
from alp.rollout.episodes import Trajectory, check_environment, collect, longest_of, response_text, stops_of
from alp.rollout.prompts import prompt_ids
from alp.sharing import twins_of
from alp.tasks.catalogue import load_task
from alp.tasks.task import Problem, content_hash


def evaluate(config: EvaluateConfig) -> Path:
    """Score every problem of the set; write ``evaluation/<set>.json`` and the raw samples below ``run.dir``; returns
    the former."""
    name = config.evaluation.set
    endings = (".json", ".samples.jsonl.gz", ".timings.jsonl", ".parts/", *registry.log_names("."))
    outputs = [f"evaluation/{name}{ending}" for ending in endings]
    twins = twins_of(config.run.dir, config.run.grid, share=config.run.share)
    with Claim(config.run.dir, f"evaluate.{name}", outputs=outputs, replace=config.run.replace, twins=twins) as claim:
        path = claim.root / "evaluation" / f"{name}.json"
        log = path.with_name(registry.log_name(config.rollout, f"{name}."))
        sampler = Sampler(config, log=log, scratch=claim.scratch)
        if claim.begin(sampler.origin):  # taken over
            return path
        try:
            _evaluate(config, sampler, path)
        finally:
            sampler.close()
        claim.finish()
    return path


def _evaluate(config: EvaluateConfig, sampler: Sampler, path: Path) -> None:
    settings, started = config.evaluation, time.perf_counter()
    problems = sampler.problems
    size = max(1, settings.batch_size // settings.samples)
    parts = [problems[start : start + size] for start in range(0, len(problems), size)]
    chunks = Chunks(path.with_suffix(".parts"), sampler.origin["identity"])
    samples: list[Sample] = []
    new = 0
    folder = Path(config.run.dir).resolve().name.replace("seed", "seed ")
    title = f"evaluate {config.run.arm or config.model.name} {folder} on {settings.set}"
    with Progress(title, len(problems), "problem") as progress:
        for number, part in enumerate(parts):
            kept = chunks.read(number, sampler.expected(part))
            if kept is not None:
                progress.keep(number * size + len(part))
            else:
                chunks.write(number, sampler.lines(part, first=number * size))
                kept = chunks.read(number, sampler.expected(part))
                new += len(part)
            assert kept is not None  # written a moment ago
            samples += kept
            correct = [item.reward == 1.0 for item in samples if item.sample is not None]
            progress.update(min((number + 1) * size, len(problems)), f"accuracy {sum(correct) / len(correct):.3f}")
        result = summarise(problems, samples, settings.samples) | {"set": settings.set, "config_hash": identity(config)}
        chunks.join(len(parts), path.with_suffix(".samples.jsonl.gz"))
        write_json(path, result)
        write_text(
            path.with_suffix(".timings.jsonl"), json_line({"seconds": time.perf_counter() - started, "problems": new})
        )
        chunks.remove()


class Sampler:
    """The model, its problems, and what its samples follow from. Weights are loaded when the first chunk needs them."""

    def __init__(self, config: EvaluateConfig, *, log: Path, scratch: Path | None = None) -> None:
        self._config, self._log, self._scratch = config, log, scratch
        self._folder = models.check_model(config.model)
        check_finished(self._folder, "model.path")
        registry.check(config.rollout, self._folder)
        self._task = load_task(config.task)
        self.device = models.resolve_device(config.evaluation.device)
        self.problems = self._task.problems(config.evaluation.set)
        fix_threads(config.evaluation.threads)
        self.tokenizer = models.load_tokenizer(self._folder)
        self.problems = contract.short_enough(
            self.tokenizer, self._task, config.evaluation.set, self.problems, config.model
        )
        self._ends = ends_of(self.tokenizer, self._folder, config.model)
        self._ends.say()
        stops = stops_of(self._task, self.tokenizer)
        self._sampling = {
            greedy: self._ends.sampling(
                temperature=0.0 if greedy else config.rollout.temperature,
                max_new_tokens=config.rollout.max_new_tokens,
                stops=stops,
            )
            for greedy in (False, True)
        }
        longest = config.rollout.longest
        check_environment(self._task, self.tokenizer, contract.limits_of(self._folder, self.tokenizer, longest))
        self._limits = contract.limits_of(self._folder, self.tokenizer, longest_of(self._task, longest))
        contract.check_prompts(
            self.tokenizer,
            self._task,
            {config.evaluation.set: self.problems},
            model=config.model,
            limits=self._limits,
            max_new_tokens=config.rollout.max_new_tokens,
        )
        self.engine: Engine | None = None

    @cached_property
    def origin(self) -> dict[str, Any]:
        """Hashes of everything a sample follows from, and ``identity`` over them: what may stand in one evaluation."""
        return self.origin_of("evaluate", self._config)

    def origin_of(self, verb: str, config: Strict) -> dict[str, Any]:
        """The same of what another verb makes of these samples under its configuration."""
        parts = {
            "config_hash": identity(config),
            "code_hash": code_of(verb, config),
            "model_hash": models.content_hash(self._folder),
            "data_hash": content_hash(self.problems),
            "device": self.device.type,  # not in the configuration: ``auto`` is another one on another machine
        }
        return origin_of(parts, config)

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
        trajectories = self.trajectories(part, first, greedy=greedy)
        texts = [response_text(self.tokenizer, item, self._ends.ids) for item in trajectories]
        lines = [
            record(part[number // samples], None if greedy else number % samples, trajectory, text)
            for number, (trajectory, text) in enumerate(zip(trajectories, texts, strict=True))
        ]
        return [lines[start : start + samples] for start in range(0, len(lines), samples)]

    def trajectories(self, part: list[Problem], first: int, *, greedy: bool = False) -> list[Trajectory]:
        """Graded responses to a chunk whose first problem is number ``first`` of the set: the samples, or a greedy
        one."""
        if self.engine is None:
            self.serve(self.load())
        assert self.engine is not None
        return collect(
            self.engine,
            self._task,
            self.tokenizer,
            part,
            model=self._config.model,
            samples=1 if greedy else self._config.evaluation.samples,
            sampling=self._sampling[greedy],
            purpose=Purpose.EVALUATION,
            seed=self._config.evaluation.seed,
            first_problem=first,
            vocabulary=self._limits.vocabulary,
            ends=self._ends,
        )

    def close(self) -> None:
        """Give back what the engine holds."""
        if self.engine is not None:
            self.engine.close()
        if self._task.environment is not None:
            self._task.environment.close()

    def load(self) -> Any:
        """The model in float32. Not kept: an engine may have weights of its own."""
        return _in_own_memory(models.load_model(self._folder, self.device))

    def serve(self, model: Any) -> None:
        """Make the engine of the model's weights, which it answers with (``alp.rollout.probe``)."""
        config, seed = self._config, self._config.evaluation.seed
        asked = [prompt_ids(self.tokenizer, self._task, problem, config.model) for problem in self.problems[:8]]
        vocabulary = len(model.get_input_embeddings().weight)
        fixed = Probe(
            probe.sequences(asked, vocabulary, seed, self._limits.positions),
            lambda sequences, temperature: probe.sequence_log_probs(model, sequences, temperature),
            dtype="float32",
        )
        host = Host(model, self._folder, self._log, self.device, seed, fixed, self._scratch)
        self.engine = registry.make(config.rollout, host)
        self.engine.sync_weights(model.named_parameters(), version=0)


def _in_own_memory(model: Any) -> Any:
    """The model with its weights in torch's own memory, which is aligned: read from a file they lie where its header
    ends, and the last digits of a product would depend on that."""
    for value in model.parameters():
        value.data = value.data.clone()
    return model


def summarise(problems: list[Problem], graded: list[Sample], samples: int) -> dict[str, Any]:
    """Figures of an evaluation (docs/results.md). Raises ValueError where there is nothing to average or a reward is no
    number, RuntimeError unless every problem has every sample, once."""
    if not problems or samples < 1:
        raise ValueError(f"an evaluation of {len(problems)} problems with {samples} samples each has no accuracy")
    if odd := next((item for item in graded if not math.isfinite(item.reward)), None):
        raise ValueError(f"sample {odd.sample} of problem '{odd.problem_id}' has the reward {odd.reward}")
    sampled = [item for item in graded if item.sample is not None]
    if [(item.problem_id, item.sample) for item in sampled] != [
        (problem.id, sample) for problem in problems for sample in range(samples)
    ]:
        raise RuntimeError(
            f"{len(sampled)} samples of {len(problems)} problems with {samples} samples each, or in another order"
        )
    greedy = [int(item.reward == 1.0) for item in graded if item.sample is None]
    correct = _per_problem([item.reward == 1.0 for item in sampled], samples)
    cut = _per_problem([not item.finished for item in sampled], samples)
    chances = {str(k): pass_at_k(samples, correct, k) for k in powers_of_two(samples)}
    return _use(sampled) | {
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


def _use(sampled: list[Sample]) -> dict[str, Any]:
    """What became of the turns; nothing where the task has no tool."""
    uses = [item.tools for item in sampled if item.tools is not None]
    if not uses:
        return {}
    programs = sum(use["programs"] for use in uses)
    figures = {
        "use_rate": sum(use["programs"] > 0 for use in uses) / len(uses),
        "valid_rate": sum(use["valid"] for use in uses) / programs if programs else None,
        "turns": sum(use["turns"] for use in uses) / len(uses),
        "void_rate": sum(use["void"] for use in uses) / len(uses),
    }
    return {"tools": figures}


def _per_problem(flags: list[bool], samples: int) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = np.asarray(flags, dtype=np.int64).reshape(-1, samples).sum(axis=1)
    return counts


def _interval(values: NDArray[np.float64]) -> list[float] | None:
    """95 % over problems, as if they were drawn from many; None for a single problem."""
    found = problem_interval(values).within(0, 1)
    return None if found.low is None or found.high is None else [found.low, found.high]
