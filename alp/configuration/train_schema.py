"""The configuration of ``alp train``: the loop and all that stands around it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from alp.configuration.fields import Name, NonNegative, Positive, PositiveFloat, Strict
from alp.configuration.method_schema import MethodField, filled
from alp.configuration.model_schema import Model
from alp.configuration.rollout_schema import Rollout, with_behaviour_policy
from alp.configuration.run_schema import Run
from alp.configuration.task_schema import Task


class Trainer(Strict):
    """The loop: ``prompts`` x ``samples`` responses per rollout batch, ``updates_per_batch`` optimizer steps on it."""

    steps: Positive
    """Rollout batches to sample and train on."""
    prompts: Positive
    """Problems of a rollout batch."""
    samples: Annotated[int, Field(ge=2)]
    """Responses to each of them."""
    updates_per_batch: Positive
    """Optimizer steps on a rollout batch, each on an equal part of its prompts."""
    lag: NonNegative
    """Steps ahead of its own updates at which a rollout batch is sampled, fewer than ``steps``; 0: each with the newest
    weights."""
    micro_batch: Positive | None
    """Sequences per forward; null: the whole mini-batch."""
    micro_tokens: Positive | None
    """Or tokens per forward, padding included, of sequences sorted by length; null: no such limit."""
    logits_chunk: Positive | None
    """Tokens whose logits are in memory at once; null: all of a forward's."""
    old_log_probs: bool
    """Whether π_old is computed over each rollout batch; without, the figures that need it are missing."""
    lr: PositiveFloat
    """Learning rate of the weights (AdamW), constant."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """AdamW's decay of the weights."""
    max_grad_norm: PositiveFloat
    """Global norm that gradients are clipped to."""
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Coefficient of the k3 penalty to the initial model; 0: none, and no such model in memory."""
    max_skipped: Positive
    """Updates with a non-finite gradient in a row before the run fails."""
    validate_every: NonNegative
    """Steps between validations; 0: never."""
    validation_samples: Positive
    """Responses to each problem of the validation set."""
    probe_every: NonNegative
    """Steps between sharpness probes and logged updates; 0: never."""
    checkpoint_every: NonNegative
    """Steps between checkpoints; 0: never."""
    keep_checkpoints: bool
    """Whether checkpoints stay once the job is finished."""
    precision: Literal["autocast", "bfloat16"]
    """``autocast``: weights in float32, products in bfloat16 on a GPU; ``bfloat16``: weights in it too, with float32
    copies to step."""
    compile: bool
    """Whether decoder layers are compiled, one by one, for scoring and updates."""
    deterministic_attention: bool
    """On a GPU: no cuDNN in attention, and a backward in torch's strict mode."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model is; ``auto``: on a GPU where there is one."""
    devices: Positive
    """Ranks, each with one device and so many threads: they change speed and memory, not results."""
    threads: Positive
    """Threads of torch on the CPU."""
    seed: NonNegative
    """Of everything that is drawn: prompts, samples, noise, adapters."""

    @model_validator(mode="after")
    def _one_size(self) -> Trainer:
        if self.micro_batch is not None and self.micro_tokens is not None:
            raise ValueError(
                f"micro_batch = {self.micro_batch} and micro_tokens = {self.micro_tokens}: one of them is null"
            )
        return self

    @model_validator(mode="after")
    def _divides(self) -> Trainer:
        if self.prompts % self.updates_per_batch:
            fits = [k for k in range(1, self.prompts + 1) if self.prompts % k == 0]
            best = min(fits, key=lambda k: abs(k - self.updates_per_batch))
            raise ValueError(
                f"prompts = {self.prompts} is not divisible by updates_per_batch = {self.updates_per_batch}; nearest"
                f" that is: {best}"
            )
        return self

    @model_validator(mode="after")
    def _lags_behind_its_steps(self) -> Trainer:
        if self.lag >= self.steps:
            raise ValueError(f"lag = {self.lag} is not below steps = {self.steps}; nearest that is: {self.steps - 1}")
        return self

    @model_validator(mode="after")
    def _of_several_devices(self) -> Trainer:
        rows = self.prompts // self.updates_per_batch * self.samples
        if self.devices > rows:
            raise ValueError(f"devices = {self.devices}, but a mini-batch has {rows} responses: at most so many")
        if self.devices > 1 and self.compile:
            raise ValueError(f"compile does not go with devices = {self.devices} yet: set compile=false")
        return self


class TrainConfig(Strict):
    """One training job: ``rollout`` samples what is trained on, ``validation`` what is only scored."""

    task: Task
    """Problems and how answers are judged."""
    model: Model
    """The model that is trained."""
    method: MethodField
    """The off-policy method: ratio, corrections, loss, noise."""
    variant: Name | None
    """A control (a file of ``configs/variant``), part of the arm's name; null: none."""
    rollout: Annotated[Rollout, AfterValidator(with_behaviour_policy)]
    """The engine that samples what is trained on."""
    validation: Rollout
    """The engine that samples validations."""
    trainer: Trainer
    """The loop."""
    run: Run
    """Where results go."""

    @classmethod
    def filled(cls, plain: dict[str, Any]) -> dict[str, Any]:
        """Every field of the method: a preset holds only what differs from the defaults."""
        plain, preset = super().filled(plain), plain.get("method")
        return plain | {"method": filled(preset)} if isinstance(preset, dict) else plain

    @model_validator(mode="after")
    def _long_enough(self) -> TrainConfig:
        for settings in (self.rollout, self.validation):
            self.task.check_limit(settings.max_new_tokens)
        return self

    @model_validator(mode="after")
    def _all_weights(self) -> TrainConfig:
        if self.trainer.precision == "bfloat16" and self.model.lora is not None:
            raise ValueError("trainer.precision = bfloat16 trains all weights: it does not go with model.lora")
        return self

    @model_validator(mode="after")
    def _one_device_each(self) -> TrainConfig:
        devices, noise = self.trainer.devices, self.method.perturbation
        if devices == 1:
            return self
        for group, settings in (("rollout", self.rollout), ("validation", self.validation)):
            if (spread := getattr(settings, "tensor_parallel", 1)) > 1:
                raise ValueError(
                    f"{group}.tensor_parallel = {spread} does not go with trainer.devices = {devices}: each rank has an"
                    " engine on its own device"
                )
        if self.trainer.precision == "bfloat16" and noise is not None and noise.dtype == "hidden":
            raise ValueError(
                "method.perturbation.dtype = hidden with trainer.precision = bfloat16 does not go with"
                f" trainer.devices = {devices}: log σ would be held in float32 there"
            )
        return self

    @model_validator(mode="after")
    def _can_do_without(self) -> TrainConfig:
        method = self.method
        if not self.trainer.old_log_probs and method.reads_old:
            why = "denominator is 'old'" if method.denominator == "old" else "corrections read π_old"
            raise ValueError(f"trainer.old_log_probs = false does not go with method '{method.name}', whose {why}")
        return self
