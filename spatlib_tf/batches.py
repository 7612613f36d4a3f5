"""Batches, from arrays or from anything that yields them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from spatlib.data import is_pair, length
from spatlib.errors import DataError
from spatlib.train_config import TrainConfig

from .augment import augment

Tensor = Any


def scaled(x: Any, bounds: tuple[float, float], dtype: Any) -> Any:
    """Inputs of uint8 as ``dtype``, with 0..255 as ``bounds``; others as they are."""
    if tf.uint8 != getattr(x, "dtype", None):
        return x
    lower, upper = bounds
    return lower + (upper - lower) * (tf.cast(x, dtype) / 255)


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


def as_dataset(
    data: Any, training: TrainConfig, bounds: tuple[float, float], dtype: Any, first: int = 0
) -> tuple[Any, int | None]:
    """What keras.Model.fit goes through from epoch ``first`` on, and its steps per epoch.

    Batches are scaled, cast and augmented. The order of arrays and the augmentation follow from
    the seed and the number of the epoch (of a tf.data.Dataset: from the seed).
    """

    def prepared(batch: tuple[Tensor, Tensor], draw: Tensor) -> tuple[Tensor, Tensor]:
        x = tf.cast(scaled(batch[0], bounds, dtype), dtype)
        return augment(x, training.augment, bounds[0], draw), batch[1]

    if isinstance(data, keras.utils.PyDataset):
        return _Prepared(data, prepared, training.seed, first), len(data)
    if is_pair(data):
        return _shuffled(data, training, prepared, first)
    dataset = data if isinstance(data, tf.data.Dataset) else _generated(data, training.batch_size)
    draws = tf.data.Dataset.random(training.seed, rerandomize_each_iteration=True)
    return tf.data.Dataset.zip(dataset, draws.batch(2)).map(prepared), length(dataset)


def _shuffled(
    data: tuple[Any, Any], training: TrainConfig, prepared: Any, first: int
) -> tuple[tf.data.Dataset, int]:
    """All epochs of arrays, one after the other."""
    x, y = (tf.convert_to_tensor(part) for part in data)
    steps = -(-len(x) // training.batch_size)
    seed = tf.constant(training.seed, tf.int64)

    def epoch(number: Tensor) -> tf.data.Dataset:
        rows, key = tf.range(len(x)), tf.stack([seed, number])
        order = tf.random.experimental.stateless_shuffle(rows, key, alg="philox")

        def batch(step: Tensor, chosen: Tensor) -> Any:
            # So far from the seeds in use that augmentation never draws what the order draws.
            draw = tf.stack([seed + 2**40, number * steps + step])
            return prepared((tf.gather(x, chosen), tf.gather(y, chosen)), draw)

        batches = tf.data.Dataset.from_tensor_slices(order).batch(training.batch_size)
        return batches.enumerate().map(batch)

    epochs = tf.data.Dataset.range(first, training.epochs)
    return epochs.flat_map(epoch).prefetch(tf.data.AUTOTUNE), steps


class _Prepared(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """A PyDataset with ``change(batch, draw)`` applied to its batches, a draw for each step.

    In threads: TensorFlow would not survive the fork of ``use_multiprocessing``.
    """

    def __init__(self, inner: keras.utils.PyDataset, change: Any, seed: int, epoch: int) -> None:
        super().__init__(workers=inner.workers, max_queue_size=inner.max_queue_size)
        self.inner, self.change, self.seed, self.epoch = inner, change, seed, epoch

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        step = self.epoch * len(self) + index
        return self.change(self.inner[index], tf.constant([self.seed, step], tf.int64))

    def on_epoch_begin(self) -> None:
        self.inner.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self.inner.on_epoch_end()


def _generated(data: Any, batch_size: int) -> tf.data.Dataset:
    """Any other iterable of batches as a dataset, of as many if it says how many."""
    first = map(tf.convert_to_tensor, next(_batches(data, batch_size)))
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first)
    make = partial(_batches, data, batch_size)
    dataset = tf.data.Dataset.from_generator(make, output_signature=signature)
    steps = length(data)
    if steps is None:
        return dataset
    return dataset.apply(tf.data.experimental.assert_cardinality(steps))
