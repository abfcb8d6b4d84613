"""Memory of a rank, accounted without a value (benchmarks/rank_memory.py), against that of processes that have one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from torch import distributed

from alp.training.distributed import joined
from benchmarks import rank_memory
from benchmarks.memory import peak_bytes
from benchmarks.rank_memory import Size, Taken
from tests.training.ranks import on_ranks

# 26 M parameters; the vocabulary divides by no number of ranks, so that shards are padded.
SAVING = Size(8, 512, 1408, 8, 2, 4095, False, rows=4, tokens=128, chunk=64)
PLAIN = replace(SAVING, tied=True, chunk=None, checkpointing=False, rounded=False)
# Of the work of a micro-batch: buffers inside of kernels, each CPU's own, are no tensors that the account sees. Now and
# then parameters that were put together are given up only after the next are: those of a unit come on top.
TOLERANCE = 0.1


def _measured() -> list[Taken]:
    with joined(2, "cpu") as world:
        return [rank_memory.taken(size, world, peak_bytes) for size in (SAVING, PLAIN)]


@pytest.mark.long
def test_the_account_is_what_two_processes_hold() -> None:
    """Weights, gradients, moments to the byte; what a micro-batch needs besides within the tolerance."""
    first, second = on_ranks(2, _measured)
    for size, taken, other in zip((SAVING, PLAIN), first, second, strict=True):
        account = rank_memory.accounted(size, 2)
        assert replace(taken, work=0) == replace(account, work=0)
        assert (other.weights, other.gradients) <= (account.weights, account.gradients)
        assert (1 - TOLERANCE) * account.work <= taken.work
        assert taken.work <= (1 + TOLERANCE) * account.work + account.together
        assert account.whole / 2 <= account.weights < 1.01 * account.whole / 2
    assert first[0].work < first[1].work


def test_what_saves_memory_does_in_the_account() -> None:
    saving = rank_memory.accounted(SAVING, 8)
    assert saving.work < rank_memory.accounted(replace(SAVING, chunk=None), 8).work
    assert saving.work < rank_memory.accounted(replace(SAVING, checkpointing=False), 8).work
    assert saving.whole / 8 <= saving.weights < 1.01 * saving.whole / 8
    assert saving.moments == pytest.approx(2 * saving.weights, rel=1e-4)
    assert not distributed.is_initialized(), "the processes that were not there are forgotten"
