"""``trajectories.jsonl``: a few trajectories of every probed step, token by token, with what the loss made of them
(docs/results.md). A report shows them (alp/reporting/trajectories.py).

A fixed rule chooses: of the batch's first and last problem, which its first and its last update train on, the first two
samples. All is read from what a step holds anyway: nothing here draws a random number or runs the model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alp.policy.method import LossInputs, Method
from alp.policy.ratio import unchecked_log_ratio
from alp.rollout.episodes import Trajectory
from alp.tasks.task import Problem, select
from alp.training.batch import Batch

if TYPE_CHECKING:
    from alp.training.job import Job
    from alp.training.pending import PendingStep

SAMPLES = 2  # of a problem
FIRST, LAST = 300, 100  # tokens of a response that are kept: of a longer one the beginning and the end
MARKS = ("loss", "clipped_low", "clipped_high", "dual_clipped", "masked", "left_out", "tool")
_LOSS, _LOW, _HIGH, _DUAL, _MASKED, _LEFT_OUT, _TOOL = range(len(MARKS))
_CONTEXT = 8  # tokens before one that its text may depend on
_PROMPT = 2000  # characters of a prompt that are kept


def chosen(job: Job, trajectories: list[Trajectory], step: int) -> list[dict[str, Any]]:
    """Of the trajectories that a step shows, what its tensors do not say: plain data. None where it is not probed."""
    trainer = job.config.trainer
    if not trainer.probe_every or step % trainer.probe_every:
        return []
    problems = select(job.problems, trainer.prompts, trainer.seed, step - 1)
    places = sorted({0, trainer.prompts - 1})
    rows = [(place, sample) for place in places for sample in range(min(SAMPLES, trainer.samples))]
    return [_plain(trajectories[place * trainer.samples + sample], problems[place], sample) for place, sample in rows]


def _plain(item: Trajectory, problem: Problem, sample: int) -> dict[str, Any]:
    return {
        "problem": problem.id,
        "group": item.group,
        "sample": sample,
        "prompt_tokens": len(item.prompt_ids),
        "written": list(item.response_mask),
        "finished": item.finished,
        "left_out": item.left_out,
    }


def records(job: Job, pending: PendingStep) -> Iterator[dict[str, Any]]:
    """The lines of a probed step whose updates are done."""
    trainer, batch, method = job.config.trainer, pending.batch, job.config.method
    for index, (rows, mini) in enumerate(batch.split(len(batch) // trainer.updates_per_batch)):
        places = [item["group"] * trainer.samples + item["sample"] - int(rows[0]) for item in pending.shown]
        here = {place: item for place, item in zip(places, pending.shown, strict=True) if 0 <= place < len(mini)}
        if not here:
            continue
        raw = pending.raw[rows, : mini.input_ids.shape[1]]
        picked = torch.tensor(list(here), device=raw.device)
        marks = loss_marks(method, mini, raw, with_old=trainer.old_log_probs)[picked].cpu()
        at_level, raw = method_log_ratio(method, mini, raw)[picked].cpu(), raw[picked].cpu()
        few = Batch(**{name: value.cpu() for name, value in vars(mini.rows(picked)).items()})
        head = {"step": pending.step, "update": (pending.step - 1) * trainer.updates_per_batch + index + 1}
        if trainer.lag:
            head["versions_behind"] = int(pending.metrics["rollout/versions_behind"])
        for row, item in enumerate(here.values()):
            line = head | _of_sequence(few, row, item, raw[row], with_old=trainer.old_log_probs)
            line |= _of_tokens(job.tokenizer, few, row, item, raw[row], marks[row])
            yield line | {"level_log_ratio": _of_level(method.level, few, row, at_level[row])}


# ---- what the loss saw -----------------------------------------------------------------------------------------------


def method_log_ratio(method: Method, mini: Batch, raw: Tensor) -> Tensor:
    """The method's log-ratio at its own level, (batch, tokens), clamped, as the loss of a mini-batch has it; ``raw`` is
    numerator minus denominator."""
    zeros = torch.zeros_like(raw)
    return unchecked_log_ratio(raw, zeros, mini.response_mask, level=method.level, turn_ids=mini.turn_ids)


def loss_marks(method: Method, mini: Batch, raw: Tensor, *, with_old: bool = True) -> Tensor:
    """What became of every token of a mini-batch in the method's loss, (batch, tokens), as places in ``MARKS``.

    Masked is a token that a rollout correction took out, or gave the weight 0. Clipped is one that the loss, computed
    again without the KL penalty, gives no gradient although it counts and its advantage is not 0: by the side that its
    ratio lies on, and above 1 by the sign of the advantage. ``with_old``: whether there is a π_old.
    """
    mask = mini.response_mask
    removed = mask & (~mini.loss_mask | (mini.weights == 0))
    advantages = mini.advantages[:, None]
    held = mask & ~removed & (advantages != 0) & (_gradient(method, mini, raw, with_old=with_old) == 0)
    below = method_log_ratio(method, mini, raw) < 0
    marks = torch.full(mask.shape, _LOSS, device=mask.device)
    marks[held & below] = _LOW
    marks[held & ~below & (advantages > 0)] = _HIGH
    marks[held & ~below & (advantages < 0)] = _DUAL
    marks[removed] = _MASKED
    return marks


def _gradient(method: Method, mini: Batch, raw: Tensor, *, with_old: bool) -> Tensor:
    """Of the mini-batch's loss by each token's numerator. In float64, where numerator minus denominator is ``raw``
    again."""
    old, rollout = mini.old_log_probs.double(), mini.rollout_log_probs.double()
    denominator = rollout if method.denominator == "rollout" else old
    numerator = torch.where(mini.response_mask, raw.double() + denominator, 0.0).requires_grad_()
    inputs = LossInputs(
        log_probs=numerator,
        old_log_probs=old if with_old else None,
        rollout_log_probs=rollout,
        response_mask=mini.response_mask,
        advantages=mini.advantages,
        rewards=mini.rewards,
        turn_ids=mini.turn_ids,
        weights=mini.weights.double(),
        loss_mask=mini.loss_mask,
    )
    (gradient,) = torch.autograd.grad(method.loss(inputs).loss, numerator)
    return gradient


# ---- one line --------------------------------------------------------------------------------------------------------


def _of_sequence(mini: Batch, row: int, item: dict[str, Any], raw: Tensor, *, with_old: bool) -> dict[str, Any]:
    start = item["prompt_tokens"]
    mask = mini.response_mask[row]
    counted = bool(mask.any())
    mismatch = (mini.old_log_probs[row] - mini.rollout_log_probs[row]).double()[mask].sum() if with_old else None
    return {name: item[name] for name in ("problem", "sample", "finished", "left_out", "prompt_tokens")} | {
        "reward": float(mini.rewards[row]),
        "advantage": _rounded(mini.advantages[row]),
        "response_tokens": int(mini.lengths[row]) - start,
        "log_ratio_sum": _rounded(raw.double().sum()) if counted else None,
        "mismatch_log_ratio_sum": _rounded(mismatch) if counted and mismatch is not None else None,
    }


def _of_tokens(
    tokenizer: PreTrainedTokenizerBase, mini: Batch, row: int, item: dict[str, Any], raw: Tensor, marks: Tensor
) -> dict[str, Any]:
    """The prompt, and lists over those tokens of the response that are kept: all, or ``FIRST`` and ``LAST`` of them."""
    start, end = item["prompt_tokens"], int(mini.lengths[row])
    ids = mini.input_ids[row, :end].tolist()
    gap = max(0, end - start - FIRST - LAST)
    parts = [range(start, end)] if not gap else [range(start, start + FIRST), range(end - LAST, end)]
    kept = [place for part in parts for place in part]
    written, mask = item["written"], mini.response_mask[row].tolist()

    def mark(place: int) -> str:
        if not written[place - start]:
            return MARKS[_TOOL]
        return MARKS[_LEFT_OUT] if item["left_out"] else MARKS[int(marks[place])]

    prompt = str(tokenizer.decode(ids[:start]))
    return {
        "prompt": prompt if len(prompt) <= _PROMPT else f"{prompt[:_PROMPT]}…",
        "gap": gap,
        "gap_at": FIRST if gap else 0,
        "token_ids": [ids[place] for place in kept],
        "text": [text for part in parts for text in _texts(tokenizer, ids[: part.stop], part.start)],
        "turn_ids": [int(mini.turn_ids[row, place]) for place in kept],
        "log_ratio": [_rounded(raw[place]) if mask[place] else None for place in kept],
        "marks": [mark(place) for place in kept],
    }


def _of_level(level: str, mini: Batch, row: int, at_level: Tensor) -> list[float | None]:
    """The log-ratio of the loss where it is none of single tokens: one of the sequence, or one of each turn to its
    end; of what counts."""
    places = mini.response_mask[row].nonzero().flatten().tolist()
    if level == "token" or not places:
        return []
    if level in ("sequence", "sequence_geometric"):
        return [_rounded(at_level[places[0]])]
    ends = {int(mini.turn_ids[row, place]): place for place in places}  # the last place of each
    return [_rounded(at_level[place]) for _, place in sorted(ends.items())]


def _texts(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int) -> list[str]:
    """What each token from ``start`` on adds to the text; a character that several tokens make is the last one's."""
    texts: list[str] = []
    begin, before = max(0, start - _CONTEXT), str(tokenizer.decode(ids[max(0, start - _CONTEXT) : start]))
    for place in range(start, len(ids)):
        whole = str(tokenizer.decode(ids[begin : place + 1]))
        if whole.endswith("\ufffd") and place + 1 < len(ids) and place + 1 - begin < 2 * _CONTEXT:
            texts.append("")  # perhaps a part of a character
            continue
        known = whole.startswith(before)
        texts.append(whole[len(before) :] if known else str(tokenizer.decode([ids[place]])))
        begin = max(begin, place + 1 - _CONTEXT)
        before = str(tokenizer.decode(ids[begin : place + 1]))
    return texts


def _rounded(value: Tensor) -> float | None:
    """Six significant digits; JSON has no word for what is not finite."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
