"""``alp diagnose`` as its configuration says: what a dump lacks of the training code may come from the model itself,
log-probs of its token ids in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from alp.configuration.diagnose_schema import DiagnoseConfig, Rescoring
from alp.diagnosis import readers, verb
from alp.diagnosis.dumps import Raw
from alp.errors import UserError
from alp.model_files import check_folder, content_hash
from alp.progress import Progress


def diagnose(config: DiagnoseConfig) -> str:
    """What :func:`alp.diagnosis.verb.write` does."""
    if not config.input:
        raise UserError(
            f"diagnose: no input given: input=<a file or a folder of them>, {', '.join(readers.SUFFIXES)} (quote:"
            " input='a b.npz')"
        )
    return verb.write(
        Path(config.input),
        config.output,
        config.fields.model_dump(),
        scorer=None if config.model.path is None else Scorer(config.model, check_folder(config.model.path)),
        replace=config.replace,
        threads=config.threads,
    )


@dataclass(frozen=True)
class Scorer:
    """The model in ``folder``."""

    settings: Rescoring
    folder: Path

    def score(self, raw: Raw) -> None:
        """See :func:`rescore`."""
        rescore(raw, self.settings, self.folder)

    @property
    def sha256(self) -> str:
        """Over all that loading reads."""
        return content_hash(self.folder)


def rescore(raw: Raw, settings: Rescoring, folder: Path) -> None:
    """Put π_old into a dump that holds token ids and no log-probs of the training code: those of the model in
    ``folder``, whose weights have to be the ones that sampled. Raises :class:`UserError`."""
    if "old_log_probs" in raw.tokens:
        raise UserError(
            f"model.path: the dump has {raw.names['old_log_probs']} already: nothing to score again; leave it out"
        )
    if raw.ids is None:
        raise UserError("model.path: no token ids in it, and texts may be other tokens than those that were sampled")
    import torch

    from alp import models
    from alp.training.forward import sequence_log_probs

    ids = [[int(token) for token in np.asarray(row).reshape(-1)] for row in raw.ids]
    lengths = raw.lengths["response_mask"]
    for row, (whole, length) in enumerate(zip(ids, lengths, strict=True)):
        if len(whole) < max(length, 1):
            raise UserError(f"{raw.place(row)}: {len(whole)} token ids for {length} tokens")
    model = models.load_model(folder, models.resolve_device(settings.device)).eval()
    highest, size = max(map(max, ids)), model.get_input_embeddings().weight.shape[0]
    if highest >= size:
        raise UserError(f"model.path: the dump has token {highest}, the model knows {size}: another model's tokens")
    found: list[list[float]] = []
    with torch.no_grad(), Progress("scoring, sequences", len(ids)) as progress:
        for whole, length in zip(ids, lengths, strict=True):
            # The first token of all has no log-prob; on a valid place it is named and set aside.
            values = [math.nan, *sequence_log_probs(model, [whole], settings.temperature)[0]]
            found.append(values[len(values) - length :])
            progress.update(len(found))
    raw.tokens["old_log_probs"] = np.concatenate([np.array(row) for row in found])
    raw.lengths["old_log_probs"] = lengths
    raw.names = {**raw.names, "old_log_probs": "old_log_probs"}
    raw.notes = (*raw.notes, f"old_log_probs are the model's of model.path, in float32 at T = {settings.temperature:g}")
