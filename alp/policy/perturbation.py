"""Layerwise Gaussian perturbation of any decoder-only Hugging Face model, by hooks (docs/method.md, Perturbation).

    h_l <- h_l + exp(s_l) ε_l      before the layer's norm and residual branch, inside ``active(...)`` only

or, relative to each token's own hidden state, h_lt <- h_lt + exp(s_l) RMS(h_lt) ε_lt, the RMS detached.

The noise is a function of keys of 16 bytes a token, drawn again wherever it is needed: on a GPU nothing of its size is
ever kept, on a CPU at most 64 MB of it from forward to backward (``noise.py``). Nothing is added to the model itself:
no parameter, buffer or state-dict key.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Block, Origins
from .choices import check_choice
from .layers import LOGITS, decoder_layers, resolve_layers
from .noise import AddNoise, device_kernels
from .streams import FIELD_BITS

SCALES, DTYPES = ("absolute", "relative"), ("wide", "hidden")
_LOGITS_KEY = (1 << FIELD_BITS["layer"]) - 1


class _Hook:
    """A forward (pre-)hook that gives its layer noise. Copied or unpickled with its model it does nothing: a copy is
    not perturbed."""

    def __init__(self, owner: LayerwisePerturbation | None = None, row: int = 0) -> None:
        self._owner, self._row = owner, row

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class _InputHook(_Hook):
    """On a decoder layer's input."""

    def __call__(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._owner is None:
            return None
        if args:
            return (self._owner._act(self._row, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._owner._act(self._row, kwargs["hidden_states"])}


class _OutputHook(_Hook):
    """On the finished logits (after any soft-capping), before the temperature."""

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        if self._owner is None:
            return None
        if self._owner._active is not None and getattr(output, "loss", None) is not None:
            raise RuntimeError("perturbation: the model computed a loss from unperturbed logits; pass no labels")
        if isinstance(output, tuple):
            return (self._owner._act(self._row, output[0]), *output[1:])
        if isinstance(output, Tensor):
            return self._owner._act(self._row, output)
        output.logits = self._owner._act(self._row, output.logits)
        return output


class LayerwisePerturbation:
    """Attach to ``model``; perturb inside ``with perturbation.active(...)``.

    ``layers``: ``all``, ``early``, ``middle``, ``late``, a band ``(start, end)`` or ``"start:end"``, a list, or
    ``logits``. ``std`` is σ_0, one number (or one per layer, shallowest first); 0 means off: no hooks, no parameters.
    With ``scale`` ``relative`` it is c_0: the noise of a token has the size c_l times the RMS over channels of that
    token's own hidden state. ``learnable`` makes s_l = log σ_l (log c_l) a parameter. ``dtype`` ``hidden`` holds s_l,
    noise and sum in the dtype of the hidden state. Raises ValueError for unknown models and layers, an empty band, a
    std outside its bounds.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[int] = "all",
        scale: str = "absolute",
        std: float | Sequence[float] = 0.02,
        learnable: bool = True,
        dtype: str = "wide",
        std_min: float = 1e-8,
        std_max: float = 1.0,
        seed: int = 0,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # of torch.compile: hooks belong on the model itself
        modules = decoder_layers(model)
        self.layers: list[int | str] = (
            [LOGITS] if isinstance(layers, str) and layers == LOGITS else list(resolve_layers(layers, len(modules)))
        )
        check_choice("scale", scale, SCALES)
        check_choice("dtype", dtype, DTYPES)
        self.scale, self.dtype = scale, dtype
        sizes = self._sizes(std, std_min, std_max)
        if not 0 <= seed < 1 << 64:
            raise ValueError(f"seed: {seed} must lie in [0, 2^64)")
        self.std_min, self.std_max, self.seed = std_min, std_max, seed
        self.learnable = learnable and any(sizes)
        parameter = next(model.parameters())
        self._log_std: nn.Parameter | None = None
        self._handles: list[Any] = []
        self._active: Block | None = None  # inside a block
        self._last: Block | None = None  # the block before
        self._origins: dict[int, Origins] = {}
        # A compiled model calls it as it stands: what it decides changes with every block.
        self._act: Any = torch.compiler.disable(self._perturb)
        if any(sizes):
            held = parameter.dtype if dtype == "hidden" else torch.promote_types(parameter.dtype, torch.float32)
            logs = torch.tensor([math.log(size) for size in sizes], dtype=held, device=parameter.device)
            self._log_std = nn.Parameter(logs, requires_grad=self.learnable)
            self._attach(model, modules)

    @classmethod
    def of(cls, model: nn.Module, settings: Any, *, seed: int, **changes: Any) -> LayerwisePerturbation:
        """The noise that a method's settings (:class:`alp.policy.method.Perturbation`) describe; ``changes`` are
        arguments that differ from them. What is no argument here, the learning rate say, is the optimizer's."""
        given = {name: value for name, value in vars(settings).items() if name in signature(cls).parameters}
        return cls(model, **(given | changes), seed=seed)

    def _sizes(self, std: float | Sequence[float], std_min: float, std_max: float) -> list[float]:
        sizes = [float(std)] * len(self.layers) if isinstance(std, (int, float)) else [float(size) for size in std]
        if len(sizes) != len(self.layers):
            raise ValueError(f"std: {len(self.layers)} values expected, got {len(sizes)}")
        if not 0 < std_min < std_max:
            raise ValueError(f"std_min/std_max: 0 < std_min < std_max expected, got {std_min}, {std_max}")
        off = not any(sizes)
        for size in sizes:
            if not off and not std_min <= size <= std_max:
                raise ValueError(
                    f"std: {size} lies outside [{std_min}, {std_max}] (0 for all layers switches the noise off)"
                )
        return sizes

    def _attach(self, model: nn.Module, modules: nn.ModuleList) -> None:
        if self.layers == [LOGITS]:
            self._handles.append(model.register_forward_hook(_OutputHook(self)))
        else:
            for row, index in enumerate(self.layers):
                self._handles.append(
                    modules[int(index)].register_forward_pre_hook(_InputHook(self, row), with_kwargs=True)
                )
        if len(self._handles) != len(self.layers):
            raise ValueError(f"layers: {len(self._handles)} hooks for {len(self.layers)} layers")

    @contextmanager
    def active(
        self,
        *,
        update: int,
        sequence_ids: Tensor,
        attention_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Iterator[LayerwisePerturbation]:
        """Perturb forwards, and their backward, inside this block.

        ``sequence_ids`` (batch,) integers, or (batch, tokens) with ``positions`` for packed rows. Positions count real
        tokens: cumsum(attention_mask) - 1 unless given; ``attention_mask`` (batch, tokens) defaults to all ones of the
        first forward's shape and must be given for padded batches. The same arguments give the same noise.
        """
        if self._active is not None:
            raise RuntimeError("active: blocks cannot be nested")
        if self._log_std is None:
            yield self
            return
        if not self._handles:
            raise RuntimeError("active: detached from the model, nothing would be perturbed")
        self._active = context = Block(update, sequence_ids, attention_mask, positions)
        try:
            yield self
            self._check_acted(context)
        finally:
            self._last, self._active = (context if context.noise_square else self._last), None

    def _perturb(self, row: int, hidden: Tensor) -> Tensor:
        context = self._active
        if context is not None and context.thread != threading.get_ident() and not _in_backward():
            context = None  # another thread's forward is outside the block
        origins = self._origins.setdefault(row, Origins())
        if _in_backward():  # a checkpointed layer is being run again
            origin = origins.find(hidden)
            if origin is not None and (
                context is None or (context.shape is not None and not context.same_draw(origin))
            ):
                raise RuntimeError(
                    "perturbation: backward recomputes a perturbed layer outside its active(...) block; run it inside"
                )
            context = origin
        else:
            self._prepare(context, hidden)
            origins.record(hidden, context)
        if context is None:
            return hidden
        self._prepare(context, hidden)
        assert self._log_std is not None
        # A model's layers may lie on several devices.
        held = hidden.dtype if self.dtype == "hidden" else torch.promote_types(hidden.dtype, torch.float32)
        log_std = self._log_std[row].to(hidden.device, held)
        layer = _LOGITS_KEY if self.layers == [LOGITS] else int(self.layers[row])
        names, valid = context.names(self.seed, layer, hidden.device), context.valid.to(hidden.device)
        result, context.noise_square[row], context.hidden_square[row], context.mean_std[row] = AddNoise.apply(
            hidden, log_std, names, valid, self._saw_backward, torch.is_grad_enabled(), self.scale == "relative"
        )
        return result  # type: ignore[no-any-return]

    def _prepare(self, context: Block | None, hidden: Tensor) -> None:
        """Fit the block to its first forward. Raises ValueError for a forward of another shape."""
        if context is None:
            return
        if hidden.dim() != 3:
            raise ValueError(f"model: hidden states (batch, tokens, channels) expected, got {tuple(hidden.shape)}")
        if context.shape is None:
            if self.layers == [LOGITS] and context.attention_mask is None and context.positions is None:
                raise ValueError(
                    "attention_mask: needed with layers='logits', whose number of positions may be less than the tokens"
                )
            context.prepare(hidden.shape[:2], hidden.device)
        if hidden.shape[:2] != context.shape:
            raise ValueError(
                f"sequence_ids: a forward of {tuple(hidden.shape[:2])} tokens in a block for"
                f" {tuple(context.shape or ())}"
            )

    def _saw_backward(self) -> None:
        """Called by the backward of the noise."""
        if self._active is not None:
            self._active.backward = True

    def _check_acted(self, context: Block) -> None:
        """A block in which the hooks did not run is a mistake, never a silent no-op: a model compiled before the
        attachment, say."""
        missed = [layer for row, layer in enumerate(self.layers) if row not in context.noise_square]
        if missed and not context.backward:
            which = "no layer was" if len(missed) == len(self.layers) else f"layers {missed} were not"
            raise RuntimeError(
                f"active: {which} perturbed in this block: run a forward of the attached model inside (attach before"
                " compiling)"
            )

    def parameters(self) -> Iterator[nn.Parameter]:
        """The s_l, one vector; nothing when off or not learnable."""
        if self._log_std is not None and self.learnable:
            yield self._log_std

    @property
    def enabled(self) -> bool:
        """Whether hooks are on the model."""
        return bool(self._handles)

    @property
    def hooks(self) -> int:
        """Number of hooks on the model."""
        return len(self._handles)

    @property
    def kernel(self) -> str:
        """What draws the noise on the device of the s_l: ``triton`` or ``torch``."""
        found = None if self._log_std is None else device_kernels(self._log_std.device)
        return "torch" if found is None else "triton"

    @property
    def std(self) -> Tensor:
        """σ_l, or c_l where it is relative, (layers,), detached."""
        return torch.zeros(len(self.layers)) if self._log_std is None else self._log_std.detach().exp()

    @property
    def std_grad(self) -> Tensor:
        """∂loss/∂s_l, (layers,); zeros before a backward."""
        if self._log_std is None or self._log_std.grad is None:
            return torch.zeros(len(self.layers))
        return self._log_std.grad.detach()

    @property
    def mean_std(self) -> Tensor:
        """The size of the noise, in the units of the hidden state: the mean of σ_l, or of c_l · RMS, over real tokens
        of the last forward, (layers,)."""
        return self._of_last("mean_std")

    @property
    def realised_rms(self) -> Tensor:
        """RMS of what was really added, after rounding to the hidden dtype, over real tokens of the last forward,
        (layers,)."""
        return self._of_last("noise_square").sqrt()

    @property
    def hidden_rms(self) -> Tensor:
        """RMS of the hidden state the noise was added to, over real tokens of the last forward, (layers,)."""
        return self._of_last("hidden_square").sqrt()

    def _of_last(self, name: str) -> Tensor:
        context = self._active or self._last
        values: dict[int, Tensor] = getattr(context, name) if context is not None else {}
        if len(values) != len(self.layers):
            return torch.zeros(len(self.layers))
        return torch.stack([values[row].to(values[0].device) for row in range(len(self.layers))])

    @torch.no_grad()
    def project_(self) -> None:
        """Bring every σ_l back into [std_min, std_max]; after each optimizer step."""
        if self._log_std is not None:
            self._log_std.clamp_(math.log(self.std_min), math.log(self.std_max))

    def detach(self) -> None:
        """Remove every hook; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def state_dict(self) -> dict[str, Any]:
        """σ's logarithms and what they belong to."""
        logs = torch.zeros(0) if self._log_std is None else self._log_std.detach().clone()
        state = {"layers": list(self.layers), "log_std": logs, "seed": self.seed}
        return state | ({"scale": self.scale} if self.scale != "absolute" else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state is of other layers, another seed or another scale."""
        if list(state["layers"]) != list(self.layers) or state["seed"] != self.seed:
            raise ValueError(
                f"state: of layers {state['layers']} and seed {state['seed']}, not {self.layers} and {self.seed}"
            )
        if state.get("scale", "absolute") != self.scale:
            raise ValueError(f"state: of scale {state.get('scale', 'absolute')}, not {self.scale}")
        if (self._log_std is None) != (len(state["log_std"]) == 0):
            raise ValueError("state: noise on in one and off in the other")
        if self._log_std is not None:
            with torch.no_grad():
                self._log_std.copy_(torch.as_tensor(state["log_std"]))


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1
