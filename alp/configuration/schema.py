"""The typed, closed form of every configuration: what each key means, its unit, its bounds.

Field names follow the YAML groups in ``configs/``; the ratios, clips and corrections are those of the method
specification (§§1-5 of docs/method.md). Every fault that can be known before computing is refused here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from alp.configuration.fields import Name, NonNegative, Positive, PositiveFloat, Strict
from alp.configuration.model_schema import Model, Pretrain
from alp.configuration.task_schema import (
    ArithmeticTask,
    CustomTask,
    MathematicsTask,
    ReasoningGymTask,
    SumsInWordsTask,
    Task,
)
from alp.configuration.tracking_uri import located
from alp.errors import nearest

__all__ = [
    "VERBS",
    "ArithmeticTask",
    "CustomTask",
    "MathematicsTask",
    "ReasoningGymTask",
    "Strict",
    "SumsInWordsTask",
    "Task",
]

Level = Literal["token", "sequence", "sequence_geometric", "prefix", "turn"]
_BAND = re.compile(r"-?[0-9]+:-?[0-9]+")


class Correction(Strict):
    """Rollout correction on ω = π_old / μ (specification §4)."""

    kind: Literal["none", "truncate", "mask", "mask_keep_denominator"]
    level: Literal["token", "sequence", "sequence_geometric"]
    upper: PositiveFloat | None
    lower: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
    veto: PositiveFloat | None

    @model_validator(mode="after")
    def _bounds(self) -> Correction:
        if self.kind == "none" and (self.upper is not None or self.lower is not None):
            raise ValueError(
                "bounds without a kind would be ignored: set kind to truncate, mask or mask_keep_denominator"
            )
        if self.kind != "none" and self.upper is None:
            raise ValueError(f"kind '{self.kind}' needs an upper bound")
        if self.upper is not None and self.lower is not None and self.lower >= self.upper:
            raise ValueError(f"lower = {self.lower} must be below upper = {self.upper}")
        if self.kind == "truncate" and self.lower is not None:
            raise ValueError("truncate has no lower bound: leave lower empty")
        return self


class Perturbation(Strict):
    """Layerwise noise (specification §2). ``std`` 0 switches it off: the control."""

    layers: str | list[int]
    std: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    learnable: bool
    lr: PositiveFloat
    std_min: PositiveFloat
    std_max: PositiveFloat

    @field_validator("layers")
    @classmethod
    def _known(cls, value: str | list[int]) -> str | list[int]:
        names = ("all", "early", "middle", "late", "logits")
        if isinstance(value, str) and value not in names and not _BAND.fullmatch(value):
            raise ValueError(f"unknown layers '{value}'{nearest(value, names)} (or start:end, or a list)")
        return value

    def check_depth(self, depth: int) -> None:
        """Refuse bands and lists outside a model of ``depth`` layers. Raises ValueError."""
        if isinstance(self.layers, list):
            chosen = self.layers
        elif _BAND.fullmatch(self.layers):
            start, end = map(int, self.layers.split(":"))
            chosen = [*range(start, end)] if start >= 0 and end <= depth else []
        else:
            return
        if not chosen or not all(0 <= layer < depth for layer in chosen):
            raise ValueError(
                f"method.perturbation.layers: {self.layers} is empty or outside the model's {depth} layers (0:{depth})"
            )

    @model_validator(mode="after")
    def _bounds(self) -> Perturbation:
        if self.std_min >= self.std_max:
            raise ValueError(f"std_min = {self.std_min} must be below std_max = {self.std_max}")
        if self.std and not self.std_min <= self.std <= self.std_max:
            raise ValueError(f"std = {self.std} lies outside [{self.std_min}, {self.std_max}]")
        return self


class Method(Strict):
    """One row of the preset table (specification §5)."""

    name: Name
    numerator: Literal["current", "perturbed"]
    denominator: Literal["old", "rollout"]
    level: Level
    clip_low: Annotated[float, Field(ge=0, le=1)]
    clip_high: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    dual_clip: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
    correction: Correction
    perturbation: Perturbation | None

    @model_validator(mode="before")
    @classmethod
    def _noise_needs_a_numerator(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("numerator") == "current" and value.get("perturbation") is not None:
            raise ValueError(f"method '{value.get('name')}' has no perturbation: choose token_alp or seq_alp")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Method:
        if (self.numerator == "perturbed") != (self.perturbation is not None):
            raise ValueError("numerator 'perturbed' and a perturbation block go together: one is set without the other")
        if self.denominator == "rollout" and (self.correction.kind != "none" or self.correction.veto is not None):
            raise ValueError(
                "a rollout correction on top of denominator 'rollout' would correct twice: use denominator 'old'"
            )
        return self


class Sampled(Strict):
    """What every engine is told about sampling."""

    temperature: PositiveFloat
    top_p: float
    top_k: int
    max_new_tokens: Positive

    @model_validator(mode="after")
    def _unbiased(self) -> Sampled:
        if self.top_p != 1.0 or self.top_k not in (0, -1):
            raise ValueError(
                "top_p < 1 or top_k bias the behaviour policy: training rollouts need top_p=1.0 and top_k=0"
            )
        return self


class HFRollout(Sampled):
    """Sampling by transformers. ``dtype`` is the inference dtype: int8 means quantised weights computed in bfloat16."""

    engine: Literal["hf"]
    dtype: Literal["float32", "bfloat16", "int8"]
    batch_size: Positive  # sequences sampled at a time
    weight_noise: Annotated[float, Field(ge=0, lt=1)]  # relative size of multiplicative noise on the engine's weights


class VLLMRollout(Sampled):
    """Sampling by vLLM in a process of its own. Exactly one of ``memory_share`` and ``kv_cache_gib`` bounds its
    memory."""

    engine: Literal["vllm"]
    dtype: Literal["float32", "bfloat16"]
    quantization: Literal["fp8"] | None  # of the linear weights; on a GPU alone
    tensor_parallel: Positive  # devices the model is spread over; 1 on a CPU
    memory_share: Annotated[float, Field(gt=0, le=1)] | None  # of the device's memory, weights included
    kv_cache_gib: PositiveFloat | None  # GiB of the KV cache
    max_sequences: Positive  # sampled at a time
    max_length: Positive | None  # prompt and response, tokens; None: the model's own limit
    prefix_cache: bool  # prompts of one group are computed once; emptied at every sync
    sleep_level: Annotated[
        int, Field(ge=0, le=2)
    ]  # between rollouts 1 moves the weights to the host, 2 drops them; on a GPU alone
    seeded: bool  # one seed per request; without it faster on some platforms, and not repeatable
    threads: Positive  # of the engine process
    start_limit: PositiveFloat  # seconds until the engine must be ready
    time_limit: PositiveFloat  # seconds for one rollout batch or one sync: a slower engine hangs, and is started again
    restarts: NonNegative  # engines lost in a row before the job fails

    @model_validator(mode="after")
    def _one_bound(self) -> VLLMRollout:
        if (self.memory_share is None) == (self.kv_cache_gib is None):
            raise ValueError("set one of memory_share and kv_cache_gib, and the other to null")
        return self


Rollout = Annotated[HFRollout | VLLMRollout, Field(discriminator="engine")]


class Trainer(Strict):
    """The loop: ``prompts`` x ``samples`` responses per rollout batch, ``updates_per_batch`` optimizer steps on it."""

    steps: Positive
    prompts: Positive
    samples: Annotated[int, Field(ge=2)]
    updates_per_batch: Positive
    micro_batch: Positive | None  # sequences per forward; None: the whole mini-batch
    lr: PositiveFloat
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_grad_norm: PositiveFloat
    kl: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # coefficient of k3 to the initial model
    max_skipped: Positive  # updates with a non-finite gradient in a row before the run fails
    validate_every: NonNegative  # steps; 0: never
    validation_samples: Positive
    probe_every: NonNegative  # steps between sharpness probes and logged updates; 0: never
    checkpoint_every: NonNegative  # steps; 0: never
    keep_checkpoints: bool
    device: Literal["auto", "cpu", "cuda"]
    threads: Positive
    seed: NonNegative

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


class Evaluation(Strict):
    """avg@k, greedy accuracy and pass@k of one model on one set, never perturbed."""

    set: Name  # test, validation, train or an evaluation set that the task names
    samples: Positive
    greedy: bool
    temperature: PositiveFloat
    dtype: Literal["float32", "bfloat16", "int8"]
    max_new_tokens: Positive
    batch_size: Positive
    device: Literal["auto", "cpu", "cuda"]
    threads: Positive
    seed: NonNegative


class Run(Strict):
    """Where results go; no part of the run's identity."""

    dir: str
    replace: bool = False  # results of another identity in ``dir`` give way; without it they are refused
    grid: Name | None
    arm: Name | None
    tracking: str | None  # MLflow tracking URI; None: no tracking

    @classmethod
    def of(cls, folder: Path) -> Run:
        """A folder by itself, of no grid."""
        return cls(dir=str(folder), grid=None, arm=None, tracking=None)

    @field_validator("tracking")
    @classmethod
    def _names_one_file(cls, uri: str | None) -> str | None:
        if uri is not None:
            located(uri)
        return uri


class PrepareConfig(Strict):
    task: Task
    run: Run


class FetchConfig(Strict):
    model: Model
    run: Run

    @model_validator(mode="after")
    def _has_source(self) -> FetchConfig:
        if self.model.source is None:
            raise ValueError(f"model '{self.model.name}' has no source to fetch it from: `alp pretrain` makes it")
        return self


class PretrainConfig(Strict):
    task: Task
    model: Model
    pretrain: Pretrain
    run: Run

    @model_validator(mode="after")
    def _embedded(self) -> PretrainConfig:
        if not isinstance(self.task, ArithmeticTask):
            raise ValueError(
                f"only the arithmetic task has worked solutions to teach, task '{self.task.name}' has none"
            )
        if self.model.source is not None:
            raise ValueError(
                f"model '{self.model.name}' is not taught here: get it with `alp fetch model={self.model.name}`"
            )
        return self


class TrainConfig(Strict):
    task: Task
    model: Model
    method: Method
    variant: Name | None
    rollout: Rollout
    trainer: Trainer
    run: Run

    @model_validator(mode="after")
    def _long_enough(self) -> TrainConfig:
        self.task.check_limit(self.rollout.max_new_tokens)
        return self


class EvaluateConfig(Strict):
    task: Task
    model: Model
    evaluation: Evaluation
    run: Run

    @model_validator(mode="after")
    def _long_enough(self) -> EvaluateConfig:
        if self.evaluation.set not in self.task.sets and not isinstance(
            self.task, CustomTask
        ):  # which names its sets once imported
            raise ValueError(
                "evaluation.set: the task has no set"
                f" '{self.evaluation.set}'{nearest(self.evaluation.set, self.task.sets)}"
            )
        self.task.check_limit(self.evaluation.max_new_tokens)
        return self


class GridConfig(Strict):
    """``grid`` is a name in ``configs/grid/`` or a path; ``results`` the root that holds ``<grid>/``."""

    grid: str
    results: str
    replace: bool = False  # what was made from another form of the grid file gives way; without it that is refused


class DumpFields(Strict):
    """What each field of a dump is called in the file; all but the first three may be absent."""

    old_log_probs: str
    rollout_log_probs: str
    response_mask: str
    log_probs: str
    perturbed_log_probs: str
    advantages: str
    step: str
    turn_ids: str


class DiagnoseConfig(Strict):
    """``input`` is a .jsonl, .parquet or .npz file (docs/diagnose.md); ``output`` a folder, results/diagnose/<its stem>
    without one."""

    input: str | None
    output: str | None
    replace: bool = False  # a diagnosis of another file in ``output`` gives way; without it that is refused
    fields: DumpFields
    threads: Positive  # of torch: the last digits of a sum depend on it


VERBS: dict[str, type[Strict]] = {
    "prepare": PrepareConfig,
    "fetch": FetchConfig,
    "pretrain": PretrainConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "aggregate": GridConfig,
    "figures": GridConfig,
    "track": GridConfig,
    "report": GridConfig,
    "manifest": GridConfig,
    "diagnose": DiagnoseConfig,
}
