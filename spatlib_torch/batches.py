"""Batches on the device, from arrays or from a loader."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spatlib.data import is_pair, length
from spatlib.errors import ConfigError, DataError


def device_of(model: nn.Module, device: str | None) -> torch.device:
    """The device asked for, else the one the model's parameters are on, else the CPU."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"model must be a torch.nn.Module that returns logits, got {kind}")
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, TypeError) as error:
            raise ConfigError(
                f"device must be one that PyTorch finds on this machine, got {device!r} ({error})"
            ) from error
        return torch.device(device)
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


class Batches:
    """What training and evaluation go through: arrays cut into batches, or the user's batches.

    Args:
        data: ``(x, y)`` of arrays or tensors, moved to the device once, or an iterable of
            batches, each moved as it comes. Inputs of uint8 become floats on the device, batch
            by batch: 0..255 is ``bounds``.
        batch_size: Examples per batch of arrays; the last may be smaller (in training, a last
            batch of one example is left out).
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
        self.arrays = tuple(self._move(part) for part in data) if is_pair(data) else None
        self.source = data

    def __len__(self) -> int:
        if self.arrays is not None:
            return -(-len(self.arrays[0]) // self.batch_size)
        return length(self.source) or 0

    def go_through(self, order: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass; ``order`` shuffles arrays (a loader has an order of its own)."""
        if self.arrays is not None:
            x, y = self.arrays
            count = len(x)
            rows = torch.arange(count) if order is None else torch.randperm(count, generator=order)
            for chosen in torch.split(rows.to(self.device), self.batch_size):
                # BatchNorm cannot train on a batch of one: such a rest is left out of this epoch.
                if order is None or len(chosen) > 1 or 1 in (self.batch_size, count):
                    yield self._scaled(x[chosen]), y[chosen]
            return
        empty = True
        for batch in self.source:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                kind = type(batch).__name__
                raise DataError(f"data must yield batches (x, y), inputs and labels, got {kind}")
            yield self._scaled(self._move(batch[0])), self._move(batch[1])
            empty = False
        if empty:
            raise DataError(
                "data must yield at least one batch, got none: make sure that it can be gone "
                "through again"
            )

    def _scaled(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8:
            return x
        lower, upper = self.bounds
        return lower + (upper - lower) * (x.to(self.dtype or torch.get_default_dtype()) / 255)

    def _move(self, part: Any) -> Tensor:
        try:
            tensor = torch.as_tensor(part)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"data must hold arrays or tensors of numbers, got {type(part).__name__} ({error})"
                ": convert it, e.g. with numpy.asarray"
            ) from error
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype, non_blocking=True)
