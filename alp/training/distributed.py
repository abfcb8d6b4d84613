"""A job on several devices: the only module that knows ranks (docs/distributed.md).

Every rank is one process with one device. All hold the same small things (problems, trajectories, batches, log-probs,
metrics, σ) and compute the same decisions from them; the model, its gradients and the optimizer's moments lie in shards
(FSDP2), and each rank samples, scores and differentiates its own part. A world of one has no process group, and does
exactly what a job without this module would.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alp import models, shards
from alp.errors import UserError
from alp.policy.layers import decoder_layers
from alp.ranks import RENDEZVOUS, started
from alp.rollout.episodes import Trajectory
from alp.tasks.task import Problem
from alp.training.batch import Batch

Value = TypeVar("Value")
_PATIENCE = timedelta(days=7)  # for a rank that still samples; one that is gone ends the others at once (alp/launch.py)
_CARDS = Path("/proc/driver/nvidia/gpus")  # one folder each; no library is asked, which would look at them all
_EPSILON = 1e-6  # beside a norm that is divided by, as in torch's clipping


@dataclass(frozen=True)
class World:
    """The ranks of a job. ``host`` is the group for objects in main memory, ``mesh`` what the model is spread over;
    None in a world of one."""

    rank: int = 0
    size: int = 1
    host: Any = None
    mesh: Any = None

    @property
    def first(self) -> bool:
        """Whether this rank writes records and checkpoints, and speaks for the job."""
        return self.rank == 0

    # ---- small things that all have ----------------------------------------------------------------------------------

    def share(self, value: Value) -> Value:
        """What the first rank gives."""
        if self.size == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0, group=self.host)
        return values[0]

    def gather(self, value: Value) -> list[Value]:
        """What every rank gives, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value, group=self.host)
        return values

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, in place. Where a part is 0 on all ranks but one, it is that one's to the bit."""
        if self.size > 1:
            torch.distributed.all_reduce(value)
        return value

    def sums(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same of scalars by name, the same names on every rank."""
        if self.size == 1:
            return values
        return dict(zip(values, self.sum(torch.stack(list(values.values()))).unbind(), strict=True))

    def any_signal(self, name: str | None) -> str | None:
        """A signal that any rank was sent: all learn of it at the same moment of their work."""
        if self.size == 1:
            return name
        number = torch.tensor(0 if name is None else int(signal.Signals[name]))
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self.host)
        return signal.Signals(int(number)).name if int(number) else None

    def spread(
        self, problems: list[Problem], sample: Callable[[list[Problem], int], list[Trajectory]]
    ) -> list[Trajectory]:
        """The trajectories to all ``problems``, as one rank would list them: each rank samples to its own, whose first
        has the place that ``sample`` is given."""
        if self.size == 1:
            return sample(problems, 0)
        low, high = (len(problems) * end // self.size for end in (self.rank, self.rank + 1))
        own = sample(problems[low:high], low) if high > low else []
        placed = [replace(item, group=item.group + low) for item in own]
        return [item for part in self.gather(placed) for item in part]

    # ---- forwards ----------------------------------------------------------------------------------------------------

    def pieces(
        self, batch: Batch, rows: int | None, tokens: int | None, multiple: int = 1
    ) -> Iterator[tuple[Tensor, Batch]]:
        """This rank's part of ``Batch.micro_batches``, as many pieces on every rank: a forward is collective.

        Pieces are those of one process, in turns to the ranks; where their number does not go up, the largest are
        halved. A rank with no row left runs one of which nothing counts: its row indices are empty.
        """
        if self.size == 1:
            yield from batch.micro_batches(rows, tokens, multiple)
            return
        groups = evened(batch.groups_of_rows(rows, tokens, multiple), batch.lengths.tolist(), self.size)
        for number in range(self.rank, -(-len(groups) // self.size) * self.size, self.size):
            index = torch.tensor(groups[number] if number < len(groups) else [], dtype=torch.long)
            index = index.to(batch.input_ids.device)
            piece = batch.rows(index) if len(index) else _nothing(batch)
            yield index, piece if multiple == 1 else piece.widened(multiple)

    # ---- the model in shards -----------------------------------------------------------------------------------------

    def load(self, folder: Path, device: torch.device) -> Any:
        """A saved model. Of several ranks, which then :meth:`shard` it, the first alone reads it, into main memory;
        the others have its shape."""
        if self.size == 1:
            return models.load_model(folder, device)
        return models.load_model(folder, torch.device("cpu")) if self.first else models.skeleton(folder)

    def shard(self, model: Any, *, rounded: bool = False) -> None:
        """Spread the first rank's model over the ranks, each decoder layer by itself: no device, and of main memory the
        first rank's alone, ever holds all of it. Gradients are summed, not averaged. ``rounded``: it computes in
        bfloat16, and its float32 parameters are stepped (``trainer.precision``)."""
        if self.size == 1:
            return
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        dtype = torch.bfloat16 if rounded else None
        policy = MixedPrecisionPolicy(dtype, torch.float32 if rounded else None, cast_forward_inputs=False)
        units, sent = [*decoder_layers(model), model], set[nn.Module]()
        for unit in units:
            parts = [part for part in unit.modules() if part not in sent]
            for value in shards.tensors_of(parts):
                torch.distributed.broadcast(value.detach().view(-1).view(torch.uint8), src=0, group=self.host)
            sent.update(parts)
            # The root stays together from its forward to its backward: its head may be called again in between.
            fully_shard(unit, mesh=self.mesh, mp_policy=policy, reshard_after_forward=unit is not model)
        for unit in units:
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)

    def reshard(self, model: Any) -> None:
        """Give up what a forward has put together and no backward followed: the parameters are the shards again."""
        if self.size > 1:
            model.reshard()

    def norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The norm of all their gradients, those in shards and those that every rank has."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1:
            return torch.nn.utils.get_total_norm(gradients)
        parts = [gradient for gradient in gradients if hasattr(gradient, "to_local")]
        whole = [gradient for gradient in gradients if not hasattr(gradient, "to_local")]
        square = self.sum(_square(parts)) + _square(whole).to(parts[0].device)
        return square.sqrt().to(parts[0].dtype)

    def clip(self, parameters: Sequence[nn.Parameter], most: float, norm: Tensor) -> None:
        """Scale gradients of that ``norm`` to at most ``most``."""
        if self.size == 1:
            torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
            return
        scale = (most / (norm + _EPSILON)).clamp(max=1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                shards.local(parameter.grad).mul_(scale)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Of parameters that every rank has whole."""
        for parameter in parameters if self.size > 1 else ():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            self.sum(parameter.grad)

    def model_state(self, model: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Those entries of a model's state dict, whole, on the first rank."""
        if self.size == 1:
            whole = model.state_dict()
            return {name: whole[name] for name in names}
        held = model.state_dict(keep_vars=True)
        return shards.on_host(((name, held[name]) for name in names), keep=self.first)

    def describe(self, model: Any) -> dict[str, Any]:
        """What ``active.json`` says of several ranks."""
        return {} if self.size == 1 else {"devices": self.size, "sharded_units": shards.units(model)}

    def optimizer_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state dict with whole tensors, on the first rank; as it is in a world of one."""
        if self.size == 1:
            return state
        whole = {key: shards.on_host(values.items(), keep=self.first) for key, values in state["state"].items()}
        return state | {"state": whole}

    def cut_state(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The inverse: a whole state dict in the shards of the optimizer's parameters."""
        if self.size == 1:
            return state
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        cut = {
            key: {
                name: shards.like(value, held[key]) if value.shape == held[key].shape else value.clone()
                for name, value in values.items()
            }
            for key, values in state["state"].items()
        }
        return state | {"state": cut}


ALONE = World()


def evened(groups: list[list[int]], lengths: list[int], size: int) -> list[list[int]]:
    """Groups of rows of these ``lengths``, the largest halved until their number is a multiple of ``size``, or each is
    one row."""
    groups = list(groups)
    while len(groups) % size:
        cells = [len(group) * max(lengths[row] for row in group) if len(group) > 1 else 0 for group in groups]
        if not any(cells):
            break
        place = cells.index(max(cells))
        group, middle = groups[place], (len(groups[place]) + 1) // 2
        groups[place : place + 1] = [group[:middle], group[middle:]]
    return groups


def _nothing(batch: Batch) -> Batch:
    """The shortest row, of which nothing counts."""
    piece = batch.rows(batch.lengths.argmin().unsqueeze(0))
    none = torch.zeros_like(piece.response_mask)
    return piece.with_(response_mask=none, loss_mask=none, advantages=torch.zeros_like(piece.advantages))


def _square(gradients: Sequence[Tensor]) -> Tensor:
    """The sum of squares of what lies here, float64."""
    squares = [shards.local(gradient).double().square().sum() for gradient in gradients]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)


@contextmanager
def joined(devices: int, device: str) -> Iterator[World]:
    """The world of a job that asks for so many ``devices`` of that kind; left at the end.

    Raises UserError where this process was not started as one of as many ranks.
    """
    size = int(os.environ.get("WORLD_SIZE", "1")) if started() else 1
    if size != devices:
        how = f"torchrun started {size} processes" if started() else "this process is alone: alp train starts them"
        raise UserError(f"trainer.devices = {devices}, but {how}; give trainer.devices={size}")
    if size == 1:
        yield ALONE
        return
    yield from _joined(size, device)


def _take_gpu(size: int) -> None:
    """Before torch looks for GPUs: one is all that this process, and the engine that it starts, may see.

    Raises UserError where there are some, and fewer than ranks of this machine.
    """
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = [str(number) for number, _ in enumerate(_CARDS.glob("*"))] if seen is None else seen.split(",")
    here = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    if cards and here > len(cards):
        raise UserError(
            f"trainer.devices = {size}: {here} ranks on this machine, which has {len(cards)} GPUs; give"
            f" trainer.devices={len(cards)}, or trainer.device=cpu"
        )
    if cards:
        os.environ["CUDA_VISIBLE_DEVICES"] = cards[int(os.environ["LOCAL_RANK"])]


def _joined(size: int, device: str) -> Iterator[World]:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh

    if device != "cpu":
        _take_gpu(size)
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    rank = int(os.environ["RANK"])
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo",
        init_method=os.environ.get(RENDEZVOUS, "env://"),
        rank=rank,
        world_size=size,
        timeout=_PATIENCE,
    )
    host = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    yield World(rank, size, host, init_device_mesh(kind, (size,)))
    distributed.destroy_process_group()  # not after a failure: it would wait for ranks that are gone
