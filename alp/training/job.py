"""A training job around its steps: what it holds, built and checked before; how it starts, saves and ends."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alp import adapters, models
from alp.configuration.compose import to_yaml
from alp.configuration.rollout_schema import EngineSettings
from alp.configuration.train_schema import TrainConfig
from alp.errors import UserError
from alp.lifetime import StopRequest
from alp.ownership import check_finished
from alp.policy.layers import LOGITS
from alp.policy.perturbation import LayerwisePerturbation
from alp.reproducibility import fix_threads, provenance, write_json, write_text
from alp.rollout import contract, probe, prompts, registry
from alp.rollout.ends import ends_of
from alp.rollout.engine import Engine, Host, Probe, Sampling
from alp.rollout.episodes import longest_of, stops_of
from alp.tasks.catalogue import load_task
from alp.training import attention, checkpoint, inputs
from alp.training.ahead import Ahead
from alp.training.compiled import CompiledLayers
from alp.training.distributed import ALONE, World
from alp.training.forward import sequence_log_probs
from alp.training.head import Head, Unproven, proven_head
from alp.training.masters import Masters, round_weights
from alp.training.pending import PendingStep
from alp.training.records import RECORDS, Records
from alp.training.scoring import sample
from alp.training.settings_report import check_active, check_perturbed, describe_active
from alp.training.update import Updater
from alp.training.validation import Validation

logger = logging.getLogger(__name__)
_LOGS = (*registry.log_names(), *registry.log_names("validation."))
OUTPUTS = (
    *RECORDS,
    "config.yaml",
    "active.json",
    "provenance.json",
    *_LOGS,
    "adapter/*",
    "model/*",
    "checkpoints/",
)


class Job:
    """Everything a training job holds, built and checked before anything is computed.

    ``accept`` is told what the results follow from before the weights are read, and may refuse. ``scratch`` is a folder
    for temporary files, there once the job runs. In a ``world`` of several ranks every one of them holds a job, each
    with a folder of its own.
    """

    def __init__(
        self,
        config: TrainConfig,
        run_dir: Path,
        stop: StopRequest | None = None,
        accept: Callable[[dict[str, Any]], object] = bool,
        scratch: Path | None = None,
        world: World = ALONE,
    ) -> None:
        self.config, self.run_dir, self.stop, self.world = config, run_dir, stop or StopRequest(), world
        self.folder = models.check_model(config.model)
        self._check_inputs(accept)
        fix_threads(config.trainer.threads)
        attention.choose(deterministic=config.trainer.deterministic_attention)
        self._load()
        self.engine = self._engine(config.rollout, scratch)
        self.validator = (
            self.engine
            if config.validation == config.rollout  # one engine does both
            else self._engine(config.validation, scratch, group="validation", log_prefix="validation.")
        )
        self.perturbation = self._perturbation()
        self.world.reshard(self.model)
        self.updater = Updater(
            self.model,
            config.method,
            config.trainer,
            perturbation=self.perturbation,
            temperature=config.rollout.temperature,
            reference=config.trainer.kl > 0,
            head=self.head,
            masters=self.masters,
            compiled=self.compiled,
            world=self.world,
        )
        self.validation = self._validation()
        self.records = Records(run_dir)
        self.done = 0  # steps
        self.pending: PendingStep | None = None
        self.ahead = Ahead(self, sample)
        self.under_way: dict[str, Any] | None = None  # a rollout batch between two turns (``Play.run``)

    def _check_inputs(self, accept: Callable[[dict[str, Any]], object]) -> None:
        """Task, data, layers, loss and engine against the model's folder, before any weight is read."""
        config = self.config
        check_finished(self.folder, "model.path")
        inputs.check_method(config, self.folder)
        inputs.check_adapter(config, self.folder)
        registry.check(config.rollout, self.folder)
        registry.check(config.validation, self.folder, "validation")
        self.device = models.resolve_device(config.trainer.device)
        self.task = load_task(config.task)
        self.problems, self.validation_problems = self.task.problems("train"), self.task.problems("validation")
        inputs.check_problems(self.problems, self.validation_problems)
        problems = [*self.problems, *self.validation_problems]
        self.provenance = provenance() | inputs.origin(config, self.folder, problems, self.device)
        accept(self.origin)

    def _load(self) -> None:
        """Tokenizer and prompts, then the model and, for a KL penalty, its frozen copy."""
        config = self.config
        self.tokenizer = models.load_tokenizer(self.folder)
        self.problems, self.validation_problems = (
            contract.short_enough(self.tokenizer, self.task, name, problems, config.model)
            for name, problems in (("train", self.problems), ("validation", self.validation_problems))
        )
        self.ends = ends_of(self.tokenizer, self.folder, config.model)
        self.ends.say()
        self.stops = stops_of(self.task, self.tokenizer)
        self.sampling = self._sampling(config.rollout)
        self.limits = inputs.check_prompts(
            config, self.folder, self.tokenizer, self.task, self.problems, self.validation_problems
        )
        self.model = self.world.load(self.folder, self.device)
        self.read_from: dict[str, int] = self.world.share(getattr(self.model, "read_from", {}))
        if config.model.lora is not None:
            adapters.attach(self.model, config.model.lora, config.trainer.seed)
        if self.world.first:
            models.check_saving(self.model, self.tokenizer, self.folder)
            self._check_room()
        if config.model.gradient_checkpointing:
            models.checkpoint_layers(self.model)
        self.reference = None
        if config.trainer.kl and config.model.lora is None:
            self.reference = self.world.load(self.folder, self.device).requires_grad_(False)
        self.masters, rounded = None, config.trainer.precision == "bfloat16"
        if rounded and self.world.size == 1:
            self.masters = Masters(self.model)
            if self.reference is not None:
                round_weights(self.reference)
        compiles = config.trainer.compile
        self.compiled = CompiledLayers(self.model) if compiles else None
        self.reference_compiled = CompiledLayers(self.reference) if compiles and self.reference is not None else None
        self.whole_because: str | None = None  # why logits are not computed in chunks although that is asked for
        for model in (self.model, self.reference):
            if model is not None:
                self.world.shard(model, rounded=rounded)
        self.head, self.reference_head = self._head(self.model), self._head(self.reference)

    def _head(self, model: Any) -> Head | None:
        """What gives log-probs without all logits at once, where that is asked for and proves right on this model."""
        trainer, noise = self.config.trainer, self.config.method.perturbation
        if model is None or trainer.logits_chunk is None:
            return None
        try:
            if noise is not None and noise.layers == LOGITS:
                raise Unproven("the perturbation acts on all of them")
            return proven_head(model, trainer.logits_chunk, trainer.seed)
        except Unproven as error:
            self.whole_because = str(error)
            logger.warning("trainer.logits_chunk: logits are computed at once, not in chunks: %s", error)
            return None

    def _check_room(self) -> None:
        trainer, rollout = self.config.trainer, self.config.rollout
        whole = sum(parameter.nbytes for parameter in self.model.parameters())
        trained = sum(parameter.nbytes for parameter in self.model.parameters() if parameter.requires_grad)
        saved = whole - trained if adapters.layers_of(self.model) else whole  # an adapter is saved merged
        longest = longest_of(self.task, None) or 2 * rollout.max_new_tokens  # prompts as long as responses
        tokens = (trainer.lag + 1) * trainer.prompts * trainer.samples * longest
        checkpoint.check_room(self.run_dir, trained=trained, saved=saved, tokens=tokens, every=trainer.checkpoint_every)

    def _sampling(self, settings: EngineSettings) -> Sampling:
        return self.ends.sampling(
            temperature=settings.temperature, max_new_tokens=settings.max_new_tokens, stops=self.stops
        )

    def _engine(
        self, settings: EngineSettings, scratch: Path | None, *, group: str = "rollout", log_prefix: str = ""
    ) -> Engine:
        """The engine of one configuration group, which serves the model as it is trained."""
        trainer, vocabulary = self.config.trainer, len(self.model.get_input_embeddings().weight)
        asked = [
            prompts.prompt_ids(self.tokenizer, self.task, problem, self.config.model)
            for problem in (self.validation_problems or self.problems)[:8]
        ]
        fixed = Probe(
            probe.sequences(asked, vocabulary, trainer.seed, self.limits.positions),
            lambda sequences, temperature: sequence_log_probs(self.model, sequences, temperature),
            # training/forward.py: autocast on a GPU
            dtype="bfloat16" if self.device.type == "cuda" or trainer.precision == "bfloat16" else "float32",
        )
        log = self.run_dir / registry.log_name(settings, log_prefix)
        host = Host(self.model, self.folder, log, self.device, trainer.seed, fixed, scratch, group)
        return registry.make(settings, host)

    def _validation(self) -> Validation:
        return Validation(
            self.config,
            self.validator,
            self.task,
            self.validation_problems,
            self.tokenizer,
            self._sampling(self.config.validation),
            self.ends,
            self.limits,
            self.device,
            shared=self.validator is self.engine,
            load_initial=lambda: models.load_model(models.check_model(self.config.model), self.device),
            head=self.head,
            perturbation=self.perturbation,
            world=self.world,
        )

    def close(self) -> None:
        """Give back what the engines hold outside this process."""
        with suppress(Exception):  # what it raises follows from what ended the job, or the job is over
            self.ahead.settle()
        self.engine.close()
        self.validator.close()
        if self.task.environment is not None:
            self.task.environment.close()

    def _perturbation(self) -> LayerwisePerturbation | None:
        settings = self.config.method.perturbation
        if settings is None:
            return None
        try:
            return LayerwisePerturbation.of(self.model, settings, seed=self.config.trainer.seed)
        except ValueError as error:  # a model that cannot be perturbed
            raise UserError(f"train: method.perturbation: {error}") from None

    @property
    def origin(self) -> dict[str, Any]:
        """What the results follow from: hashes, versions and the resolved configuration."""
        return self.provenance | {"config": self.config.model_dump(mode="json")}

    def start(self) -> None:
        """Continue from a checkpoint, or begin: empty records, validation of the initial model."""
        state = self._found()
        if state is None:
            checkpoint.seed_random_state(self.config.trainer.seed)
        else:
            self._restore(state)
        self.records.write()
        # In the middle of a rollout batch these weights are newer than those it was sampled with: nothing is sampled
        # before the next sync.
        self.prove_adapter()
        self.engine.sync_weights(adapters.served(self.model), version=self.done)
        if state is not None:
            checkpoint.set_random_state(state["random"])
        elif self.config.trainer.validate_every:
            self.records.append("metrics.jsonl", {"step": 0} | self.validation.accuracy(self.model, 0))
        self._write_settings()

    def prove_adapter(self) -> None:
        """Hold the engines' first answers against an adapter that does something: at the start it changes nothing."""
        if adapters.layers_of(self.model):
            with adapters.stirred(self.model):
                for engine in {id(engine): engine for engine in (self.engine, self.validator)}.values():
                    engine.sync_weights(adapters.served(self.model), version=self.done)

    @contextmanager
    def initial_policy(self) -> Iterator[tuple[Any, Head | None]]:
        """The model that the job started from and its head, for a KL penalty: a copy, or what an adapter stands
        beside."""
        if self.reference is not None:
            yield self.reference, self.reference_head
        else:
            with adapters.base(self.model) as initial:
                yield initial, self.head

    def _found(self) -> dict[str, Any] | None:
        """The newest usable checkpoint: the first rank chooses and reads it, the others read what they need of it."""
        found = checkpoint.usable(self.run_dir, self.origin) if self.world.first else None
        folder = self.world.share(None if found is None else found[0])
        if folder is None:
            return None
        return checkpoint.read(folder, mapped=True) if found is None else found[1]

    def _restore(self, state: dict[str, Any]) -> None:
        adapters.load_state(self.model, state["model"])
        if self.masters is not None:
            self.masters.load_state(state["model"])
        self.updater.load_state_dict(state["updater"])
        if self.perturbation is not None:
            self.perturbation.load_state_dict(state["perturbation"])
        self.done, self.records.texts = state["step"], state["records"]
        self.pending = PendingStep.of(state["pending"], self.device) if state["pending"] else None
        self.under_way = state["under_way"]
        self.ahead.load_state(state["ahead"])

    def save(self) -> bool:
        """Write a checkpoint of this very moment; whether that worked."""
        state = {
            "step": self.done,
            "model": self._gathered() | (self.masters.state() if self.masters is not None else {}),
            "updater": self.updater.state_dict(),
            "perturbation": self.perturbation.state_dict() if self.perturbation is not None else None,
            "pending": self.pending.state_dict() if self.pending is not None else None,
            "under_way": self.under_way,
            "ahead": self.ahead.state(),
            "records": self.records.texts,
            "random": checkpoint.random_state(),
        }
        return self.world.share(self.world.first and checkpoint.save(self.run_dir, self.origin, state))

    def _gathered(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of the model, whole, on the first rank."""
        return self.world.model_state(self.model, list(adapters.state(self.model)))

    def finish(self) -> None:
        """The final model. The records of a finished job are complete and its checkpoints gone."""
        check_perturbed(self.config, self.updater.perturbed_updates)
        noise = {}
        if self.perturbation is not None:
            state = self.perturbation.state_dict()
            noise = {"perturbation.json": state | {"log_std": [float(value) for value in state["log_std"]]}}
        self.records.write()
        model = self.model
        if self.world.size == 1:
            adapters.save(model, self.run_dir / "adapter", self.config.model.name)
            adapters.merge(model)
            if self.masters is not None:
                self.masters.widen()
        else:
            model = self._put_together()
        if not self.world.first:
            return
        models.save_model(model, self.tokenizer, self.run_dir / "model", noise)
        if not self.config.trainer.keep_checkpoints:
            checkpoint.prune(self.run_dir)

    def _put_together(self) -> Any:
        """The final model as one process would have it, in main memory; the adapter is saved."""
        if adapters.layers_of(self.model):
            values = self._gathered()
            if self.world.first:
                adapters.save(self.model, self.run_dir / "adapter", self.config.model.name, values)
        whole = models.load_model(self.folder, torch.device("cpu")) if self.world.first else None
        for name, value in adapters.served(self.model):
            if whole is not None:
                whole.get_parameter(name).data.copy_(value)
        return whole

    def _write_settings(self) -> None:
        write_text(self.run_dir / "config.yaml", to_yaml(self.config))
        write_json(self.run_dir / "provenance.json", self.provenance)
        active = describe_active(self.config, self.engine, self.model, self.updater) | self.world.describe(self.model)
        if self.whole_because is not None:
            active["log_probs_whole_because"] = self.whole_because
        check_active(self.config, active)
        if self.task.environment is not None:
            active["tools"] = self.task.environment.describe()
        active["end_tokens"] = {source: list(ids) for source, ids in self.ends.named.items()}
        if set(self.read_from) != {"float32"}:
            active["weights_read_from"] = self.read_from
        write_json(self.run_dir / "active.json", active)
