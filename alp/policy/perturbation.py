"""Layerwise Gaussian perturbation of any decoder-only Hugging Face model, by hooks (specification §2).

    h_l <- h_l + exp(s_l) ε_l      before the layer's norm and residual branch, inside ``active(...)`` only

The noise is drawn again wherever it is needed, in the backward pass too, from keys of 16 bytes a token: nothing of its
size is ever kept. Nothing is added to the model itself: no parameter, buffer or state-dict key.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from .layers import LOGITS, decoder_layers, resolve_layers
from .streams import FIELD_BITS, check_fields, normals, row_keys

_LOGITS_KEY = (1 << FIELD_BITS["layer"]) - 1


@dataclass
class _Active:
    """One ``active(...)`` block: what keys the noise, and what the last forward realised."""

    update: int
    sequence_ids: Tensor
    attention_mask: Tensor | None
    positions: Tensor | None
    shape: torch.Size | None = None  # (batch, tokens), once the first forward has shown it
    rows: Tensor = field(default_factory=lambda: torch.empty(0))  # (2, rows) int64: sequence id and position of every token
    valid: Tensor = field(default_factory=lambda: torch.empty(0))  # (rows,) bool
    noise_square: dict[int, Tensor] = field(default_factory=dict)
    hidden_square: dict[int, Tensor] = field(default_factory=dict)
    backward: bool = False  # whether a backward of the noise ran inside

    def same_draw(self, other: _Active) -> bool:
        """Whether both blocks give the same noise: a block may be left and entered again for the backward."""
        return self is other or (self.shape == other.shape and self.update == other.update and torch.equal(self.rows, other.rows))

    def prepare(self, shape: torch.Size, device: torch.device) -> None:
        """Name the tokens of a forward of ``shape``. Raises ValueError for arguments that do not fit it."""
        ids, positions = self.sequence_ids, self.positions
        if ids.is_floating_point() or ids.shape not in (shape, shape[:1]):
            raise ValueError(f"sequence_ids: integers {tuple(shape[:1])} or {tuple(shape)} expected, got {ids.dtype} {tuple(ids.shape)}")
        if ids.dim() == 2 and positions is None:
            raise ValueError("positions: packed rows (2-D sequence_ids) need the position of every token")
        for name, value in (("attention_mask", self.attention_mask), ("positions", positions)):
            if value is not None and value.shape != shape:
                raise ValueError(f"{name}: shape {tuple(shape)} expected, got {tuple(value.shape)}")
        valid = torch.ones(shape, dtype=torch.bool) if self.attention_mask is None else self.attention_mask.bool()
        if positions is None:
            positions = valid.long().cumsum(-1) - 1
        rows = ids.unsqueeze(-1).expand(shape) if ids.dim() == 1 else ids
        positions = positions.clamp(min=0)  # padding before the first token borrows its key
        self.rows = torch.stack([rows.reshape(-1).long().to(device), positions.reshape(-1).long().to(device)])
        check_fields(self.update, *self.rows)
        self.valid, self.shape = valid.reshape(-1).to(device), shape

    def keys(self, seed: int, layer: int, device: torch.device) -> Tensor:
        """(rows, 4) int32 of one layer, made anew each time: kept for all layers, they would be the largest thing here."""
        ids, positions = self.rows.to(device)
        return row_keys(seed, self.update, ids, positions, layer)


class _Origins:
    """Which block, if any, each forward of a layer ran in, found again by the storage of the layer's input.

    Gradient checkpointing runs layers a second time during the backward. It keeps the input of the first run alive until
    then (detached or not, the storage is the same), so the storage tells the forward that is being repeated.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[StorageWeakRef, _Active | None]] = {}
        self._limit = 64

    def record(self, hidden: Tensor, context: _Active | None) -> None:
        """Remember the block of a forward; entries of freed inputs are dropped now and then."""
        storage = StorageWeakRef(hidden.untyped_storage())
        if len(self._seen) >= self._limit:
            self._seen = {key: entry for key, entry in self._seen.items() if not entry[0].expired()}
            self._limit = 2 * len(self._seen) + 64
        self._seen[storage.cdata] = (storage, context)

    def find(self, hidden: Tensor) -> _Active | None:
        """The block of the forward that is being repeated. Raises RuntimeError when that forward was never seen."""
        entry = self._seen.get(hidden.untyped_storage()._cdata)
        if entry is None:
            raise RuntimeError("perturbation: backward recomputes a layer whose forward was not seen; attach before the forward")
        return entry[1]


class LayerwisePerturbation:
    """Attach to ``model``; perturb inside ``with perturbation.active(...)``.

    ``layers``: ``all``, ``early``, ``middle``, ``late``, a band ``(start, end)`` or ``"start:end"``, a list, or ``logits``.
    ``std`` is σ_0, one number (or one per layer, shallowest first); 0 means off: no hooks, no parameters. ``learnable`` makes
    s_l = log σ_l a parameter. Raises ValueError for unknown models and layers, an empty band, a std outside its bounds.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: str | Sequence[int] = "all",
        std: float | Sequence[float] = 0.02,
        learnable: bool = True,
        std_min: float = 1e-8,
        std_max: float = 1.0,
        seed: int = 0,
    ) -> None:
        model = getattr(model, "_orig_mod", model)  # of torch.compile: hooks belong on the model itself
        modules = decoder_layers(model)
        self.layers: list[int | str] = (
            [LOGITS] if isinstance(layers, str) and layers == LOGITS else list(resolve_layers(layers, len(modules)))
        )
        sizes = self._sizes(std, std_min, std_max)
        self.std_min, self.std_max, self.seed = std_min, std_max, seed
        self.learnable = learnable and any(sizes)
        parameter = next(model.parameters())
        self._log_std: nn.Parameter | None = None
        self._handles: list[Any] = []
        self._active: _Active | None = None  # inside a block
        self._last: _Active | None = None  # the block before
        self._origins: dict[int, _Origins] = {}
        # A compiled model calls it as it stands: what it decides changes with every block.
        self._act: Any = torch.compiler.disable(self._perturb)
        if any(sizes):
            wide = torch.promote_types(parameter.dtype, torch.float32)
            logs = torch.tensor([math.log(size) for size in sizes], dtype=wide, device=parameter.device)
            self._log_std = nn.Parameter(logs, requires_grad=self.learnable)
            self._attach(model, modules)

    def _sizes(self, std: float | Sequence[float], std_min: float, std_max: float) -> list[float]:
        sizes = [float(std)] * len(self.layers) if isinstance(std, (int, float)) else [float(size) for size in std]
        if len(sizes) != len(self.layers):
            raise ValueError(f"std: {len(self.layers)} values expected, got {len(sizes)}")
        if not 0 < std_min < std_max:
            raise ValueError(f"std_min/std_max: 0 < std_min < std_max expected, got {std_min}, {std_max}")
        off = not any(sizes)
        for size in sizes:
            if not off and not std_min <= size <= std_max:
                raise ValueError(f"std: {size} lies outside [{std_min}, {std_max}] (0 for all layers switches the noise off)")
        return sizes

    def _attach(self, model: nn.Module, modules: nn.ModuleList) -> None:
        if self.layers == [LOGITS]:
            self._handles.append(model.register_forward_hook(self._output_hook))
        else:
            for row, index in enumerate(self.layers):
                self._handles.append(modules[int(index)].register_forward_pre_hook(self._pre_hook(row), with_kwargs=True))
        if len(self._handles) != len(self.layers):
            raise ValueError(f"layers: {len(self._handles)} hooks for {len(self.layers)} layers")

    def _output_hook(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        """Noise on the finished logits (after any soft-capping), before the temperature."""
        if self._active is not None and getattr(output, "loss", None) is not None:
            raise RuntimeError("perturbation: the model computed a loss from unperturbed logits; pass no labels")
        if isinstance(output, tuple):
            return (self._act(0, output[0]), *output[1:])
        output.logits = self._act(0, output.logits)
        return output

    def _pre_hook(self, row: int) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if args:
                return (self._act(row, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": self._act(row, kwargs["hidden_states"])}

        return hook

    @contextmanager
    def active(
        self, *, update: int, sequence_ids: Tensor, attention_mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Iterator[LayerwisePerturbation]:
        """Perturb forwards, and their backward, inside this block.

        ``sequence_ids`` (batch,) integers, or (batch, tokens) with ``positions`` for packed rows. Positions count real
        tokens: cumsum(attention_mask) - 1 unless given; ``attention_mask`` (batch, tokens) defaults to all ones of the first
        forward's shape and must be given for padded batches. The same arguments give the same noise.
        """
        if self._active is not None:
            raise RuntimeError("active: blocks cannot be nested")
        if self._log_std is None:
            yield self
            return
        if not self._handles:
            raise RuntimeError("active: detached from the model, nothing would be perturbed")
        self._active = context = _Active(update, sequence_ids, attention_mask, positions)
        try:
            yield self
            self._check_acted(context)
        finally:
            self._last, self._active = context, None

    def _perturb(self, row: int, hidden: Tensor) -> Tensor:
        context = self._active
        origins = self._origins.setdefault(row, _Origins())
        if torch._C._current_graph_task_id() != -1:  # inside a backward: a checkpointed layer is being run again
            origin = origins.find(hidden)
            if origin is not None and (context is None or (context.shape is not None and not context.same_draw(origin))):
                raise RuntimeError("perturbation: backward recomputes a perturbed layer outside its active(...) block; run it inside")
            context = origin
        else:
            origins.record(hidden, context)
        if context is None:
            return hidden
        if hidden.dim() != 3:
            raise ValueError(f"model: hidden states (batch, tokens, channels) expected, got {tuple(hidden.shape)}")
        assert self._log_std is not None
        if context.shape is None:
            context.prepare(hidden.shape[:2], hidden.device)
        if hidden.shape[:2] != context.shape:
            raise ValueError(f"sequence_ids: a forward of {tuple(hidden.shape[:2])} tokens in a block for {tuple(context.shape or ())}")
        # A model's layers may lie on several devices.
        log_std = self._log_std[row].to(hidden.device, torch.promote_types(hidden.dtype, torch.float32))
        layer = _LOGITS_KEY if self.layers == [LOGITS] else int(self.layers[row])
        keys, valid = context.keys(self.seed, layer, hidden.device), context.valid.to(hidden.device)
        result, context.noise_square[row], context.hidden_square[row] = _AddNoise.apply(hidden, log_std, keys, valid, self)
        return result  # type: ignore[no-any-return]

    def _saw_backward(self) -> None:
        """Called by the backward of the noise."""
        if self._active is not None:
            self._active.backward = True

    def _check_acted(self, context: _Active) -> None:
        """A block in which the hooks did not run is a mistake, never a silent no-op: a model compiled before the attachment, say."""
        missed = [layer for row, layer in enumerate(self.layers) if row not in context.noise_square]
        if missed and not context.backward:
            which = "no layer was" if len(missed) == len(self.layers) else f"layers {missed} were not"
            raise RuntimeError(
                f"active: {which} perturbed in this block: run a forward of the attached model inside (attach before compiling)"
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
    def std(self) -> Tensor:
        """σ_l, (layers,), detached."""
        return torch.zeros(len(self.layers)) if self._log_std is None else self._log_std.detach().exp()

    @property
    def std_grad(self) -> Tensor:
        """∂loss/∂s_l, (layers,); zeros before a backward."""
        if self._log_std is None or self._log_std.grad is None:
            return torch.zeros(len(self.layers))
        return self._log_std.grad.detach()

    @property
    def realised_rms(self) -> Tensor:
        """RMS of what was really added, after rounding to the hidden dtype, over real tokens of the last forward, (layers,)."""
        return self._rms("noise_square")

    @property
    def hidden_rms(self) -> Tensor:
        """RMS of the hidden state the noise was added to, over real tokens of the last forward, (layers,)."""
        return self._rms("hidden_square")

    def _rms(self, name: str) -> Tensor:
        context = self._active or self._last
        squares: dict[int, Tensor] = getattr(context, name) if context is not None else {}
        if len(squares) != len(self.layers):
            return torch.zeros(len(self.layers))
        return torch.stack([squares[row].to(squares[0].device) for row in range(len(self.layers))]).sqrt()

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
        return {"layers": list(self.layers), "log_std": logs, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError when the state is of other layers or another seed."""
        if list(state["layers"]) != list(self.layers) or state["seed"] != self.seed:
            raise ValueError(f"state: of layers {state['layers']} and seed {state['seed']}, not {self.layers} and {self.seed}")
        if (self._log_std is None) != (len(state["log_std"]) == 0):
            raise ValueError("state: noise on in one and off in the other")
        if self._log_std is not None:
            with torch.no_grad():
                self._log_std.copy_(torch.as_tensor(state["log_std"]))


class _AddNoise(torch.autograd.Function):
    """hidden + exp(log_std) ε, with ε drawn again in the backward: ∂loss/∂s = σ Σ(g ⊙ ε)."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, log_std: Tensor, keys: Tensor, valid: Tensor, owner: LayerwisePerturbation
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(log_std, keys)
        ctx.owner = owner
        flat = hidden.reshape(-1, hidden.shape[-1])
        result, std = torch.empty_like(flat), log_std.exp()
        norms = log_std.new_empty(2, flat.shape[0])
        for rows, drawn in _draws(flat, keys):
            before, noise = flat[rows].to(log_std.dtype), drawn.to(log_std.dtype)
            if result.dtype is log_std.dtype:
                torch.addcmul(before, noise, std, out=result[rows])
            else:
                result[rows] = torch.addcmul(before, noise, std)
            torch.sub(result[rows], before, out=noise)  # what was really added, after rounding
            torch.linalg.vector_norm(noise, dim=-1, out=norms[0, rows])
            torch.linalg.vector_norm(before, dim=-1, out=norms[1, rows])
        count = valid.sum().clamp(min=1) * flat.shape[1]
        squares = torch.where(valid, norms.square_(), norms.new_zeros(())).sum(-1) / count
        added, present = squares.unbind()
        ctx.mark_non_differentiable(added, present)
        return result.view_as(hidden), added, present

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        log_std, keys = ctx.saved_tensors
        ctx.owner._saw_backward()
        if not ctx.needs_input_grad[1]:
            return grad, None, None, None, None
        flat = grad.reshape(-1, grad.shape[-1])
        # One sum per token and the rest in float64: the total then hardly depends on how tokens are split into batches.
        dots = torch.empty(flat.shape[0], dtype=torch.float64, device=grad.device)
        for rows, drawn in _draws(flat, keys):
            dots[rows] = torch.linalg.vecdot(flat[rows].to(log_std.dtype), drawn.to(log_std.dtype)).double()
        return grad, (dots.sum() * log_std.double().exp()).to(log_std.dtype), None, None, None


def _draws(flat: Tensor, keys: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the rows of ``flat`` (rows, channels) with the noise of each; the noise lives until the next."""
    source = normals(flat.shape[1], flat.shape[0], flat.device)
    for start in range(0, flat.shape[0], source.rows):
        rows = slice(start, start + source.rows)
        yield rows, source.draw(keys[rows])
