"""Batches on the device, from arrays, map-style data sets or loaders."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from spatlib import errors
from spatlib.config import PADDING, fold
from spatlib.data import by_rows, fingerprint, is_map, is_pair, length, pairs
from spatlib.errors import DataError, asking, cause, require, shown

from .attack import Draws
from .distributed import in_step, numbers, share, team, versions
from .ops import check_model
from .state import FETCH, ITEM, ORDER, seed_globals

CPU = torch.device("cpu")
Bounds = tuple[float, float]
Rows = tuple[int, int]
Batch = tuple[Tensor, Tensor, Rows, Tensor | None]  # the last are weights
Epoch = Generator[Batch, None, None]


@torch.inference_mode(False)
def placed(model: nn.Module, device: str | None) -> torch.device:
    """Move the model to this device; by default to that of its first tensor, or the CPU."""
    check_model(model)
    own = next((t.device for t in (*model.parameters(), *model.buffers())), CPU)
    with asking("device", f"be one PyTorch finds, not {shown(device)}"):
        found = own if device is None else torch.empty(0, device=device).device
    if any(t.device != found for t in (*model.parameters(), *model.buffers())):
        model.to(found)  # which, if for nothing too, disturbs a training in another thread
    return found


class Batches:
    """Batches (x, y) on the device: of arrays, of a map-style data set, or those of a loader.

    Of several processes each gets its rows of a batch ``size`` times as large in an epoch.
    Inputs are floats of the model's dtype, or uint8, where 0..255 become ``bounds``.
    """

    workers = 0  # processes that read ahead in data of map style

    def __init__(
        self, data: Any, batch_size: int, model: nn.Module, device: torch.device, bounds: Bounds
    ) -> None:
        self.data, self.batch_size, self.device, self.bounds = data, batch_size, device, bounds
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        self.count: int | None = None  # of examples, where batches are cut here
        self.size = team()[1]
        if is_pair(data):
            self.data, self.count = tuple(map(by_rows, data)), len(data[0])
        elif is_map(data):
            self.count = length(data)

    def __len__(self) -> int:
        """Batches of an epoch of training, 0 where the data does not know."""
        if self.count is None:
            return length(self.data) or 0
        whole, rest = divmod(self.count, self.batch_size * self.size)
        # BatchNorm cannot train on one example: such a rest is left out of the epoch.
        return whole + (rest >= (2 if whole else 1) * self.size)

    def check_own(self, x: Tensor, y: Tensor) -> None:
        """ConfigError unless each of several processes has a batch of its own, here of a loader."""
        what = "be shared out: pass the data set, or a loader with sampler=DistributedSampler(...)"
        require(self._versions(x, y) == self.size, "data", what, self.data)

    def _versions(self, x: Tensor, y: Tensor) -> int:
        """How many different batches the processes have, by all labels and the first input."""
        return versions(fingerprint((x[:1], y)), self.device)

    def shares(self) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        """One pass in the order of the data, of each batch the rows of this process, perhaps none.

        With the place of the first in the data, and how many count, as the rest is repeated. What a
        loader gives to all processes alike is shared out here.
        """
        rank, first = team()[0], 0
        if self.count is not None:
            cut = torch.split(torch.arange(self.count), self.batch_size * self.size)
            own = [part[share(len(part))] for part in cut]
            moved = map(self._moved, self._read(own))
            for part, rows, (x, y, _) in zip(cut, own, moved, strict=True):
                yield x, y, int(rows[0]), len(x) * (rank < len(part))
            return
        parts: Any = self._parts() if self.size > 1 else []
        samplers: Any = (part for part in parts if isinstance(part, DistributedSampler))
        once = (len(range(s.rank, len(s.dataset), s.num_replicas)) for s in samplers)
        left, every, whole = min(once, default=inf), inf, None  # then a sampler repeats some
        with suppress(IndexError, AttributeError, TypeError):  # so does Accelerate's loader
            every = parts[0].total_dataset_length
        batches = (batch[:2] for batch in self._shuffled(0, 0, 0)) if self.size > 1 else iter(self)
        x = y = torch.empty(0, device=self.device)
        while True:
            if batch := next(batches, None):
                errors.check_batch(x := batch[0], y := batch[1])
            else:  # others may have more
                x, y = x[:0], y[:0]
            if not any(counts := numbers(len(x), self.device)):
                return
            kinds = self._versions(x, y)
            whole = kinds < self.size if whole is None else whole
            what = "give all processes batches in one order, or each its own (DistributedSampler)"
            require(kinds == 1 or not whole, "data", what, self.data)
            if whole:
                mine = share(len(x))
                yield x[mine], y[mine], first + mine.start, len(x[mine]) * (rank < len(x))
                first += len(x)
            else:
                place = first + sum(counts[:rank])
                counted = int(min(len(x), left, max(0, every - place)))
                yield x, y, place, counted
                left, first = left - counted, first + sum(counts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in the order of the data, the same in every process."""
        rows = torch.arange(self.count or 0)
        moved = map(self._moved, self._read(torch.split(rows, self.batch_size)))
        return ((x, y) for x, y, _ in moved)

    def epoch(self, seed: int, epoch: int, first: int = 0) -> Epoch:
        """The shuffled batches of an epoch from ``first`` on; only a loader reads those before.

        Each with the number of its first row in the batch of all processes, and rows of that.
        Of a loader that does not know its length, as many as it has in every process.
        """
        batches, known = self._shuffled(seed, epoch, first), len(self) > 0 or self.size == 1
        return batches if known else in_step(batches, self.device)

    def _shuffled(self, seed: int, epoch: int, first: int) -> Epoch:
        for i, part in enumerate(self._parts(), 1):  # tell each which epoch begins
            if isinstance(generator := getattr(part, "generator", None), torch.Generator):
                generator.manual_seed(fold(seed, epoch, i, ORDER))
            if hasattr(part, "set_epoch"):
                part.set_epoch(epoch)
        source = torch.Generator().manual_seed(fold(seed, epoch, 0, ORDER))
        order = torch.randperm(self.count or 0, generator=source)
        size, begin = self.batch_size * self.size, 0 if self.count is None else first
        cut = torch.split(order[: len(self) * size], size)
        seed_globals(fold(seed, epoch, begin, FETCH), self.device)
        own = [part[share(len(part))] for part in cut[begin:]]
        for step, batch in enumerate(self._read(own, seed, epoch), begin):
            if step >= first:
                x, y, weights = self._moved(batch)
                # A loader takes the rows of this process.
                total = self.size * len(x) if self.count is None else len(cut[step])
                yield x, y, (share(total).start, total), weights
            seed_globals(fold(seed, epoch, step + 1, FETCH), self.device)

    def _parts(self) -> list[Any]:
        """The data, and the data sets and samplers in them."""
        parts, names = [self.data], ("sampler", "batch_sampler", "dataset")
        for part in parts:
            inner = (getattr(part, name, None) for name in names)
            parts += [new for new in inner if all(new is not old for old in (None, *parts))]
        return parts

    def _read(self, parts: Sequence[Tensor], seed: int = 0, epoch: int = 0) -> Iterable[Any]:
        """The batches of these rows, or all that a loader yields."""
        if self.count is None:
            return pairs(self.data)
        if is_pair(self.data):
            return ([_numbers(_gather, array, part) for array in self.data] for part in parts)
        how: Any = {"collate_fn": partial(_numbers, default_collate), "num_workers": self.workers}
        how["generator"] = torch.Generator()  # else it draws from the global one
        items: Any = _Seeded(self.data, seed, epoch)
        return DataLoader(items, batch_sampler=map(Tensor.tolist, parts), **how)

    def _moved(self, batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """The batch on the device, its weights last, if it has any."""
        x, y, *weights = map(self._to_device, next(pairs([batch])))
        for each in weights:
            errors.check_weights(each, x)
        if x.dtype == torch.uint8:
            lower, upper = self.bounds
            x = lower + (upper - lower) * (x.to(self.dtype or torch.get_default_dtype()) / 255)
        x = x.to(self.dtype) if self.dtype and x.is_floating_point() else x
        return x, y, weights[0] if weights else None

    def _to_device(self, part: Any) -> Tensor:
        tensor: Tensor = _numbers(torch.as_tensor, part)
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # the host need not wait for the copy
        return tensor.to(self.device, non_blocking=True)


class _Seeded:
    """Data of map style whose items are drawn alike, whichever process reads them."""

    def __init__(self, data: Any, seed: int, epoch: int) -> None:
        self.data, self.seed, self.epoch = data, seed, epoch

    def __getitem__(self, index: int) -> Any:
        seed_globals(fold(self.seed, self.epoch, index, ITEM), CPU)
        return self.data[index]


def _gather(part: Any, rows: Tensor) -> Any:
    """A copy of these rows, where the array is."""
    if isinstance(getattr(part, "dataset", part), Tensor | np.ndarray):  # or held-out rows of it
        return part[rows.numpy()]
    ascending, places = np.unique(rows.numpy(), return_inverse=True)  # h5py's order
    return np.asarray(part[ascending])[places]


def _numbers(convert: Callable[..., Any], part: Any, *arguments: Any) -> Any:
    """What it is converted to; DataError if it cannot be."""
    how = "have it hold arrays or tensors of numbers (by numpy.asarray or a transform)"
    try:
        return convert(part, *arguments)
    except (TypeError, ValueError, RuntimeError, IndexError, KeyError) as error:  # not of a disk
        what = f"data of type {type(part).__name__} cannot be read ({cause(error)})"
        raise DataError(f"{what}: {how}") from error


def augment(x: Tensor, kind: str, lower: float, draws: Draws) -> Tensor:
    """Images (N, C, H, W) moved as ``TrainConfig.augment`` says; around them is ``lower``."""
    if kind == "none":
        return x
    errors.check_images(x.shape)
    (n, _, height, width), device, side = x.shape, x.device, 2 * PADDING + 1
    versions = side**2 * (2 if kind == "crop-flip" else 1)
    version = draws.versions(x, versions)
    across, down = version % side, version // side % side
    columns = torch.arange(width, device=device)
    columns = across + torch.where(version < side**2, columns, columns.flip(0))
    rows = down + torch.arange(height, device=device)
    examples, padded = torch.arange(n, device=device), pad(x, (PADDING,) * 4, value=lower)
    moved = padded[examples[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return torch.empty_like(x).copy_(moved.movedim(3, 1))
