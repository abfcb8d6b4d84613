"""The configuration of ``alp diagnose``."""

from __future__ import annotations

from alp.configuration.fields import Positive, Strict


class DumpFields(Strict):
    """What each field of a dump in our own form is called; the mask and one policy are needed."""

    old_log_probs: str
    rollout_log_probs: str
    response_mask: str
    log_probs: str
    perturbed_log_probs: str
    advantages: str
    step: str
    turn_ids: str


class DiagnoseConfig(Strict):
    """``input`` is a file or a folder of them (docs/diagnose.md); ``output`` a folder, results/diagnose/<its stem>
    without one."""

    input: str | None
    output: str | None
    replace: bool = False  # a diagnosis of another file in ``output`` gives way; without it that is refused
    fields: DumpFields
    threads: Positive  # of torch: the last digits of a sum depend on it
