"""Batches on the device, from arrays, map-style data sets or loaders; and what seeds their draws.

Every draw of a training follows from ``spatlib.training.fold(seed, epoch, number, purpose)``, the
number that of a step in its epoch or of an item, so no state of a generator is ever saved.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from spatlib.data import is_pair, length
from spatlib.errors import ConfigError, DataError, check_images
from spatlib.training import PADDING, fold

from .inputs import check_model

ORDER, ITEM, FETCH, STEP, AUGMENT, ATTACK = range(1, 7)  # the purposes of a seed
CPU = torch.device("cpu")


def seed_globals(seed: int, device: torch.device) -> None:
    """Seed the global generators of Python, NumPy, and torch on the CPU and on the device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # transforms may draw from it
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 200 us
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def keeping_globals(device: torch.device) -> Iterator[None]:
    """Put all that :func:`seed_globals` seeds back as it was, also after an exception."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
            if mps is not None:
                torch.mps.set_rng_state(mps)


def device_of(model: nn.Module, device: str | None) -> torch.device:
    """The device asked for, else the one the model's parameters are on, else the CPU."""
    check_model(model)
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ConfigError(
                f"device must be one that PyTorch finds on this machine, got {device!r} ({error})"
            ) from error
        return torch.device(device)
    first = next(model.parameters(), None)
    return CPU if first is None else first.device


class Batches:
    """What training and evaluation go through, a batch (x, y) on the device at a time.

    Args:
        data: ``(x, y)`` of arrays, memory maps or tensors, of which each batch is gathered where
            they are; a map-style data set of items (x, y); or an iterable of batches. Inputs of
            uint8 become floats on the device: 0..255 is ``bounds``.
        batch_size: Examples per batch, where they are cut here; the last may be smaller.
        model: Sets the dtype of floating inputs.
        device: Where the batches go.
        bounds: Lowest and highest input value.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        model: nn.Module,
        device: torch.device,
        bounds: tuple[float, float],
    ) -> None:
        self.batch_size, self.device, self.bounds = batch_size, device, bounds
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floating, None)
        self.in_arrays = is_pair(data)
        self.data = tuple(map(_by_rows, data)) if self.in_arrays else data
        self.count = len(data[0]) if self.in_arrays else _items(data)

    def __len__(self) -> int:
        """Batches of an epoch of training, 0 where the data does not know."""
        if self.count is None:
            return length(self.data) or 0
        whole, rest = divmod(self.count, self.batch_size)
        # BatchNorm cannot train on one example: such a rest is left out of the epoch.
        return whole + (rest > 1 or (rest == 1 and whole == 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in the order of the data, as for an evaluation."""
        rows = torch.split(torch.arange(self.count or 0), self.batch_size)
        return map(self._moved, self._read(rows, 0, 0))

    def epoch(self, seed: int, epoch: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch of training from ``first`` on, as if those before had come.

        Rows are shuffled, and of those before none is read; a loader has an order of its own, and
        is gone through from its beginning.
        """
        _begin_epoch(self.data, seed, epoch)
        seed_globals(fold(seed, epoch, 0, ORDER), self.device)
        order = torch.randperm(self.count or 0)[: len(self) * self.batch_size]
        start = 0 if self.count is None else first
        batches = self._read(torch.split(order, self.batch_size)[start:], seed, epoch)
        seed_globals(fold(seed, epoch, start, FETCH), self.device)
        for step, batch in enumerate(batches, start):
            if step >= first:
                yield self._moved(batch)
            seed_globals(fold(seed, epoch, step + 1, FETCH), self.device)

    def _read(self, rows: Iterable[Tensor], seed: int, epoch: int) -> Iterable[Any]:
        """Batches on the host: those of these rows, or all that a loader has."""
        if self.in_arrays:
            return (tuple(_gather(part, chosen) for part in self.data) for chosen in rows)
        if self.count is None:
            return _all_of(self.data)
        items = _Items(self.data, seed, epoch)
        return DataLoader(items, batch_sampler=(chosen.tolist() for chosen in rows))

    def _moved(self, batch: Any) -> tuple[Tensor, Tensor]:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            kind = type(batch).__name__
            raise DataError(f"data must yield batches (x, y), inputs and labels, got {kind}")
        x, y = map(self._to_device, batch)
        if x.dtype == torch.uint8:
            lower, upper = self.bounds
            x = lower + (upper - lower) * (x.to(self.dtype or torch.get_default_dtype()) / 255)
        return x, y

    def _to_device(self, part: Any) -> Tensor:
        try:
            tensor = torch.as_tensor(part)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _no_numbers(part, error) from error
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            tensor = tensor.pin_memory()  # the host need not wait for the copy
        tensor = tensor.to(self.device, non_blocking=True)
        return tensor.to(self.dtype) if self.dtype and tensor.is_floating_point() else tensor


class _Items(Dataset[tuple[Any, Any]]):
    """A map-style data set whose items draw from generators seeded for each."""

    def __init__(self, data: Any, seed: int, epoch: int) -> None:
        self.data, self.seed, self.epoch = data, seed, epoch

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        seed_globals(fold(self.seed, self.epoch, index, ITEM), CPU)
        item = self.data[index]
        pair = isinstance(item, tuple | list) and len(item) == 2
        if not pair or not hasattr(item[0], "shape"):
            got = ", ".join(type(part).__name__ for part in item) if pair else type(item).__name__
            raise DataError(
                f"data must hold items (x, y), an array or tensor and its label, got ({got}): "
                "convert them in a transform, or pass a DataLoader of batches (x, y)"
            )
        return item[0], item[1]


def _items(data: Any) -> int | None:
    """The number of items of a map-style data set, None for batches."""
    batches = isinstance(data, list | Mapping | DataLoader | IterableDataset)
    if batches or hasattr(data, "shape") or not hasattr(data, "__getitem__"):
        return None
    return length(data)


def _by_rows(part: Any) -> Any:
    """The array itself if it is gathered by row numbers, else a NumPy array of the same values.

    pandas gathers by labels and TensorFlow by slices only; h5py must not be read whole.
    """
    whole = not hasattr(part, "shape") or hasattr(part, "__array__")
    stored = isinstance(part, Tensor | np.ndarray) or hasattr(part, "chunks")
    return np.asarray(part) if whole and not stored else part


def _gather(part: Any, rows: Tensor) -> Any:
    """A copy of these rows, on the device of the array or tensor."""
    if isinstance(part, Tensor):
        return part[rows.to(part.device)]
    if isinstance(part, np.ndarray):
        return part[rows.numpy()]
    ascending, places = rows.sort()  # h5py reads rows in ascending order only
    try:
        return np.asarray(part[ascending.numpy()])[places.argsort().numpy()]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise _no_numbers(part, error) from error


def _begin_epoch(data: Any, seed: int, epoch: int) -> None:
    """Tell a data set or loader, and what it takes its batches from, which epoch begins."""
    names = ("sampler", "batch_sampler", "dataset")
    for i, part in enumerate((data, *(getattr(data, name, None) for name in names)), 1):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(fold(seed, epoch, i, ORDER))
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _all_of(loader: Any) -> Iterator[Any]:
    empty = True
    for batch in loader:
        yield batch
        empty = False
    if empty:
        raise DataError(
            "data must yield at least one batch, got none: make sure that it can be gone "
            "through again"
        )


def _no_numbers(part: Any, error: Exception) -> DataError:
    return DataError(
        f"data must hold arrays or tensors of numbers, got {type(part).__name__} ({error}): "
        "convert it, e.g. with numpy.asarray"
    )


def augment(x: Tensor, kind: str, lower: float, generator: torch.Generator) -> Tensor:
    """Each image shifted, and mirrored or not, by a draw of its own; see ``TrainConfig.augment``.

    Args:
        x: Images (N, C, H, W); the result has their dtype and memory format.
        kind: ``"crop"``, ``"crop-flip"`` or ``"none"``.
        lower: What is around the images.
        generator: On the device of x.

    Raises:
        ConfigError: x are no images.
    """
    if kind == "none":
        return x
    check_images(x.shape)
    side = 2 * PADDING + 1
    (n, _, height, width), device = x.shape, x.device
    versions = side**2 * (2 if kind == "crop-flip" else 1)
    version = torch.randint(versions, (n, 1), generator=generator, device=device)
    across, down = version % side, version // side % side
    columns = torch.arange(width, device=device)
    columns = across + torch.where(version < side**2, columns, columns.flip(0))
    rows = down + torch.arange(height, device=device)
    padded = torch.nn.functional.pad(x, (PADDING,) * 4, value=lower).movedim(1, 3)
    examples = torch.arange(n, device=device)[:, None, None]
    moved = padded[examples, rows[:, :, None], columns[:, None, :]]
    return torch.empty_like(x).copy_(moved.movedim(3, 1))
