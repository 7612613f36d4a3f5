"""One training in several processes, begun by torchrun: who takes which rows, and what is shared.

Each process draws for the batch of all and takes its rows; after a step all have the same weights
and buffers. So several processes compute what one does, up to rounding.
"""

import atexit
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import islice
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parameter import is_lazy

from spatlib.errors import BackendError, PeerError, SpatlibError, cause

RUNNING = ("running_mean", "running_var")  # of BatchNorm: averaged; other buffers are process 0's
_team = [0, 1]


def team() -> tuple[int, int]:
    """The number of this process, and of how many that train together."""
    return _team[0], _team[1]


@contextmanager
def _talking() -> Iterator[None]:
    """Around what all processes have to do; BackendError where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        what = f"a process of the training has ended ({cause(error)})"
        raise BackendError(f"{what}: look at what it printed, and resume the run") from error


@contextmanager
def together() -> Iterator[tuple[int, int]]:
    """Train with the other processes of torchrun, or of a group that is there: :func:`team`.

    On GPUs each has the one of its local number (``device="cuda"``).
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and distributed.is_available() and not distributed.is_initialized():
        try:
            found, rank, size = next(rendezvous("env://"))
        except ValueError as error:
            what = f"WORLD_SIZE is set, but not how the processes meet ({cause(error)})"
            raise BackendError(f"{what}: begin them by torchrun, or unset it for one") from error
        own = int(os.environ.get("LOCAL_RANK", rank))
        if own < torch.accelerator.device_count():
            torch.accelerator.set_device_index(own)  # else the training is on the CPU
        # A process that torchrun began anew would else find the addresses of those that ended.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = distributed.PrefixStore(attempt, found)  # type: ignore[attr-defined]
        distributed.init_process_group(store=store, rank=rank, world_size=size)
        atexit.register(distributed.destroy_process_group)
    try:
        if distributed.is_available() and distributed.is_initialized():
            with _talking():
                distributed.barrier()  # each has looked for a run before one writes it
            _team[:] = distributed.get_rank(), distributed.get_world_size()
        yield team()
    finally:
        _team[:] = 0, 1


def versions(facts: object, device: torch.device) -> int:
    """How many different facts the processes have, by their texts."""
    return len({*numbers(int.from_bytes(sha256(repr(facts).encode()).digest()[:7]), device)})


@contextmanager
def agreeing(device: torch.device) -> Iterator[None]:
    """Around what may fail in one process alone: all others then end with a PeerError."""
    error = None
    try:
        yield
    except (SpatlibError, OSError) as raised:
        error = raised
    if any(numbers(error is not None, device)):
        raise error or PeerError("another process cannot train: see what it printed")


def share(count: int) -> slice:
    """The rows of this process among so many; of fewer rows than processes one, as others have."""
    rank, size = team()
    if count < size:
        return slice(max(min(rank, count - 1), 0), min(rank + 1, count))
    return slice(count * rank // size, count * (rank + 1) // size)


def numbers(own: int, device: torch.device) -> list[int]:
    """The integer that each process has."""
    return [int(number) for number in collected(torch.tensor(int(own), device=device))]


def gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in order; each may have any number of them."""
    counts = numbers(len(rows), rows.device)
    rest = rows.new_zeros(max(counts) - len(rows), *rows.shape[1:])  # all send as many
    parts = collected(torch.cat([rows, rest]))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def in_step(batches: Iterator[Any], device: torch.device) -> Generator[Any, None, None]:
    """The batches, until one of the processes has no more."""
    while 0 not in numbers(len(batch := [*islice(batches, 1)]), device):
        yield from batch


@_talking()
def collected(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, which have one shape."""
    if team()[1] == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(team()[1])]
    distributed.all_gather(parts, tensor.contiguous())
    return parts


@torch.no_grad()
def begin_alike(model: nn.Module) -> None:
    """Give each process the weights and buffers of process 0."""
    for buffer in model.buffers() if team()[1] > 1 else ():
        if not is_lazy(buffer) and 0 in buffer.stride():  # nothing can be written to it
            buffer.data = buffer.data.clone(memory_format=torch.contiguous_format)
    tensors = [t.data for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]
    for tensor in tensors if team()[0] else ():
        tensor.zero_()
    _add_up(tensors)


@torch.no_grad()
def step_alike(model: nn.Module) -> None:
    """Add up the gradients of all processes, and give each the same buffers."""
    rank, size = team()
    if size == 1:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
    unused = [i for i, p in enumerate(trained) if p.grad is None]
    users = torch.ones(len(trained), device=trained[0].device)  # processes that used each
    for i in unused:
        users[i] = 0
    buffers = {name: b.data for name, b in model.named_buffers() if b.is_floating_point()}
    for name, buffer in buffers.items():
        if name.endswith(RUNNING):
            buffer /= size
        elif rank:
            buffer.zero_()
    _add_up([*gradients, *buffers.values(), users])
    if unused:  # here, but perhaps not in all processes, as with layers that are left out at random
        for i, number in enumerate(users.tolist()):
            trained[i].grad = gradients[i] if number else None


@_talking()
def _add_up(tensors: Sequence[Tensor]) -> None:
    """Make each tensor the sum of those of all processes, in one message per dtype."""
    for dtype in dict.fromkeys(t.dtype for t in tensors) if team()[1] > 1 else ():
        same = [t for t in tensors if t.dtype == dtype]
        distributed.all_reduce(flat := torch.cat([t.flatten() for t in same]))
        for tensor, part in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
            tensor.copy_(part.view_as(tensor))
