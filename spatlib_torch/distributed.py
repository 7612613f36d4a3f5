"""One training in several processes, begun by torchrun: who takes which rows, and what is shared.

Every process draws for the global batch and takes its rows, and after each step all have the same
weights, statistics and optimizer: so several processes compute what one does, up to rounding.
"""

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous

from spatlib.errors import BackendError, cause

RUNNING = ("running_mean", "running_var")  # of BatchNorm: averaged, other buffers are process 0's
_team = [0, 1]  # the number of this process, and of how many


@contextmanager
def together() -> Iterator[tuple[int, int]]:
    """Train with the other processes of torchrun, or of a group that is there: :func:`team`.

    On GPUs each has the one of its local number (``device="cuda"``). BackendError if one dies.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if distributed.is_available() and several and not distributed.is_initialized():
        if torch.accelerator.is_available():
            torch.accelerator.set_device_index(int(os.environ.get("LOCAL_RANK", "0")))
        # A process that torchrun began anew would else find the addresses of those that ended.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        found, rank, size = next(rendezvous("env://"))
        store = distributed.PrefixStore(attempt, found)  # type: ignore[attr-defined]
        distributed.init_process_group(store=store, rank=rank, world_size=size)
        atexit.register(distributed.destroy_process_group)  # once: as for the addresses
    try:
        if distributed.is_available() and distributed.is_initialized():
            with _with_the_others():
                distributed.barrier()  # each has looked for a run before one writes it
            _team[:] = distributed.get_rank(), distributed.get_world_size()
        yield team()
    finally:
        _team[:] = 0, 1


@contextmanager
def _with_the_others() -> Iterator[None]:
    """Around what all processes have to do; BackendError where one of them is gone."""
    try:
        yield
    except RuntimeError as error:
        what = f"a process of the training has ended ({cause(error)})"
        raise BackendError(f"{what}: look at what it printed, and resume the run") from error


def team() -> tuple[int, int]:
    """The number of this process, and of how many that train together."""
    return _team[0], _team[1]


def share(count: int) -> slice:
    """The rows of this process among so many; all rows where there are fewer than processes."""
    rank, size = team()
    if count < size:
        return slice(0, count)
    least, more = divmod(count, size)
    first = rank * least + min(rank, more)
    return slice(first, first + least + (rank < more))


def gathered(rows: Tensor, count: int) -> Tensor:
    """All ``count`` rows, of which each process has its :func:`share`, in order."""
    _, size = team()
    if size == 1 or count < size:
        return rows
    least, more = divmod(count, size)
    sent = rows.to(torch.uint8) if rows.dtype == torch.bool else rows
    sent = torch.cat([sent, sent[: least + (more > 0) - len(rows)]])  # of one length everywhere
    parts = [part[: least + (k < more)] for k, part in enumerate(collected(sent.contiguous()))]
    return torch.cat(parts).to(rows.dtype)


def collected(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes, which have one shape."""
    if team()[1] == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(team()[1])]
    with _with_the_others():
        distributed.all_gather(parts, tensor)
    return parts


@torch.no_grad()
def begin_alike(model: nn.Module) -> None:
    """Give each process the weights and buffers of process 0."""
    tensors = [t.data for t in (*model.parameters(), *model.buffers())]
    for tensor in tensors if team()[0] else ():
        tensor.zero_()
    add_up(tensors)


@torch.no_grad()
def step_alike(model: nn.Module) -> None:
    """Add up the gradients of all processes, and give each the same buffers."""
    rank, size = team()
    if size == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    buffers = {name: b.data for name, b in model.named_buffers() if b.is_floating_point()}
    for name, buffer in buffers.items():
        if name.endswith(RUNNING):
            buffer /= size
        elif rank:
            buffer.zero_()
    add_up([*gradients, *buffers.values()])


def add_up(tensors: Iterable[Tensor]) -> None:
    """Make each tensor the sum of those of all processes, in one message per dtype."""
    if team()[1] == 1:
        return
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(tensor.dtype, []).append(tensor)
    for same in kinds.values():
        flat = torch.cat([tensor.flatten() for tensor in same])
        with _with_the_others():
            distributed.all_reduce(flat)
        for tensor, part in zip(same, torch.split(flat, [t.numel() for t in same]), strict=True):
            tensor.copy_(part.view_as(tensor))
