"""The configurations of engines (docs/rollout.md): ``Rollout`` is one of them, told apart by ``engine``.

Everything that others ask about an engine before it runs is asked here, of its schema class; what the engine does is
one module (``alp.rollout.registry``).
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from alp.configuration.fields import NonNegative, Positive, PositiveFloat, Strict

_DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


class EngineSettings(Strict):
    """What every engine is told about sampling, and what others ask of its configuration."""

    title: ClassVar[str]  # for people

    engine: str
    """Which engine; chosen by its file, ``rollout=vllm``."""
    dtype: str
    """Dtype of the engine's weights."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the sampling; 0 is greedy decoding, which has no behaviour policy: of validation alone."""
    top_p: float
    """Must be 1.0: less would bias the behaviour policy."""
    top_k: int
    """Must be 0 or -1, both no limit: another would bias the behaviour policy."""
    max_new_tokens: Positive
    """Tokens of a response, or of a turn, at most."""

    @model_validator(mode="after")
    def _unbiased(self) -> EngineSettings:
        if self.top_p != 1.0 or self.top_k not in (0, -1):
            raise ValueError(
                "top_p < 1 or top_k bias the behaviour policy: training rollouts need top_p=1.0 and top_k=0"
            )
        return self

    @property
    def longest(self) -> int | None:
        """Tokens of prompt and response that the engine takes; None: as many as the model."""
        return None

    @property
    def apart(self) -> bool:
        """Whether it keeps weights of its own in a process of its own between two batches, so that it can sample while
        the model is updated."""
        return False

    @property
    def local_batch(self) -> int:
        """Sequences at a time where the trainer's own model samples in the engine's place."""
        return 512

    @property
    def computes_in(self) -> str:
        """The dtype of its products."""
        return self.dtype

    @property
    def quantised(self) -> bool | None:
        """Whether the engine's weights are rounded to fewer bits than it computes in; None: it does not say."""
        return False

    @property
    def alterations(self) -> list[str]:
        """What it does to the weights beyond their dtype, in words."""
        return []

    @property
    def label(self) -> str:
        """``HF bf16``, ``vLLM bf16 (fp8)``: everything that moves its log-probs away from the training code's."""
        altered = f" ({', '.join(self.alterations)})" if self.alterations else ""
        return f"{self.title} {_DTYPES.get(self.dtype, self.dtype)}{altered}"

    @property
    def active(self) -> dict[str, Any]:
        """What the running engine must say of itself (``Engine.describe``): key -> value."""
        return {"engine": self.engine, "rollout_dtype": self.computes_in}


class HFRollout(EngineSettings):
    """Sampling by transformers. ``dtype`` is the inference dtype: int8 means quantised weights computed in bfloat16."""

    title: ClassVar[str] = "HF"

    engine: Literal["hf"]
    """Sampling by transformers."""
    dtype: Literal["float32", "bfloat16", "int8"]
    """Dtype of inference; ``int8``: quantised weights computed in bfloat16."""
    batch_size: Positive
    """Sequences sampled at a time."""
    weight_noise: Annotated[float, Field(ge=0, lt=1)]
    """Relative size of multiplicative noise on the engine's weights."""
    static_cache: bool | None = None
    """Whether the cache has a fixed size, where the model goes with one; null: on a GPU."""

    @property
    def quantised(self) -> bool:
        """See EngineSettings."""
        return self.dtype == "int8"

    @property
    def computes_in(self) -> str:
        """See EngineSettings."""
        return "bfloat16" if self.dtype == "int8" else self.dtype

    @property
    def alterations(self) -> list[str]:
        """See EngineSettings."""
        return [f"weight noise {self.weight_noise:g}"] if self.weight_noise else []

    @property
    def local_batch(self) -> int:
        """See EngineSettings."""
        return self.batch_size

    @property
    def active(self) -> dict[str, Any]:
        """See EngineSettings."""
        return super().active | {"weight_noise": self.weight_noise}


class SupervisedRollout(EngineSettings):
    """An engine in a process of its own (``alp.rollout.supervised``)."""

    threads: Positive
    """Threads of the engine process."""
    start_limit: PositiveFloat
    """Seconds until the engine must be ready."""
    time_limit: PositiveFloat
    """Seconds for one rollout batch or one sync: a slower engine hangs, and is started again."""
    restarts: NonNegative
    """Engines lost in a row before the job fails."""


class VLLMRollout(SupervisedRollout):
    """Sampling by vLLM in a process of its own. Exactly one of ``memory_share`` and ``kv_cache_gib`` bounds its
    memory."""

    title: ClassVar[str] = "vLLM"

    engine: Literal["vllm"]
    """Sampling by vLLM in a process of its own."""
    dtype: Literal["float32", "bfloat16"]
    """Dtype of the engine's weights."""
    quantization: Literal["fp8"] | None
    """Of the linear weights, on a GPU alone; null: none."""
    tensor_parallel: Positive
    """Devices the model is spread over; 1 on a CPU."""
    memory_share: Annotated[float, Field(gt=0, le=1)] | None
    """Share of the device's memory, weights included; null: ``kv_cache_gib`` bounds it."""
    kv_cache_gib: PositiveFloat | None
    """GiB of the KV cache; null: ``memory_share`` bounds it."""
    max_sequences: Positive
    """Sequences sampled at a time."""
    max_length: Positive | None
    """Tokens of prompt and response; null: the model's own limit."""
    prefix_cache: bool
    """Whether prompts of one group are computed once; emptied at every sync."""
    sleep_level: Annotated[int, Field(ge=0, le=2)]
    """Between rollouts, on a GPU alone: 1 moves the weights to the host, 2 drops them, 0 does nothing."""
    seeded: bool
    """One seed per request; without it faster on some platforms, and not repeatable."""

    @model_validator(mode="after")
    def _one_bound(self) -> VLLMRollout:
        if (self.memory_share is None) == (self.kv_cache_gib is None):
            raise ValueError("set one of memory_share and kv_cache_gib, and the other to null")
        return self

    @property
    def apart(self) -> bool:
        """See EngineSettings."""
        return self.sleep_level == 0

    @property
    def quantised(self) -> bool:
        """See EngineSettings."""
        return self.quantization is not None

    @property
    def alterations(self) -> list[str]:
        """See EngineSettings."""
        return [self.quantization] if self.quantization else []

    @property
    def longest(self) -> int | None:
        """See EngineSettings."""
        return self.max_length

    @property
    def active(self) -> dict[str, Any]:
        """See EngineSettings."""
        same = ("seeded", "prefix_cache", "tensor_parallel", "max_sequences", "sleep_level")
        return (
            super().active
            | {name: getattr(self, name) for name in same}
            | {"log_prob_mode": "processed_logprobs", "rollout_threads": self.threads}
        )


class CustomRollout(EngineSettings):
    """An engine of the user's own: ``module`` defines a class ``Engine``, made with a ``Host`` and ``options``
    (docs/rollout.md)."""

    title: ClassVar[str] = "custom"

    engine: Literal["custom"]
    """An engine of your own (docs/rollout.md)."""
    module: str | None
    """Dotted name of the module that defines your class ``Engine``."""
    options: dict[str, Any]
    """What that class is made with."""

    @property
    def quantised(self) -> bool | None:
        """See EngineSettings."""
        return None

    @property
    def label(self) -> str:
        """``my_engine bf16``."""
        return f"{self.module} {_DTYPES.get(self.dtype, self.dtype)}"

    @property
    def active(self) -> dict[str, Any]:
        """See EngineSettings."""
        return {"rollout_dtype": self.dtype}


def with_behaviour_policy(rollout: EngineSettings) -> EngineSettings:
    """Refuse greedy decoding where the log-probs of what is sampled are used. Raises ValueError."""
    if not rollout.temperature:
        raise ValueError("temperature = 0 is greedy decoding, which has no behaviour policy; training needs one")
    return rollout


Rollout = Annotated[HFRollout | VLLMRollout | CustomRollout, Field(discriminator="engine")]
