"""Decoder layers compiled one by one (``trainer.compile``), for scoring and updates alone.

Sampling, probes and validation run the same layers on shapes of their own, each of which would be compiled: outside
``used()`` the layers are as they were. All layers of a model share a graph for each shape; widths are multiples of
``MULTIPLE``, which bounds the shapes. Noise is added before a layer, outside its graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from alp.errors import UserError
from alp.policy.layers import decoder_layers

MULTIPLE = 128  # of a width, in tokens
_SHAPES = 512  # more than a budget of tokens has; beyond it dynamo would run layers uncompiled, and only log it


class CompiledLayers:
    """Those of ``model``; nothing is compiled before a shape is first met.

    Raises UserError for a model that has fewer positions than a rounded width may take.
    """

    def __init__(self, model: Any) -> None:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if positions is not None and positions % MULTIPLE:
            raise UserError(
                f"trainer.compile: widths are multiples of {MULTIPLE}, the model knows {positions} positions"
            )
        import torch._inductor.config as inductor  # slow to import, and of no use to other jobs

        inductor.deterministic = True  # as torch.use_deterministic_algorithms has it
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = dynamo.accumulated_recompile_limit = _SHAPES
        dynamo.fail_on_recompile_limit_hit = True
        self._layers: list[Any] = list(decoder_layers(model))
        self._calls: list[Any] = []
        for layer in self._layers:
            layer.compile(dynamic=False)
            self._calls.append(layer._compiled_call_impl)
            layer._compiled_call_impl = None

    def __len__(self) -> int:
        return len(self._layers)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the layers run compiled, and are run again so in a backward."""
        for layer, call in zip(self._layers, self._calls, strict=True):
            layer._compiled_call_impl = call
        try:
            yield
        finally:
            for layer in self._layers:
                layer._compiled_call_impl = None
