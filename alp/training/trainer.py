"""The loop: sample -> score -> update x k -> sync -> log -> checkpoint (``alp train``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from alp import models
from alp.configuration.compose import to_yaml
from alp.configuration.schema import HFRollout, TrainConfig
from alp.errors import Interrupted, UserError
from alp.lifetime import StopRequest
from alp.ownership import Claim, check_finished
from alp.policy import (
    LayerwisePerturbation,
    group_advantages,
    mismatch_diagnostics,
    ratio_diagnostics,
    rollout_correction,
    sharpness,
)
from alp.progress import Progress
from alp.reproducibility import fix_threads, json_line, provenance, write_json, write_text
from alp.rollout import prompts, registry
from alp.rollout.engine import Engine, Purpose
from alp.rollout.episodes import Trajectory, collect
from alp.rollout.hf import HFEngine
from alp.tasks.catalogue import load_task
from alp.tasks.task import select
from alp.training import checkpoint, inputs
from alp.training.batch import Batch, collate
from alp.training.forward import frozen_log_probs, sequence_log_probs, token_log_probs
from alp.training.metrics import envelope, noise_metrics, rollout_metrics, update_metrics
from alp.training.pending import Clock, UnderWay
from alp.training.settings_report import check_active, check_perturbed, describe_active
from alp.training.update import Updater

Observer = Callable[[], None]
RECORDS = ("metrics.jsonl", "updates.jsonl", "timings.jsonl")
OUTPUTS = (*RECORDS, "config.yaml", "active.json", "provenance.json", "vllm.log", "model/*", "checkpoints/")
_VALIDATION_BATCH = 512  # sequences at a time


def train(config: TrainConfig, on_step: Observer = lambda: None) -> Path:
    """Run (or continue) one training job; returns its folder. ``on_step`` is called after every logged step.

    Raises Interrupted when a signal asked for it: at the next update, after a checkpoint.
    """
    run_dir = Path(config.run.dir)
    with (
        Claim(run_dir, "train", outputs=OUTPUTS, replace=config.run.replace, dependents="evaluate") as claim,
        StopRequest() as stop,
    ):
        job = Job(config, run_dir, on_step, stop, accept=claim.compare, scratch=claim.scratch)
        claim.begin(job.origin)
        try:
            job.run()
        finally:
            job.engine.close()
        claim.finish()
    return run_dir


class Job:
    """One training job: everything it holds, built and checked before anything is computed.

    ``accept`` is told what the results follow from before the weights are read, and may refuse. ``scratch`` is a folder
    for temporary files, there once the job runs.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        on_step: Observer,
        stop: StopRequest | None = None,
        accept: Callable[[dict[str, Any]], object] = bool,
        scratch: Path | None = None,
    ) -> None:
        self.config, self.run_dir, self.on_step, self.stop = config, run_dir, on_step, stop or StopRequest()
        folder = models.check_model(config.model)
        check_finished(folder, "model.path")
        inputs.check_layers(config, folder)
        registry.check(config.rollout, folder)
        self.device = models.resolve_device(config.trainer.device)
        self.task = load_task(config.task)
        self.problems, self.validation = self.task.problems("train"), self.task.problems("validation")
        inputs.check_problems(self.problems, self.validation)
        self.provenance = provenance() | inputs.origin(config, folder, [*self.problems, *self.validation])
        accept(self.origin)
        fix_threads(config.trainer.threads)
        self.tokenizer = models.load_tokenizer(folder)
        self.sampling = prompts.sampling(
            self.tokenizer,
            config.model,
            temperature=config.rollout.temperature,
            max_new_tokens=config.rollout.max_new_tokens,
        )
        self.limits = inputs.check_prompts(config, folder, self.tokenizer, self.task, self.problems, self.validation)
        self.model = models.load_model(folder, self.device)
        self.read_from: dict[str, int] = self.model.read_from
        self._check_room()
        if config.model.gradient_checkpointing:
            models.checkpoint_layers(self.model)
        self.reference = models.load_model(folder, self.device).requires_grad_(False) if config.trainer.kl else None
        self.engine = self._engine(folder, scratch)
        batch_size = config.rollout.batch_size if isinstance(config.rollout, HFRollout) else _VALIDATION_BATCH
        self.validator = HFEngine(self.model.config, dtype="float32", device=self.device, batch_size=batch_size)
        self.perturbation = self._perturbation()
        self.updater = Updater(
            self.model,
            config.method,
            config.trainer,
            perturbation=self.perturbation,
            temperature=config.rollout.temperature,
            reference=self.reference is not None,
        )
        self.probe: Batch | None = None
        self.records = dict.fromkeys(RECORDS, "")
        self.done = 0  # steps
        self.current: UnderWay | None = None

    def _check_room(self) -> None:
        trainer, rollout = self.config.trainer, self.config.rollout
        weights = sum(parameter.nbytes for parameter in self.model.parameters())
        tokens = 2 * trainer.prompts * trainer.samples * rollout.max_new_tokens  # prompts as long as responses
        checkpoint.check_room(self.run_dir, weights=weights, tokens=tokens, every=trainer.checkpoint_every)

    def _engine(self, folder: Path, scratch: Path | None) -> Engine:
        return registry.make(
            self.config.rollout,
            self.model,
            folder,
            run_dir=self.run_dir,
            scratch=scratch,
            device=self.device,
            seed=self.config.trainer.seed,
            prompts=[
                prompts.prompt_ids(self.tokenizer, self.task, problem, self.config.model)
                for problem in self.validation[:8]
            ],
            reference=lambda sequences, temperature: sequence_log_probs(self.model, sequences, temperature),
        )

    def _perturbation(self) -> LayerwisePerturbation | None:
        settings = self.config.method.perturbation
        if settings is None:
            return None
        try:
            return LayerwisePerturbation(
                self.model,
                layers=settings.layers,
                std=settings.std,
                learnable=settings.learnable,
                std_min=settings.std_min,
                std_max=settings.std_max,
                seed=self.config.trainer.seed,
            )
        except ValueError as error:  # a model that cannot be perturbed
            raise UserError(f"train: method.perturbation: {error}") from None

    def run(self) -> None:
        """Every step, then the final model. The records of a finished job are complete and its checkpoints gone."""
        trainer = self.config.trainer
        self._start()
        self._write_settings()
        with Progress(
            f"train {self.config.run.arm or self.config.method.name} seed {trainer.seed}", trainer.steps
        ) as progress:
            while self.done < trainer.steps:
                metrics = self._step(self.done + 1)
                self._append("metrics.jsonl", metrics)
                self.done, self.current = self.done + 1, None
                progress.update(self.done, f"reward {metrics['reward/mean']:.3f}")
                if trainer.checkpoint_every and self.done % trainer.checkpoint_every == 0 and self.done < trainer.steps:
                    self._save()
                self.on_step()
        check_perturbed(self.config, self.updater.perturbed_updates)
        noise = {}
        if self.perturbation is not None:
            state = self.perturbation.state_dict()
            noise = {"perturbation.json": state | {"log_std": [float(value) for value in state["log_std"]]}}
        for name, text in self.records.items():  # whole, whatever became of the lines that were added one by one
            write_text(self.run_dir / name, text)
        models.save_model(self.model, self.tokenizer, self.run_dir / "model", noise)
        if not trainer.keep_checkpoints:
            checkpoint.prune(self.run_dir)

    def _start(self) -> None:
        """Continue from a checkpoint, or begin: empty records, validation of the initial model."""
        state = checkpoint.restore(self.run_dir, self.origin)
        if state is None:
            checkpoint.seed_random_state(self.config.trainer.seed)
        else:
            self.model.load_state_dict(state["model"])
            self.updater.load_state_dict(state["updater"])
            if self.perturbation is not None:
                self.perturbation.load_state_dict(state["perturbation"])
            self.done, self.records = state["step"], state["records"]
            self.current = UnderWay.of(state["current"], self.device) if state["current"] else None
        for name, text in self.records.items():
            write_text(self.run_dir / name, text)
        # In the middle of a rollout batch these weights are newer than those it was sampled with: nothing is sampled
        # before the next sync.
        self.engine.sync_weights(self.model.named_parameters(), version=self.done)
        if state is not None:
            checkpoint.set_random_state(state["random"])
        elif self.config.trainer.validate_every:
            self._append("metrics.jsonl", {"step": 0} | self._validate(0))

    @property
    def origin(self) -> dict[str, Any]:
        """What the results follow from: hashes, versions and the resolved configuration."""
        return self.provenance | {"config": self.config.model_dump(mode="json")}

    def _save(self) -> bool:
        """Write a checkpoint of this very moment; whether that worked."""
        state = {
            "step": self.done,
            "model": self.model.state_dict(),
            "updater": self.updater.state_dict(),
            "perturbation": self.perturbation.state_dict() if self.perturbation is not None else None,
            "current": self.current.state_dict() if self.current is not None else None,
            "records": self.records,
            "random": checkpoint.random_state(),
        }
        return checkpoint.save(self.run_dir, self.origin, state)

    def _stop_if_asked(self) -> None:
        if self.stop.signal is None:
            return
        place = f"{self.stop.signal} after {self.done} steps" + (
            f" and {len(self.current.results)} updates" if self.current else ""
        )
        kept = "what is done is saved" if self._save() else "the checkpoint before stays"
        raise Interrupted(f"{self.run_dir}: stopped by {place}; {kept}, the same command goes on from there")

    def _append(self, name: str, record: dict[str, Any]) -> None:
        # A figure that is not finite is missing: JSON has no word for it, and a job must not die of a diagnostic.
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in record.items()
        }
        line = json_line(finite)
        self.records[name] += line
        with (self.run_dir / name).open("a", encoding="utf-8") as stream:
            stream.write(line)

    def _step(self, step: int) -> dict[str, Any]:
        """One rollout batch and its updates, or what is left of them; returns the step's metrics."""
        trainer = self.config.trainer
        if self.current is None:
            self._stop_if_asked()
            self.current = self._sample(step)
        current, clock = self.current, Clock(self.current.seconds)
        self._updates(current)
        clock.lap("update")
        metrics = (
            current.metrics
            | update_metrics(current.results)
            | ratio_diagnostics(current.raw, current.batch.response_mask)
        )
        metrics |= noise_metrics(self.perturbation, current.results)
        synced = self.engine.sync_weights(self.model.named_parameters(), version=step)
        clock.lap("sync")
        metrics |= self._probe(step)
        if trainer.validate_every and (step % trainer.validate_every == 0 or step == trainer.steps):
            metrics |= self._validate(step)
        clock.lap("probe")
        tokens = int(current.batch.response_mask.sum())
        self._append("timings.jsonl", {"step": step, "response_tokens": tokens} | clock.seconds | synced)
        return {"step": step} | metrics

    def _sample(self, step: int) -> UnderWay:
        """A rollout batch, scored."""
        trainer, clock = self.config.trainer, Clock({})
        chosen = select(self.problems, trainer.prompts, trainer.seed, step - 1)
        trajectories = collect(
            self.engine,
            self.task,
            self.tokenizer,
            chosen,
            model=self.config.model,
            samples=trainer.samples,
            sampling=self.sampling,
            purpose=Purpose.TRAINING,
            seed=trainer.seed,
            step=step,
            vocabulary=self.limits.vocabulary,
        )
        clock.lap("rollout")
        batch = collate(
            trajectories,
            pad_token_id=self.tokenizer.pad_token_id,
            first_sequence=(step - 1) * trainer.prompts * trainer.samples,
            device=self.device,
        )
        batch, metrics = self._score(batch)
        metrics |= rollout_metrics(trajectories, trainer.samples)
        clock.lap("score")
        return UnderWay(step, batch, metrics, torch.zeros_like(batch.rollout_log_probs), seconds=clock.seconds)

    def _score(self, batch: Batch) -> tuple[Batch, dict[str, float]]:
        """Advantages, π_old, the reference, and the rollout correction."""
        trainer, temperature = self.config.trainer, self.config.rollout.temperature
        advantages = group_advantages(batch.rewards, batch.groups).to(batch.rollout_log_probs.dtype)
        old, entropy = torch.zeros_like(batch.old_log_probs), torch.zeros_like(batch.entropy)
        reference = torch.zeros_like(batch.ref_log_probs)
        for rows, mini in batch.split(len(batch) // trainer.updates_per_batch):
            width = mini.input_ids.shape[1]
            old[rows, :width], entropy[rows, :width] = frozen_log_probs(
                self.model, mini, temperature, trainer.micro_batch
            )
            if self.reference is not None:
                reference[rows, :width], _ = frozen_log_probs(self.reference, mini, temperature, trainer.micro_batch)
        settings = self.config.method.correction
        weights, loss_mask, removed = rollout_correction(
            old,
            batch.rollout_log_probs,
            batch.response_mask,
            kind=settings.kind,
            level=settings.level,
            upper=settings.upper,
            lower=settings.lower,
            veto=settings.veto,
        )
        metrics = mismatch_diagnostics(old, batch.rollout_log_probs, batch.response_mask) | removed
        metrics |= ratio_diagnostics(old - batch.rollout_log_probs, batch.response_mask, prefix="rollout_corr")
        metrics["policy/entropy"] = float(entropy[batch.response_mask].double().mean())
        filled = batch.with_(
            advantages=advantages,
            old_log_probs=old,
            entropy=entropy,
            ref_log_probs=reference,
            weights=weights,
            loss_mask=loss_mask,
        )
        return filled, metrics

    def _updates(self, current: UnderWay) -> None:
        """The mini-batches that are left of the rollout batch, whole groups each; a signal stops before any of them, or
        after the last."""
        trainer, batch = self.config.trainer, current.batch
        pieces = list(batch.split(len(batch) // trainer.updates_per_batch))
        for place in range(len(current.results), len(pieces)):
            self._stop_if_asked()
            rows, mini = pieces[place]
            result = self.updater.update(mini, (current.step - 1) * trainer.updates_per_batch + place)
            current.raw[rows, : mini.input_ids.shape[1]] = result.raw
            current.results.append(replace(result, raw=result.raw.new_zeros(0)))
        self._stop_if_asked()
        if trainer.probe_every and current.step % trainer.probe_every == 0:
            rows, mini = pieces[-1]
            logged = {"step": current.step, "update": current.step * trainer.updates_per_batch}
            self._append("updates.jsonl", logged | envelope(mini, current.raw[rows, : mini.input_ids.shape[1]]))

    def _probe(self, step: int) -> dict[str, float]:
        """Sharpness on a fixed batch, now and then."""
        every = self.config.trainer.probe_every
        if not every or step % every:
            return {}
        if self.probe is None:
            self.probe = self._probe_batch()
        probe, temperature = self.probe, self.config.rollout.temperature
        value = sharpness(
            self.model,
            lambda: token_log_probs(self.model, probe, temperature)[0],
            probe.response_mask,
            sequence_ids=probe.sequence_ids,
            attention_mask=probe.attention_mask,
            seed=self.config.trainer.seed,
        )
        return {"sharpness": value}

    def _probe_batch(self) -> Batch:
        """Responses of the *initial* model to validation problems: the same batch whenever the job is started."""
        folder = models.check_model(self.config.model)
        with torch.random.fork_rng():  # whenever it is loaded
            initial = models.load_model(folder, self.device)
        self.validator.sync_weights(initial.named_parameters(), version=0)
        trajectories = self._sample_validation(step=0, samples=1)
        return collate(trajectories, pad_token_id=self.tokenizer.pad_token_id, first_sequence=0, device=self.device)

    def _sample_validation(self, step: int, samples: int) -> list[Trajectory]:
        return collect(
            self.validator,
            self.task,
            self.tokenizer,
            self.validation,
            model=self.config.model,
            samples=samples,
            sampling=self.sampling,
            purpose=Purpose.VALIDATION,
            seed=self.config.trainer.seed,
            step=step,
            vocabulary=self.limits.vocabulary,
        )

    def _validate(self, step: int) -> dict[str, float]:
        self.validator.sync_weights(self.model.named_parameters(), version=step)
        found = self._sample_validation(step, self.config.trainer.validation_samples)
        return {
            "validation/accuracy": sum(item.reward for item in found) / len(found),
            "validation/length": sum(len(item.response_ids) for item in found) / len(found),
        }

    def _write_settings(self) -> None:
        write_text(self.run_dir / "config.yaml", to_yaml(self.config))
        write_json(self.run_dir / "provenance.json", self.provenance)
        active = describe_active(self.config, self.engine, self.model, self.updater)
        check_active(self.config, active)
        if set(self.read_from) != {"float32"}:
            active["weights_read_from"] = self.read_from
        write_json(self.run_dir / "active.json", active)
