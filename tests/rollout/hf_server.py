"""A small engine in a process of its own, for tests of what all of them share: the HF engine behind ``serving``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alp import models
from alp.rollout import serving, transport
from alp.rollout.engine import Request, Sampling
from alp.rollout.hf import HFEngine
from alp.rollout.readback import aliases, layout, sample


class Server:
    """``settings``: ``folder`` and ``device`` of the model, and whether a batch ``drops`` its weights."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        device = torch.device(settings["device"])
        self.gpu = transport.gpu(device) if device.type == "cuda" else None
        self._drops: bool = settings["drops"]
        model = models.load_model(Path(settings["folder"]), device)
        self._kinds, self._aliases = layout(model), aliases(model)
        self._engine = HFEngine(model, dtype="float32", device=device, batch_size=64, borrow=False)
        self._version = 0

    def answer(
        self, operation: str, header: dict[str, Any], tensors: dict[str, Tensor]
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """See ``alp.rollout.supervised``."""
        match operation:
            case "describe":
                return {"engine": "small", "rollout_dtype": "float32", "syncs": self._version}, {}
            case "sync":
                self._version += 1
                own = [(name, value) for name, value in tensors.items() if name not in self._aliases]
                self._engine.sync_weights(own, self._version)
                return {}, {}
            case "readback":
                held = self._engine.parameters
                held |= {alias: held[first] for alias, first in self._aliases.items()}
                return {}, {name: sample(held[name].detach(), kind) for name, kind in self._kinds.items()}
            case "generate":
                return {"dropped": self._drop(header)}, self._generate(header, tensors)
        raise ValueError("unknown operation")

    def _generate(self, header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prompts = [part.tolist() for part in tensors["ids"].split(tensors["lengths"].tolist())]
        first, *others = header["ends"]
        sampling = Sampling(header["temperature"], header["max_new_tokens"], first, 0, tuple(others))
        requests = [Request(tuple(ids), (seed,)) for ids, seed in zip(prompts, header["seeds"], strict=True)]
        made = self._engine.generate(requests, sampling)
        scored = self._engine.score(prompts) if header["prompt_log_probs"] else []
        if self._drop(header):
            for value in self._engine.parameters.values():
                value.data.zero_()
        return {
            "ids": torch.tensor([token for one in made for token in one.token_ids], dtype=torch.int32),
            "log_probs": torch.tensor([value for one in made for value in one.log_probs]),
            "lengths": torch.tensor([len(one.token_ids) for one in made]),
            "prompt_log_probs": torch.tensor([value for row in scored for value in row]),
        }

    def _drop(self, header: dict[str, Any]) -> bool:
        return self._drops and not header["prompt_log_probs"]


if __name__ == "__main__":
    sys.exit(serving.main(sys.argv[1:], Server))
