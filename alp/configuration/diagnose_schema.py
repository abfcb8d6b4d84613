"""The configuration of ``alp diagnose``."""

from __future__ import annotations

from typing import Literal

from alp.configuration.fields import Positive, PositiveFloat, Strict


class DumpFields(Strict):
    """What each field of a dump in our own form is called; the mask and one policy are needed."""

    old_log_probs: str
    """Name of π_old's log-probs."""
    rollout_log_probs: str
    """Name of μ's log-probs, the inference engine's."""
    response_mask: str
    """Name of the mask of response tokens; it is needed."""
    log_probs: str
    """Name of π_θ's log-probs."""
    perturbed_log_probs: str
    """Name of π_θ,δ's log-probs, under the noise."""
    advantages: str
    """Name of the advantages."""
    step: str
    """Name of the step's number."""
    turn_ids: str
    """Name of the turns' numbers, counted from 0."""


class Rescoring(Strict):
    """The model that scores the token ids of a dump without log-probs of the training code: a folder, or none; at the
    temperature of the rollouts."""

    path: str | None
    """A folder as ``save_pretrained`` writes it; null: nothing is scored."""
    temperature: PositiveFloat
    """That of the rollouts."""
    device: Literal["auto", "cpu", "cuda"]
    """Where the model runs; auto: on a GPU where there is one."""


class DiagnoseConfig(Strict):
    """``input`` is a file or a folder of them (docs/diagnose.md); ``output`` a folder, results/diagnose/<its stem>
    without one."""

    input: str | None
    """A trainer's dump or one of ours, or a folder of them; a word without = gives it too."""
    output: str | None
    """The folder that page and tables go into; null: results/diagnose/<stem of the input>."""
    replace: bool = False
    """Whether a diagnosis of another file in ``output`` gives way; without it that is refused."""
    fields: DumpFields
    """What a file in our own form calls each field; the mask and one policy are needed."""
    model: Rescoring
    """What scores a dump that holds token ids and no log-probs of the training code."""
    threads: Positive
    """Threads of torch: the last digits of a sum depend on it."""
