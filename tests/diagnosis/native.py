"""Dumps as the trainers write them, made from the same sequences: each writer lays them out as its trainer does.

verl's pickles are files (``dumps/``): a `DataProto` around a TensorDict, in the two layouts that TensorDict has had,
made with tensordict 0.15.3 and a class of that name; the rest is written here.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

Sequence = dict[str, Any]
PROMPT = 3  # tokens before each response, where a format has them


def sequences(step: int, count: int = 6) -> list[Sequence]:
    """Responses of differing lengths with holes in the mask: float32 log-probs of three policies."""
    rng = np.random.default_rng(100 + step)
    made = []
    for row in range(count):
        tokens = int(rng.integers(3, 9 + step))
        old = -rng.gamma(0.5, 1.0, size=tokens).astype(np.float32)
        mask = np.ones(tokens, dtype=np.int64)
        mask[1] = row % 2
        made.append(
            {
                "old_log_probs": old,
                "rollout_log_probs": (old - np.abs(0.02 * rng.normal(size=tokens))).astype(np.float32),
                "log_probs": (old - np.abs(0.1 * rng.normal(size=tokens))).astype(np.float32),
                "response_mask": mask,
                "advantages": np.float32(rng.normal()),
                "step": step,
            }
        )
    return made


def padded(some: list[Sequence], field: str, *, left: bool = False) -> torch.Tensor:
    """(sequences, tokens), zeros beyond."""
    widest = max(len(one["response_mask"]) for one in some)
    rows = [np.full(len(one["response_mask"]), one[field]) if np.ndim(one[field]) == 0 else one[field] for one in some]
    ends = [(widest - len(row), 0) if left else (0, widest - len(row)) for row in rows]
    return torch.tensor(np.array([np.pad(row, end) for row, end in zip(rows, ends, strict=True)]))


def _lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@contextmanager
def _standing_in(module: str, name: str, kind: type) -> Iterator[type]:
    """A class under the name that the trainer's own has, for as long as it is pickled."""
    kind.__module__, kind.__qualname__, kind.__name__ = module, name, name
    parts = module.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    before = {one: sys.modules.get(one) for one in names}
    sys.modules |= {one: ModuleType(one) for one in names}
    setattr(sys.modules[module], name, kind)
    try:
        yield kind
    finally:
        for one, old in before.items():
            if old is None:
                del sys.modules[one]
            else:
                sys.modules[one] = old


def verl(folder: Path, step: int) -> Path:
    """A dictionary of the batch's tensors, `torch.save`d."""
    some = sequences(step)
    names = ("old_log_probs", "rollout_log_probs", "response_mask", "advantages")
    batch = {name: padded(some, name) for name in names} | {"responses": padded(some, "response_mask") + 7}
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"batch": batch, "global_steps": step}, folder / f"batch_{step}.pt")
    return folder / f"batch_{step}.pt"


def prime_rl(folder: Path, step: int) -> Path:
    """The prompt's tokens are in every list, masked; what is not finite is null."""
    records = []
    for row, one in enumerate(sequences(step)):
        total = PROMPT + len(one["response_mask"])

        def aligned(values: Any) -> list[Any]:
            return [None] * PROMPT + np.asarray(values).tolist()

        records.append(
            {
                "schema_version": 1,
                "step": step,
                "rank": 0,
                "micro_step": 0,
                "micro_sequence_idx": row,
                "export_sequence_idx": row,
                "env_name": "sums",
                "token_ids": [1] * total,
                "position_ids": list(range(total)),
                "loss_mask": [False] * PROMPT + one["response_mask"].astype(bool).tolist(),
                "advantages": [float(one["advantages"])] * total,
                "inference_logprobs": aligned(one["rollout_log_probs"]),
                "trainer_logprobs": aligned(one["log_probs"]),
                "entropy": [0.5] * total,
                "mismatch_kl": [None] * total,
                "rl_weights": [None] * total,
                "ce_weights": [None] * total,
                "ref_kl_weights": [None] * total,
            }
        )
    return _lines(folder / f"step_{step}" / "rank_0.jsonl", records)


def slime_rollout(folder: Path, step: int) -> Path:
    """One dictionary per sample; log-probs of the engine alone."""
    samples = [
        {
            "index": row,
            "tokens": [1] * (PROMPT + len(one["response_mask"])),
            "response_length": len(one["response_mask"]),
            "loss_mask": one["response_mask"].tolist(),
            "rollout_log_probs": one["rollout_log_probs"].tolist(),
            "reward": 1.0,
            "status": "completed",
            "remove_sample": False,
            "metadata": {},
        }
        for row, one in enumerate(sequences(step))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"rollout_id": step, "samples": samples}, folder / f"rollout_{step}.pt")
    return folder / f"rollout_{step}.pt"


def _of_sample(one: Sequence) -> dict[str, Any]:
    return {
        "log_probs": torch.tensor(one["old_log_probs"]),
        "rollout_log_probs": torch.tensor(one["rollout_log_probs"]),
        "loss_masks": torch.tensor(one["response_mask"]).int(),
        "advantages": torch.full((len(one["response_mask"]),), float(one["advantages"])),
        "response_lengths": len(one["response_mask"]),
    }


def slime_train(folder: Path, step: int) -> Path:
    """Layout 2: one dictionary per sample, whoever trained it."""
    samples = [_of_sample(one) | {"sample_index": row} for row, one in enumerate(sequences(step))]
    folder.mkdir(parents=True, exist_ok=True)
    payload = {"format_version": 2, "rollout_id": step, "rank": 0, "samples": samples, "dp_shards": []}
    torch.save(payload, folder / f"train_{step}.pt")
    return folder / f"train_{step}.pt"


def miles_train(folder: Path, step: int) -> Path:
    """A file per rank, a list per field, an object of a class of its own inside."""
    folder.mkdir(parents=True, exist_ok=True)
    some = sequences(step)
    with _standing_in("miles.utils.types", "AdapterRef", type("AdapterRef", (), {})) as kind:
        for rank in (0, 1):
            samples = [_of_sample(one) for one in some[rank::2]]
            data = {name: [sample[name] for sample in samples] for name in samples[0]} | {"adapter": [kind()]}
            torch.save(
                {"rollout_id": step, "rank": rank, "rollout_data": data, "cp_rank": 0, "cp_size": 1},
                folder / f"{step}_{rank}.pt",
            )
    return folder / f"{step}_0.pt"


def miles_columns(folder: Path, step: int) -> Path:
    """A row per sample."""
    some = sequences(step)
    columns = {
        "sample_index": list(range(len(some))),
        "response_length": [len(one["response_mask"]) for one in some],
        "total_length": [PROMPT + len(one["response_mask"]) for one in some],
        "tokens": [[1] * (PROMPT + len(one["response_mask"])) for one in some],
        "loss_mask": pa.array([one["response_mask"].tolist() for one in some], type=pa.list_(pa.int8())),
        "rollout_log_probs": [one["rollout_log_probs"] for one in some],
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"rollout_{step}.parquet", row_group_size=2)
    return folder / f"rollout_{step}.parquet"


def openrlhf(folder: Path, step: int) -> Path:
    """A list of `Experience`s, one sequence each, as they are before they are put together."""
    folder.mkdir(parents=True, exist_ok=True)
    with _standing_in("openrlhf.trainer.ppo_utils.experience", "Experience", type("Experience", (), {})) as kind:
        made = []
        for one in sequences(step):
            experience: Any = kind()
            experience.sequences = torch.ones(1, len(one["response_mask"]) + PROMPT)
            experience.action_mask = torch.tensor(one["response_mask"])[None].bool()
            experience.action_log_probs = torch.tensor(one["old_log_probs"])[None]
            experience.rollout_log_probs = torch.tensor(one["rollout_log_probs"])[None]
            experience.advantages = torch.full_like(experience.action_log_probs, float(one["advantages"]))
            experience.info, experience.prompts = {"reward": torch.ones(1)}, ["2+2="]
            made.append(experience)
        torch.save(made, folder / f"experience_{step}.pt")
    return folder / f"experience_{step}.pt"


def nemo_rl(folder: Path, step: int) -> Path:
    """Prompt and padding in every list; each value in a batch of one."""
    some = sequences(step)
    tensors = {
        name: torch.nn.functional.pad(padded(some, field), (PROMPT, 0)).tolist()
        for name, field in {
            "token_loss_mask": "response_mask",
            "advantages": "advantages",
            "generation_logprobs": "rollout_log_probs",
            "prev_logprobs": "old_log_probs",
        }.items()
    }
    records = [
        {
            "content": ["2+2=4"],
            "rewards": [1.0],
            "input_lengths": [PROMPT + len(one["response_mask"])],
            "token_ids": [[1] * len(tensors["advantages"][0])],
            **{name: [rows[row]] for name, rows in tensors.items()},
            "sample_loss_mask": [1.0],
            "idx": row,
        }
        for row, one in enumerate(some)
    ]
    return _lines(folder / f"train_data_step{step}.jsonl", records)


def skyrl(folder: Path, step: int) -> Path:
    """A pickle of a foreign class that is rebuilt by a function of its module: tensors as bytes, padded on the left,
    the first row again at the end."""
    some = sequences(step)

    def packed(tensor: torch.Tensor) -> dict[str, Any]:
        if tensor.dtype == torch.bfloat16:
            stream = io.BytesIO()
            torch.save(tensor, stream)
            return {"format": "torch", "data": stream.getvalue()}
        array = tensor.numpy()
        return {"format": "numpy", "data": array.tobytes(), "shape": array.shape, "dtype": str(array.dtype)}

    tensors = {
        name: padded(some, field, left=True)
        for name, field in {
            "loss_mask": "response_mask",
            "response_mask": "response_mask",
            "action_log_probs": "old_log_probs",
            "rollout_logprobs": "rollout_log_probs",
            "advantages": "advantages",
        }.items()
    }
    tensors = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in tensors.items()}
    state = {
        "batch_dict": {name: packed(tensor) for name, tensor in tensors.items()}
        | {"values": None, "returns": packed(tensors["advantages"].bfloat16())},
        "batch_size": len(some) + 1,
        "device": torch.device("cpu"),
        "metadata": {"pad_size": 1},
    }
    module = "skyrl.backends.skyrl_train.training_batch"

    def rebuilt(self: Any) -> Any:
        return _rebuild_tensor_batch, (type(self), state)

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"global_step_{step}_training_input.pkl"
    batch = type("TrainingInputBatch", (dict,), {"__reduce__": rebuilt})
    with _standing_in(module, "TrainingInputBatch", batch) as kind:
        function = _rebuild_tensor_batch
        function.__module__ = module
        sys.modules[module]._rebuild_tensor_batch = function  # type: ignore[attr-defined]
        path.write_bytes(pickle.dumps(kind()))
    return path


def _rebuild_tensor_batch(kind: Any, state: Any) -> Any:
    raise AssertionError("the reader called a function of the file")


def open_instruct(folder: Path, step: int) -> Path:
    """Several steps go to one shard; every token of the response has a log-prob."""
    records = [
        {
            "step": step,
            "sample_idx": row,
            "prompt_idx": row // 2,
            "prompt_tokens": [1] * PROMPT,
            "response_tokens": [1] * len(one["response_mask"]),
            "reward": 1.0,
            "advantage": float(one["advantages"]),
            "finish_reason": "stop",
            "dataset": "sums",
            "ground_truth": None,
            "request_info": None,
            "logprobs": one["rollout_log_probs"].tolist(),
        }
        for row, one in enumerate(sequences(step))
    ]
    return _lines(folder / f"run_rollouts_{step:06d}.jsonl", records)


BOTH = ("old_log_probs", "rollout_log_probs", "advantages")
# Writer, what it is read as, and the fields that it holds.
FORMATS: dict[str, tuple[Callable[[Path, int], Path], str, tuple[str, ...]]] = {
    "verl": (verl, "verl saved batch", BOTH),
    "prime_rl": (prime_rl, "prime-rl token export", ("rollout_log_probs", "log_probs", "advantages")),
    "slime_rollout": (slime_rollout, "slime/miles rollout dump", ("rollout_log_probs",)),
    "slime_train": (slime_train, "slime/miles train dump", BOTH),
    "miles_train": (miles_train, "slime/miles train dump", BOTH),
    "miles_columns": (miles_columns, "miles dashboard columns", ("rollout_log_probs",)),
    "openrlhf": (openrlhf, "OpenRLHF experience", BOTH),
    "nemo_rl": (nemo_rl, "NeMo-RL training data", BOTH),
    "skyrl": (skyrl, "SkyRL training input", BOTH),
    "open_instruct": (open_instruct, "open-instruct rollouts", ("rollout_log_probs", "advantages")),
}
EVERY_TOKEN = ("open_instruct",)  # formats without a mask
TEXTS: dict[str, tuple[str, dict[str, Any], str]] = {  # file, a record, what it is read as
    "verl": ("1.jsonl", {"input": "2+2=", "output": "4", "gts": "4", "score": 1.0, "step": 1}, "verl rollout dump"),
    "slime": ("0.pt", {"rollout_id": 0, "samples": [{"tokens": [1], "response_length": 1}]}, "slime/miles rollout"),
    "open_instruct": (
        "run_rollouts_000000.jsonl",
        {"step": 1, "prompt_tokens": [1], "response_tokens": [2], "finish_reason": "stop", "logprobs": None},
        "open-instruct rollouts without",
    ),
}
