"""vLLM engine: sampling in a process of its own, with the training model's weights put in place after every rollout
batch.

The process is started once per job and started again when it crashes, is killed, or does not answer in time; the
current weights are then loaded again and the batch is repeated whole. With seeded requests its samples are the same as
they would have been. After every load the engine's weights and log-probs are compared with the training model's: an
engine that serves anything but the current weights stops the job. Does not import vLLM (``alp.rollout.vllm_server``
does, over there).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from alp.configuration.schema import VLLMRollout
from alp.errors import UserError
from alp.rollout.engine import Completion, Request, Sampling
from alp.rollout.readback import differing
from alp.rollout.vllm_process import EngineLost, advice
from alp.rollout.vllm_process import Process as _Process

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# log-probs (tokens of each sequence but the first) of given ids at a temperature, under the training model
Reference = Callable[[list[list[int]], float], list[list[float]]]
# Largest mean |log-prob difference| between engine and training code, relative to the mean |log-prob| where that is
# above 1.
PROBE_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}
_QUANTISED_READBACK = 0.1  # of the largest element: 8-bit formats with 3 mantissa bits round by 1/16


class StaleWeights(RuntimeError):
    """The engine does not hold the training model's weights after a sync. Never tried again: it is a fault of the
    code."""


class VLLMEngine:
    """``reference`` and ``sequences`` are the probe: what the training model says about fixed ids.

    ``names`` are the training model's parameters: nothing else goes over. ``kinds`` says how each is read back
    (``readback.layout``), ``aliases`` which names share a tensor in the training model (tied embeddings): those are
    sent under every name, for the engine may hold copies. ``scratch`` is where the engine process gets its temporary
    folder; None: the system's.
    """

    def __init__(
        self,
        settings: VLLMRollout,
        model: Path,
        *,
        run_dir: Path,
        names: frozenset[str],
        kinds: dict[str, str],
        aliases: dict[str, str],
        reference: Reference,
        reference_dtype: str,
        sequences: list[list[int]],
        seed: int = 0,
        scratch: Path | None = None,
    ) -> None:
        self._settings, self._model, self._log = settings, model, run_dir / "vllm.log"
        self._names, self._kinds, self._aliases, self._seed = names, kinds, aliases, seed
        self._reference, self._sequences = reference, sequences
        self._tolerance = max(PROBE_TOLERANCE[settings.dtype], PROBE_TOLERANCE[reference_dtype])
        if settings.quantization:
            self._tolerance *= 4
        self._scratch = scratch
        self._process: _Process | None = None
        self._proven = False  # whether an engine has answered a batch on this machine
        self._weights: dict[
            str, Tensor
        ] = {}  # what the engine must hold, in its dtype, on the CPU: a restart loads it again
        self._loaded: int | None = None  # version the running process has
        self._figures: dict[str, float] = {}
        self._read_back = 0
        self._deaths = 0
        self.version: int | None = None

    def describe(self) -> dict[str, Any]:
        """What is really active, asked of the running engine. Raises RuntimeError before the first sync."""
        self._check_synced("describe")
        answer, _ = self._persist(lambda: self._ask("describe"))
        return answer | {"weight_noise": 0.0, "weights_read_back": f"{self._read_back} of {len(self._weights)}"}

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, float]:
        """Load, read back and probe. Returns seconds and bytes for ``timings.jsonl``; raises StaleWeights."""
        dtype = getattr(torch, self._settings.dtype)
        given = {name: value.detach().to("cpu", dtype, copy=True) for name, value in weights}
        given |= {alias: given[source] for alias, source in self._aliases.items() if source in given}
        if given.keys() != self._names:
            raise ValueError(f"weights: {sorted(given.keys() ^ self._names)[:4]} stand on one side only")
        self._weights, self.version, self._loaded = given, version, None
        self._persist(lambda: None)
        return self._figures | {"rollout/engine_restarts": float(self._deaths)}

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order. Raises RuntimeError before the first sync."""
        self._check_synced("generate")
        prompts = [list(request.prompt_ids) for request in requests]
        seeds = [seed_of(request.key) for request in requests]
        found = self._persist(lambda: self._sample(prompts, seeds, sampling))
        self._proven = True
        ends = found["lengths"].cumsum(0).tolist()
        ids, log_probs = found["ids"].tolist(), found["log_probs"].tolist()
        completions = []
        for start, end in zip([0, *ends], ends, strict=False):
            tokens = ids[start:end]
            finished = tokens[-1] in sampling.end_token_ids
            completions.append(Completion(token_ids=tokens, log_probs=log_probs[start:end], finished=finished))
        return completions

    def close(self) -> None:
        """End the process in an orderly way. May be called twice."""
        if self._process is not None:
            self._process.stop()
        self._process, self._loaded = None, None

    def _check_synced(self, name: str) -> None:
        if self.version is None:
            raise RuntimeError(f"{name}: no weights yet, call sync_weights first")

    def _persist(self, action: Callable[[], Result]) -> Result:
        """Do it with a running engine that holds the current weights; after a loss, start again and repeat it whole.

        Raises UserError where a new engine would be lost likewise: one that has never answered and dies by its own
        doing, or is killed while it starts for the second time in a row.
        """
        killed = 0
        for attempt in range(self._settings.restarts + 1):
            try:
                self._ensure()
                return action()
            except EngineLost as error:
                starting = self._process is None
                self._abandon()
                self._deaths += 1
                killed = killed + 1 if starting and error.killed else 0
                if (error.certain and not self._proven) or killed == 2:
                    raise UserError(advice(error, self._settings, self._log)) from None
                what = "given up" if attempt == self._settings.restarts else "starting it again, the batch is repeated"
                logger.warning("the vLLM engine was lost (%s): %s; its log is %s", error, what, self._log)
                lost = error
        raise RuntimeError(
            f"rollout=vllm: {self._settings.restarts + 1} engines in a row were lost ({lost}); see {self._log}"
        )

    def _ensure(self) -> None:
        if self._process is None:
            self._process = self._start()
            self._loaded = None
        if self._loaded != self.version:
            clock = time.perf_counter()
            size = self._ask("sync", {}, self._outgoing())[0]["bytes"]
            loaded = time.perf_counter()
            gap = self._verify()
            self._loaded = self.version
            self._figures = {
                "seconds/sync_load": loaded - clock,
                "seconds/sync_probe": time.perf_counter() - loaded,
                "sync/bytes": float(size),
                "sync/probe_difference": gap,
            }

    def _outgoing(self) -> dict[str, Tensor]:
        """Every parameter under every name it goes by."""
        return self._weights

    def _start(self) -> _Process:
        clock = time.perf_counter()
        process = _Process(self._log, self._settings, self._scratch)
        logger.info("starting the vLLM engine (process %d, log %s)", process.pid, self._log)
        try:
            process.send(
                {
                    "seeded": self._settings.seeded,
                    "sleep_level": self._settings.sleep_level,
                    "engine": self._arguments(),
                },
                60.0,
            )
            answer, _ = process.receive(self._settings.start_limit)
        except BaseException:
            process.kill()
            raise
        if "refused" in answer:
            process.kill()
            raise UserError(f"rollout=vllm: the engine refuses to start: {answer['refused']} (log: {self._log})")
        logger.info("the vLLM engine is ready after %.1f s", time.perf_counter() - clock)
        return process

    def _arguments(self) -> dict[str, Any]:
        """``EngineArgs`` of vLLM."""
        settings = self._settings
        found: dict[str, Any] = {
            "model": str(self._model),
            "dtype": settings.dtype,
            "quantization": settings.quantization,
            "tensor_parallel_size": settings.tensor_parallel,
            "max_num_seqs": settings.max_sequences,
            "max_model_len": settings.max_length,
            "enable_prefix_caching": settings.prefix_cache,
            "enable_sleep_mode": settings.sleep_level > 0,
            "logprobs_mode": "processed_logprobs",  # after the temperature
            "generation_config": "vllm",  # none of the sampling defaults a model folder may bring
            "skip_tokenizer_init": True,  # ids in, ids out
            # compiled graphs take minutes to make, and reloading would have to keep their addresses
            "enforce_eager": True,
            "disable_log_stats": True,
            # Unseeded requests draw from the engine's own stream: begun anew after a restart, it must not repeat
            # itself.
            "seed": self._seed if self._settings.seeded else int.from_bytes(os.urandom(4), "little") >> 1,
        }
        if settings.memory_share is not None:
            found["gpu_memory_utilization"] = settings.memory_share
        if settings.kv_cache_gib is not None:
            found["kv_cache_memory_bytes"] = int(settings.kv_cache_gib * 2**30)
        return found

    def _ask(
        self, operation: str, header: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self._process is not None
        size = self._process.send({"operation": operation, **(header or {})}, self._settings.time_limit, tensors)
        answer, found = self._process.receive(self._settings.time_limit)
        if "refused" in answer:  # it would be again
            raise UserError(f"rollout=vllm: the engine refuses a request: {answer['refused']} (log: {self._log})")
        if "error" in answer:
            raise EngineLost(answer["error"])
        return answer | ({"bytes": size} if operation == "sync" else {}), found

    def _sample(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling, *, prompt_log_probs: bool = False
    ) -> dict[str, Tensor]:
        tensors = {
            "ids": torch.tensor([token for prompt in prompts for token in prompt], dtype=torch.int32),
            "lengths": torch.tensor([len(prompt) for prompt in prompts]),
        }
        header = {
            "seeds": seeds,
            "temperature": sampling.temperature,
            "max_new_tokens": sampling.max_new_tokens,
            "ends": list(sampling.end_token_ids),
            "prompt_log_probs": prompt_log_probs,
        }
        return self._ask("generate", header, tensors)[1]

    def _verify(self) -> float:
        """Compare weights and log-probs with the training model's; returns the mean |log-prob difference|. Raises
        StaleWeights."""
        tolerance = _QUANTISED_READBACK if self._settings.quantization else 0.0
        _, held = self._ask("readback")
        wrong = differing(self._weights, held, self._kinds, tolerance)
        self._read_back = len(held.keys() & self._kinds.keys())
        gap, size = self._probe()
        allowed = self._tolerance * max(1.0, size)
        if wrong or not gap <= allowed:
            names = (
                ", ".join(wrong[:8]) + (", …" if len(wrong) > 8 else "")
                if wrong
                else "none of those that can be read back"
            )
            raise StaleWeights(
                f"rollout=vllm: after the sync of version {self.version} the engine is not the training model: mean"
                f" log-prob difference {gap:.3g} on the probe (allowed {allowed:.3g} for {self._settings.dtype});"
                f" weights that differ: {names}"
            )
        return gap

    def _probe(self) -> tuple[float, float]:
        """Mean |difference| and mean |log-prob| over the probe: its given tokens, and one sampled after each at the
        temperature."""
        temperature = self._settings.temperature
        sampling = Sampling(temperature, 1, eos_token_id=0, pad_token_id=0)
        seeds = [seed_of((place,)) for place in range(len(self._sequences))]  # no request's key is that short
        found = self._sample(self._sequences, seeds, sampling, prompt_log_probs=True)
        longer = [[*ids, token] for ids, token in zip(self._sequences, found["ids"].tolist(), strict=True)]
        wanted = [value for row in self._reference(self._sequences, 1.0) for value in row]
        wanted += [row[-1] for row in self._reference(longer, temperature)]
        known, got = torch.tensor(wanted), torch.cat([found["prompt_log_probs"], found["log_probs"]])
        if known.shape != got.shape:
            raise EngineLost(f"probe: {len(got)} log-probs instead of {len(known)}")
        return float((known - got).abs().mean()), float(known.abs().mean())

    def _abandon(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._process, self._loaded = None, None


def seed_of(key: tuple[int, ...]) -> int:
    """The seed of a request: 63 bits of a hash, so that no two keys share a stream."""
    digest = hashlib.sha256(json.dumps(["vllm request", *map(int, key)]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
