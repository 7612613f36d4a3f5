"""Batches, from arrays or from anything that yields them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib.data import is_pair, length
from spatlib.errors import DataError
from spatlib.training import PADDING, TrainConfig, fold


def scaled(x: Any, bounds: tuple[float, float], dtype: Any) -> Any:
    """Inputs of uint8 as ``dtype``, with 0..255 as ``bounds``; others as they are."""
    if tf.uint8 != getattr(x, "dtype", None):
        return x
    lower, upper = bounds
    with tf.init_scope():  # outside a graph, which would multiply by a rounded 1 / 255
        levels = lower + (upper - lower) * (tf.cast(tf.range(256), dtype) / 255)
    return tf.gather(levels, tf.cast(x, tf.int32))


def batches(
    data: Any, batch_size: int, bounds: tuple[float, float], dtype: Any
) -> Iterator[tuple[Any, Any]]:
    """One pass over ``(x, y)`` of arrays, cut into batches, or over the user's batches, scaled."""
    return ((scaled(x, bounds, dtype), y) for x, y in _batches(data, batch_size))


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if is_pair(data):
        x, y = data
        for begin in range(0, len(x), batch_size):
            yield x[begin : begin + batch_size], y[begin : begin + batch_size]
        return
    empty = True
    # A PyDataset raises no IndexError at its end: its length says where that is.
    indexed = isinstance(data, keras.utils.PyDataset)
    for batch in (data[i] for i in range(len(data))) if indexed else data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            kind = type(batch).__name__
            raise DataError(f"data must yield batches (x, y), inputs and labels, got {kind}")
        yield batch[0], batch[1]
        empty = False
    if empty:
        raise DataError(
            "data must yield at least one batch, got none: make sure that it can be gone "
            "through again"
        )


def as_dataset(data: Any, training: TrainConfig) -> Any:
    """What keras.Model.fit can go through; a tf.data.Dataset or a PyDataset is that already."""
    if is_pair(data):
        return Shuffled(data, training.batch_size, training.seed)
    if isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        return data
    make = partial(_batches, data, training.batch_size)
    first = map(tf.convert_to_tensor, next(make()))
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first)
    dataset = tf.data.Dataset.from_generator(make, output_signature=signature)
    steps = length(data)
    return (
        dataset if steps is None else dataset.apply(tf.data.experimental.assert_cardinality(steps))
    )


class Shuffled(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Arrays in batches, of which each reads its own rows only.

    Args:
        data: ``(x, y)``, NumPy's arrays, memory maps, tensors of a CPU, or what else has a length
            and is indexed by an increasing array of rows (as h5py's data sets are).
        batch_size: Examples per batch; the last may be smaller.
        seed: Decides the order of each epoch.
    """

    def __init__(self, data: tuple[Any, Any], batch_size: int, seed: int) -> None:
        super().__init__()
        self.data = [part.numpy() if tf.is_tensor(part) else part for part in data]
        self.batch_size, self.seed = batch_size, seed
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Take the order of this epoch (from 0)."""
        rng = np.random.default_rng(fold(self.seed, epoch))
        self.order = rng.permutation(len(self.data[0]))

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        rows = np.sort(self.order[index * self.batch_size :][: self.batch_size])
        return tuple(np.asarray(part[rows]) for part in self.data)


Tensor = Any


def augment(x: Tensor, kind: str, lower: float, seed: Tensor) -> Tensor:
    """Each image shifted, and mirrored or not, by a draw of its own; see ``TrainConfig.augment``.

    Args:
        x: Images (N, H, W, C).
        kind: ``"crop"``, ``"crop-flip"`` or ``"none"``.
        lower: What is around the images.
        seed: Integers (2,); decides the draws.
    """
    if kind == "none":
        return x
    side = 2 * PADDING + 1
    n, height, width = tf.unstack(tf.shape(x)[:3])
    versions = side**2 * (2 if kind == "crop-flip" else 1)
    version = tf.random.stateless_uniform([n, 1], seed, 0, versions, tf.int32, alg="philox")
    across, down = version % side, version // side % side
    columns = tf.range(width)
    columns = across + tf.where(version < side**2, columns, columns[::-1])
    rows = down + tf.range(height)
    padded = tf.pad(x, [[0, 0], [PADDING] * 2, [PADDING] * 2, [0, 0]], constant_values=lower)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.ensure_shape(tf.gather(cropped, columns, axis=2, batch_dims=1), x.shape)
