"""A cache of fixed size, and on a GPU the step that feeds it as one CUDA graph.

A step of one token launches some hundreds of small kernels, and on a GPU the launching takes longer than the work. On
memory that stays where it is a step can be recorded once and played again. Memory is for a number of rows and of
columns (tokens, padding included); it grows and shrinks in powers of two, and only then is a step recorded anew, so a
batch records it about log₂(rows) + log₂(tokens) times. Cache and recordings end with the batch: the updates find the
memory free, and weights that change in between find no recording of what they were.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from alp.rollout.decoding import Cached, Unusable

_SHORTEST, _FEWEST = 256, 8  # columns and rows below which nothing is won by less
Pair = tuple[Tensor, Tensor]  # keys and values of a layer, (rows, heads, columns, width)


class Preallocated:
    """See ``alp.rollout.decoding.Decoding``. ``room`` is the number of tokens that are fed to a row at most."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_token_id: int, *, room: int, graphs: bool):
        """Prompts are computed with the model's own cache. Raises Unusable unless that holds keys and values alone."""
        begun = Cached(model, prompts, pad_token_id, padded=True)
        layers = getattr(begun.cache, "layers", ())
        kinds = {type(layer) for layer in layers}
        if not kinds or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            named = sorted(kind.__name__ for kind in kinds) or [type(begun.cache).__name__]
            raise Unusable(f"has a cache of {', '.join(named)}")
        self._model, self._key, self._graphs = model, begun.key, graphs
        self._begun: list[Pair] = [(layer.keys, layer.values) for layer in layers]
        self._mask, self.logits = begun.mask, begun.logits
        self._rows = torch.arange(len(prompts), device=self._mask.device)  # of what was begun
        self._columns = self._mask.shape[1]
        self._longest = self._columns + room
        self._memory: _Memory | None = None

    def select(self, rows: Tensor) -> None:
        """See Decoding."""
        self.logits = self.logits[rows]
        if self._memory is None:
            self._rows = self._rows[rows]
        else:
            self._memory.keep(rows, self._held(len(rows), self._memory.rows))

    def advance(self, tokens: Tensor) -> None:
        """See Decoding."""
        memory = self._memory
        if memory is None:
            memory = self._made(self._begun, self._mask, self._rows)
        elif self._columns == memory.columns:
            memory = self._made(memory.pairs, memory.mask, torch.arange(len(tokens), device=tokens.device))
        self._memory = memory
        self.logits = memory.step(tokens)
        self._columns += 1

    def _held(self, rows: int, before: int) -> int:
        """Rows of memory for so many sequences: without graphs no more than there are."""
        return halved(rows, before) if self._graphs else rows

    def _made(self, pairs: list[Pair], mask: Tensor, rows: Tensor) -> _Memory:
        """Memory for one column more, filled with these rows; ``pairs`` is emptied."""
        columns = max(_SHORTEST, 1 << self._columns.bit_length())  # above what is filled
        model = (self._model, self._key)
        return _Memory(model, pairs, mask, rows, self._columns, min(columns, self._longest), graphs=self._graphs)


class _Memory:
    """Tensors that stay in place for some rows and columns, and the step that runs on them."""

    def __init__(
        self,
        model: tuple[Any, str],
        pairs: list[Pair],
        mask: Tensor,
        rows: Tensor,
        filled: int,
        columns: int,
        *,
        graphs: bool,
    ) -> None:
        """``filled`` columns of ``mask`` and ``pairs`` are taken over; a sliding window may have kept only the last of
        them."""
        (self._model, key), self._graphs = model, graphs
        self.rows, self.columns = len(rows), columns
        named = inspect.signature(self._model.forward).parameters
        self._to_keep = {"logits_to_keep": 1} if "logits_to_keep" in named else {}
        self.mask = mask.new_zeros(self.rows, columns)
        self.mask[:, :filled] = mask[rows, :filled]
        self._ids = self.mask.new_zeros(self.rows, 1)
        self._positions = self.mask.sum(-1, keepdim=True)  # of the next token among its row's own
        self._column = torch.tensor(filled, device=mask.device)  # that it goes to
        self.pairs: list[Pair] = []
        while pairs:  # what was there before is given back layer by layer
            keys, values = pairs.pop(0)
            self.pairs.append((_moved(keys, rows, filled, columns), _moved(values, rows, filled, columns)))
            del keys, values
        self._cache = {key: Cache(layers=[_Layer(pair, self._column) for pair in self.pairs])}
        self._used = self.rows
        self._forget()

    def _forget(self) -> None:
        """No step is recorded."""
        self._warm, self._output = False, self._ids
        self._graph: torch.cuda.CUDAGraph | None = None

    def keep(self, rows: Tensor, held: int) -> None:
        """These rows, moved to the front in place; memory for ``held`` of them goes on to be computed with."""
        self._used = len(rows)
        everything = [self.mask, self._positions, *(part for pair in self.pairs for part in pair)]
        for part in everything:
            part[: self._used] = part.index_select(0, rows)
        if held != self.rows:
            self.rows = held
            self.mask, self._positions, self._ids = (part[:held] for part in (self.mask, self._positions, self._ids))
            self.pairs = [(keys[:held], values[:held]) for keys, values in self.pairs]
            for layer, pair in zip(next(iter(self._cache.values())).layers, self.pairs, strict=True):
                layer.keys, layer.values = pair
            self._forget()

    def step(self, tokens: Tensor) -> Tensor:
        """One token for each row in use; logits (rows in use, vocabulary), good until the next step.

        With graphs the first step runs as it is, which loads what is loaded late; the second is recorded.
        """
        self._ids[: self._used, 0] = tokens
        if self._graph is not None:
            self._graph.replay()
        elif self._graphs and self._warm:
            self._graph = graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._output = self._forward()
            graph.replay()
        else:
            self._output, self._warm = self._forward(), True
        return self._output[: self._used]

    def _forward(self) -> Tensor:
        """Every tensor that changes from step to step changes in place, and nothing is read back to the host."""
        self.mask.index_fill_(1, self._column.view(1), 1)
        given = {"attention_mask": self.mask, "position_ids": self._positions, "use_cache": True}
        logits: Tensor = self._model(input_ids=self._ids, **given, **self._to_keep, **self._cache).logits[:, -1]
        self._column.add_(1)
        self._positions.add_(1)
        return logits


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer in place. Windows are the mask's to keep: every column is there."""

    is_compileable = True  # in transformers' words: a mask is always made, whatever it holds

    def __init__(self, pair: Pair, column: Tensor) -> None:
        super().__init__()
        (self.keys, self.values), self._column = pair, column
        self.dtype, self.device, self.is_initialized = self.keys.dtype, self.keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """There from the start."""

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_more: Any) -> Pair:
        """Put one token's in its column."""
        column = self._column.view(1)
        self.keys.index_copy_(2, column, key_states)
        self.values.index_copy_(2, column, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002 - the name that the caller uses
        """Columns, and the first of them."""
        return self.keys.shape[2], 0

    def get_seq_length(self) -> Any:
        """The column of the next token, on the device."""
        return self._column

    def get_max_length(self) -> int:
        """Columns."""
        return int(self.keys.shape[2])


def halved(rows: int, before: int) -> int:
    """``before``, halved as long as that leaves room for ``rows`` and is worth it."""
    while before // 2 >= max(rows, _FEWEST):
        before //= 2
    return before


def _moved(old: Tensor, rows: Tensor, filled: int, columns: int) -> Tensor:
    """Some rows of a layer's keys or values in memory for ``columns``; the last of the ``filled`` ones are given."""
    kept = min(old.shape[2], filled)
    new = old.new_zeros(len(rows), old.shape[1], columns, old.shape[3])
    new[:, :, filled - kept : filled] = old.index_select(0, rows)[:, :, :kept]
    return new
