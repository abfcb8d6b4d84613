"""`alp.diagnosis` as a callback of TRL: log-ratio quantiles and effective sample sizes of every rollout batch, wherever
TRL logs.

    trainer = GRPOTrainer(...)
    trainer.add_callback(DiagnosisCallback(trainer, folder="dumps"))
    trainer.train()

Then `alp diagnose input=dumps` shows the whole run. The engine's log-probs exist with `use_vllm=True`, or where a
`rollout_func` returns them; without them there is nothing to compare, and the callback says so once. In a run of
several processes each looks at its own rows.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from alp.diagnosis import diagnose

FIELDS = ("completion_mask", "tool_mask", "old_per_token_logps", "sampling_per_token_logps", "advantages")
LOGGED = ("rollout_corr/k3_kl", "rollout_corr/rollout_is_eff_sample_size", "ratio/token/log_q", "ratio/sequence/log_q")


class DiagnosisCallback(TrainerCallback):
    """Looks at each generation batch once, after the first update on it; ``folder``: keeps them there as NPZ."""

    def __init__(self, trainer: Any, folder: str | Path | None = None, prefix: str = "diagnosis/") -> None:
        self.trainer, self.prefix = trainer, prefix
        self.folder = None if folder is None else Path(folder)
        self._seen: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002 - TRL's names
        """TRL keeps the generation batch, cut into micro-batches, until it samples the next."""
        pieces = self.trainer._buffered_inputs
        if not pieces or pieces is self._seen:
            return
        self._seen = pieces
        batch = {
            name: torch.cat([piece[name].detach().cpu() for piece in pieces]) for name in FIELDS if name in pieces[0]
        }
        if not {"old_per_token_logps", "sampling_per_token_logps"} <= set(batch):
            warnings.warn("no log-probs of the engine in TRL's batch (use_vllm=True has them)", stacklevel=2)
            return
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        found = diagnose(
            response_mask=mask,
            rollout_log_probs=batch["sampling_per_token_logps"],
            old_log_probs=batch["old_per_token_logps"],
            advantages=batch["advantages"],
        )
        for name, value in found.figures.items():
            if name.startswith(LOGGED):
                self.trainer._metrics["train"][f"{self.prefix}{name}"].append(value)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"step_{state.global_step:06d}_process_{args.process_index}.npz"
            arrays = {field: tensor.float().numpy() for field, tensor in batch.items()}
            np.savez(self.folder / name, step=np.array(state.global_step), **arrays)  # type: ignore[arg-type]
