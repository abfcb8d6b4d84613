"""An engine in a process of its own, with the served model's weights put in place at every sync: what such engines
share.

The process is started once per job and started again when it crashes, is killed, or does not answer in time; the
current weights are then loaded again and the batch is repeated whole. With seeded requests its samples are the same as
they would have been. After every load the engine's weights and log-probs are compared with the served model's: an
engine that serves anything but the current weights stops the job.

Another engine is a subclass (what its process is told, in which environment, and what to advise when it dies), and a
server module over there that answers ``sync``, ``readback``, ``generate`` and ``describe`` (``alp.rollout.serving``):

- ``sync`` takes every parameter under every name it goes by, to be copied before it answers nothing: they lie in
  memory that both have (``alp.rollout.transport``);
- ``readback`` answers samples of those parameters that can be read back (``alp.rollout.readback``);
- ``generate`` takes ``ids`` (all prompts end to end) and ``lengths`` (prompts,), with ``seeds``, ``temperature``,
  ``max_new_tokens``, ``ends`` and ``prompt_log_probs`` in its header, and where a turn may end sooner ``limits`` (most
  tokens of each) and ``forms`` (``alp.rollout.stops``), which it need not know; it answers ``ids``, ``log_probs`` and
  ``lengths`` likewise, and ``prompt_log_probs`` (without each prompt's first token) when asked for;
  its header says ``dropped`` where the engine then let go of its weights, which are loaded again when they are needed;
- ``describe`` answers what is active in its header.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from alp import adapters
from alp.configuration.rollout_schema import SupervisedRollout
from alp.errors import UserError
from alp.rollout.engine import Completion, Host, Request, Sampling
from alp.rollout.probe import TOLERANCE, StaleWeights
from alp.rollout.process import EngineLost, Process
from alp.rollout.readback import aliases, differing, layout
from alp.rollout.transport import CUDA_IPC, Outbox

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
_QUANTISED = 4.0  # times the tolerance of its dtype: weights of 8 bits, 3 of them mantissa
_QUANTISED_READBACK = 0.1  # of the largest element: 8-bit formats with 3 mantissa bits round by 1/16


class SupervisedEngine(ABC):
    """An engine process under supervision: ``server`` is the module it runs, ``process_class`` what starts and ends
    it."""

    server: ClassVar[str]
    process_class: ClassVar[type[Process]] = Process

    def __init__(self, settings: SupervisedRollout, host: Host) -> None:
        self.settings, self.host = settings, host
        self.name = f"{host.group}={settings.engine}"
        model = adapters.plain(host.model)
        # Tied embeddings go under every name they have: the engine may hold copies.
        self._kinds, self._aliases = layout(model), aliases(model)
        self._shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        rounding = max(TOLERANCE[settings.dtype], TOLERANCE[host.probe.dtype])
        self.tolerance = rounding * (_QUANTISED if settings.quantised else 1.0)
        self.process: Process | None = None
        self.restarts = 0  # of the process, after it was lost
        self.version: int | None = None
        self._proven = False  # whether an engine has answered a batch on this machine
        self._outbox: Outbox | None = None  # what the engine must hold: a restart loads it again
        self._gpu: str | None = None  # of the running process, where it is on one
        self._way: str | None = None  # how it was given the current weights
        self._loaded: int | None = None  # version the running process has
        self._figures: dict[str, float] = {}
        self._read_back = 0
        self.detached = False  # the served model changes meanwhile: a restart reads back what it loads, without a probe

    @abstractmethod
    def start_message(self) -> dict[str, Any]:
        """What the server is told first; made anew at each start."""

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """Environment variables of the process."""

    @abstractmethod
    def advice(self, lost: EngineLost) -> str:
        """One sentence on an engine that does not start: how it ended, on what, and what to set."""

    @property
    def makes_sockets(self) -> bool:
        """Whether the process makes Unix sockets in its temporary folder, whose path must then be short."""
        return False

    def describe(self) -> dict[str, Any]:
        """What is really active, asked of the running engine. Raises RuntimeError before the first sync."""
        self._check_synced("describe")
        answer, _ = self._persist(lambda: self._ask("describe"))
        known = f"{self._read_back} of {len(self._shapes) + len(self._aliases)}"
        return answer | {"weight_noise": 0.0, "weights_read_back": known, "weights_by": self._way}

    def sync_weights(self, weights: Iterable[tuple[str, Tensor]], version: int) -> dict[str, float]:
        """Load, read back and probe. Returns seconds and bytes for ``timings.jsonl``; raises StaleWeights."""
        if self._outbox is None:
            self._outbox = Outbox(getattr(torch, self.settings.dtype), self._shapes, self._aliases)
        clock = time.perf_counter()
        self.version = None
        self._outbox.fill(weights)
        filled = time.perf_counter() - clock
        self.version, self._loaded = version, None
        try:
            self._persist(lambda: None)
        finally:
            self._outbox.settle()
        return self._figures | {"seconds/sync_fill": filled, "rollout/engine_restarts": float(self.restarts)}

    def generate(self, requests: list[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order. Raises RuntimeError before the first sync."""
        self._check_synced("generate")
        prompts = [list(request.prompt_ids) for request in requests]
        seeds = [seed_of(request.key) for request in requests]
        limits = [request.most(sampling) for request in requests]
        sampled = self._persist(lambda: self._sample(prompts, seeds, sampling, limits=limits))
        self._proven = True
        ends = sampled["lengths"].cumsum(0).tolist()
        ids, log_probs = sampled["ids"].tolist(), sampled["log_probs"].tolist()
        completions = []
        for start, end in zip([0, *ends], ends, strict=False):
            tokens = ids[start:end]
            finished = tokens[-1] in sampling.end_token_ids
            completions.append(Completion(token_ids=tokens, log_probs=log_probs[start:end], finished=finished))
        return completions

    def close(self) -> None:
        """End the process in an orderly way. May be called twice."""
        if self.process is not None:
            self.process.stop()
        self.process, self._loaded = None, None

    def _check_synced(self, name: str) -> None:
        if self.version is None:
            raise RuntimeError(f"{name}: no weights yet, call sync_weights first")

    def _persist(self, action: Callable[[], Result]) -> Result:
        """Do it with a running engine that holds the current weights; after a loss, start again and repeat it whole.

        Raises UserError where a new engine would be lost likewise: one that has never answered and dies by its own
        doing, or is killed while it starts for the second time in a row.
        """
        killed, limit = 0, self.settings.restarts
        for attempt in range(limit + 1):
            try:
                self._ensure()
                return action()
            except EngineLost as error:
                starting = self.process is None
                self._abandon()
                self.restarts += 1
                killed = killed + 1 if starting and error.killed else 0
                if (error.certain and not self._proven) or killed == 2:
                    raise UserError(self.advice(error)) from None
                what = "given up" if attempt == limit else "starting it again, the batch is repeated"
                title, log = self.settings.title, self.host.log
                logger.warning("the %s engine was lost (%s): %s; its log is %s", title, error, what, log)
                lost = error
        raise RuntimeError(f"{self.name}: {limit + 1} engines in a row were lost ({lost}); see {self.host.log}")

    def _ensure(self) -> None:
        if self.process is None:
            self.process = self._start()
            self._loaded = None
        if self._loaded != self.version:
            clock = time.perf_counter()
            size = self._load()
            loaded = time.perf_counter()
            gap = self._verify()
            self._loaded = self.version
            self._figures = {
                "seconds/sync_load": loaded - clock,
                "seconds/sync_probe": time.perf_counter() - loaded,
                "sync/bytes": float(size),
                "sync/probe_difference": gap,
            }

    def _load(self) -> int:
        """Give the running process the current weights; returns their bytes."""
        assert self._outbox is not None
        while True:
            self._way = self._outbox.way(self._gpu)
            answer, _ = self._ask("sync", *self._outbox.message(self._way))
            if "unreachable" not in answer:
                return self._outbox.bytes
            if self._way != CUDA_IPC:
                raise EngineLost(f"sync by {self._way}: {answer['unreachable']}")
            logger.warning(
                "the %s engine cannot open the trainer's GPU memory (%s): weights go through the host",
                self.settings.title,
                answer["unreachable"],
            )
            self._outbox.ipc = False

    def _start(self) -> Process:
        clock = time.perf_counter()
        process = self.process_class(
            self.server,
            name=self.settings.engine,
            log=self.host.log,
            environment=self.environment(),
            scratch=self.host.scratch,
            sockets=self.makes_sockets,
            memory=None if self._outbox is None else self._outbox.descriptor,
        )
        title = self.settings.title
        logger.info("starting the %s engine (process %d, log %s)", title, process.pid, self.host.log)
        try:
            process.send(self.start_message(), 60.0)
            answer, _ = process.receive(self.settings.start_limit)
        except BaseException:
            process.kill()
            raise
        if "refused" in answer:
            process.kill()
            raise UserError(f"{self.name}: the engine refuses to start: {answer['refused']} (log: {self.host.log})")
        self._gpu = answer.get("gpu")
        logger.info("the %s engine is ready after %.1f s", title, time.perf_counter() - clock)
        return process

    def _ask(
        self, operation: str, header: dict[str, Any] | None = None, tensors: dict[str, Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        assert self.process is not None
        limit = self.settings.time_limit
        self.process.send({"operation": operation, **(header or {})}, limit, tensors)
        answer, values = self.process.receive(limit)
        if "refused" in answer:  # it would be again
            raise UserError(f"{self.name}: the engine refuses a request: {answer['refused']} (log: {self.host.log})")
        if "error" in answer:
            raise EngineLost(answer["error"])
        return answer, values

    def _sample(
        self,
        prompts: list[list[int]],
        seeds: list[int],
        sampling: Sampling,
        *,
        limits: list[int] | None = None,
        prompt_log_probs: bool = False,
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
        if limits is not None and min(limits, default=sampling.max_new_tokens) < sampling.max_new_tokens:
            header["limits"] = limits
        if sampling.stops is not None:
            header["forms"] = sampling.stops.plain()
        answer, values = self._ask("generate", header, tensors)
        if answer.get("dropped"):
            self._loaded = None
        return values

    def _verify(self) -> float:
        """Compare weights and log-probs with the served model's; returns the mean |log-prob difference|. Raises
        StaleWeights."""
        tolerance = _QUANTISED_READBACK if self.settings.quantised else 0.0
        _, held = self._ask("readback")
        assert self._outbox is not None
        self._outbox.settle()
        wrong = differing(self._outbox.values, held, self._kinds, tolerance)
        self._read_back = len(held.keys() & self._kinds.keys())
        gap, size = (0.0, 0.0) if self.detached else self._probe()
        allowed = self.tolerance * max(1.0, size)
        if wrong or not gap <= allowed:
            names = ", ".join(wrong[:8]) + (", …" if len(wrong) > 8 else "")
            raise StaleWeights(
                f"{self.name}: after the sync of version {self.version} the engine is not the model of"
                f" {self.host.folder} as it stands: mean log-prob difference {gap:.3g} on the probe (allowed"
                f" {allowed:.3g} for {self.settings.dtype}); weights that differ:"
                f" {names or 'none of those that can be read back'}"
            )
        return gap

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """log-probs of every token but the first at temperature 1, from the prompts' own pass."""
        sampling = Sampling(1.0, 1, eos_token_id=0, pad_token_id=0)
        seeds = [seed_of((number,)) for number in range(len(sequences))]
        flat = self._persist(lambda: self._sample(sequences, seeds, sampling, prompt_log_probs=True))
        lengths = [len(ids) - 1 for ids in sequences]
        return [part.tolist() for part in flat["prompt_log_probs"].split(lengths)]

    def _probe(self) -> tuple[float, float]:
        """Mean |difference| and mean |log-prob| over the probe: its given tokens, and one sampled after each at the
        temperature."""
        sequences, reference = self.host.probe.sequences, self.host.probe.reference
        temperature = self.settings.temperature
        sampling = Sampling(temperature, 1, eos_token_id=0, pad_token_id=0)
        seeds = [seed_of((number,)) for number in range(len(sequences))]  # no request's key is that short
        sampled = self._sample(sequences, seeds, sampling, prompt_log_probs=True)
        longer = [[*ids, token] for ids, token in zip(sequences, sampled["ids"].tolist(), strict=True)]
        expected = [value for row in reference(sequences, 1.0) for value in row]
        expected += [row[-1] for row in reference(longer, temperature or 1.0)]
        known, served = torch.tensor(expected), torch.cat([sampled["prompt_log_probs"], sampled["log_probs"]])
        if known.shape != served.shape:
            raise EngineLost(f"probe: {len(served)} log-probs instead of {len(known)}")
        return float((known - served).abs().mean()), float(known.abs().mean())

    def _abandon(self) -> None:
        if self.process is not None:
            self.process.kill()
        self.process, self._loaded = None, None


def seed_of(key: tuple[int, ...]) -> int:
    """The seed of a request: 63 bits of a hash, so that no two keys share a stream."""
    digest = hashlib.sha256(json.dumps(["vllm request", *map(int, key)]).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
