"""Batches, from arrays or from anything that yields them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib.config import PADDING, SPATConfig, Threat, TrainConfig, fold
from spatlib.core.target import check_labels, check_mass, label_mass, mass_limits
from spatlib.data import as_array, by_rows, is_map, is_pair, length, pairs
from spatlib.errors import (
    ROUNDING,
    DataError,
    check_range,
    check_weights,
    classes_of,
    expect,
    only,
    reading,
)

from . import ops
from .ops import check_model, extremes, prepare


def batches(model: keras.Model, data: Any, size: int, threat: Threat) -> Iterator[tuple[Any, Any]]:
    """One pass over arrays or items, cut here, or over the user's batches: scaled, checked."""
    check_model(model)
    if is_pair(data) or is_map(data):
        data = Cut(data, size)
    if isinstance(data, keras.utils.PyDataset):  # raises no IndexError at its end
        data = map(data.__getitem__, range(len(data)))
    for x, y, *weights in pairs(data):
        for each in map(as_array, weights):
            check_weights(each, x, values=True)
        yield prepare(scaled(x, threat.bounds, model.variable_dtype), y, threat, validate=True)


def check_batch(model: keras.Model, x: Any, y: Any, threat: Threat, classes: int = 0) -> int:
    """The number of classes, if 0 from a call; DataError if outputs or labels are no such."""
    size = next((part.shape[0] for part in getattr(model, "inputs", None) or ()), None)
    what = f"data must come in batches of {size}, as the model is built for, got {len(x)} examples"
    expect(size in (None, len(x)), f"{what}: set batch_size, and leave out the rest")
    classes = classes or classes_of(ops.logits_of(model, x).numpy(), threat.check_logits)
    check_labels(ops, y, classes, getattr(threat, "loss", ""))
    return classes


def scaled(x: Any, bounds: tuple[float, float], dtype: Any) -> Any:
    """Inputs of uint8 as ``dtype``, with 0..255 as ``bounds``; others as they are."""
    if tf.uint8 != getattr(x, "dtype", None):
        return x
    lower, upper = bounds
    with tf.init_scope():  # outside a graph, which would multiply by a rounded 1 / 255
        levels = lower + (upper - lower) * (tf.cast(tf.range(256), dtype) / 255)
    return tf.gather(levels, tf.cast(x, tf.int32))


def as_dataset(data: Any, training: TrainConfig) -> Any:
    """What keras.Model.fit can go through; a tf.data.Dataset or a PyDataset is that already."""
    if is_pair(data) or is_map(data):
        return Cut(data, training.batch_size, training.seed, training.num_workers)
    if isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        return data
    first, steps = map(tf.convert_to_tensor, next(pairs(data))), length(data)
    signature = tuple(tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in first)
    found = tf.data.Dataset.from_generator(partial(pairs, data), output_signature=signature)
    return found if steps is None else found.apply(tf.data.experimental.assert_cardinality(steps))


class Cut(keras.utils.PyDataset):  # type: ignore[misc]  # keras ships no types
    """Batches of arrays (x, y), or of items of map style; each reads its own rows only.

    With a seed in another order in each epoch; ``workers`` are threads that read ahead.
    """

    def __init__(self, data: Any, batch_size: int, seed: int | None = None, workers: int = 0):
        super().__init__(workers=max(1, workers))
        self.pair, self.data, self.batch_size, self.seed = is_pair(data), data, batch_size, seed
        if self.pair:
            self.data = [*map(by_rows, data)]
        self.begin(0)

    def begin(self, epoch: int) -> None:
        """Take the order of this epoch (from 0)."""
        rows, size = np.arange(len(self.data[0] if self.pair else self.data)), self.batch_size
        if self.seed is not None:
            rows = np.random.default_rng(fold(self.seed, epoch)).permutation(rows)
        self.rows = np.split(rows, range(size, len(rows), size))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        rows = np.sort(self.rows[index])  # as h5py's data sets need them
        if self.pair:
            return tuple(as_array(part[rows]) for part in self.data)
        items = zip(*pairs(self.data[int(row)] for row in rows), strict=True)
        with reading("data", "have its items hold numbers, in one shape"):
            return tuple(np.stack([*map(as_array, part)]) for part in items)


class Seen(keras.metrics.Metric):  # type: ignore[misc]
    """Notes the first bad batch since its reset; its result raises, as a graph cannot."""

    def __init__(self, config: SPATConfig) -> None:
        super().__init__(name="seen")
        self.config = config
        self.count = self.add_variable((), "zeros", "float64", name="count")
        # Of the batch: 1, its number, extremes of inputs and of labels, their limits; or zeros.
        self.bad = self.add_variable((8,), "zeros", "float64", name="bad")

    def update_state(self, x: Any, y: Any, classes: int) -> None:
        """With inputs and labels as they came, before the former are clipped."""
        limits = mass_limits(y, classes)
        (low, high), (first, last) = map(extremes, (only(x), label_mass(ops, y, self.config.loss)))
        self.count.assign_add(1.0)
        bad, count = map(tf.convert_to_tensor, (self.bad, self.count))
        row = tf.stack([tf.cast(v, bad.dtype) for v in (1, count, low, high, first, last, *limits)])
        lower, upper = self.config.bounds
        slack = ROUNDING * (upper - lower)
        fine = (low >= lower - slack) & (high <= upper + slack)
        fine &= (first >= limits[0]) & (last <= limits[1])
        self.bad.assign(tf.where(fine | (bad[0] > 0), bad, row))

    def result(self, logs: Any = None) -> Any:
        """The logs, with nothing to add; DataError if it can be read and there was such a batch."""
        bad: Any = self.bad.numpy() if tf.executing_eagerly() else [0]
        if bad[0]:
            number, low, high, first, last, *limits = bad[1:] / bad[0]  # replicas add up
            try:
                check_range((low, high), self.config.bounds)
                check_mass((first, last), limits)
            except DataError as error:
                raise DataError(f"batch {number:g}: {error}") from None
            what = "x in bounds and labels that are classes in every replica, got others in several"
            raise DataError(f"batch {number:g}: data must have {what}: look at each replica's part")
        return {} if logs is None else logs


def augment(x: Any, kind: str, lower: float, draws: Any) -> Any:
    """Images (N, H, W, C) moved as ``TrainConfig.augment`` says; around them is ``lower``."""
    if kind == "none":
        return x
    side = 2 * PADDING + 1
    height, width = tf.unstack(tf.shape(x)[1:3])
    versions = side**2 * (2 if kind == "crop-flip" else 1)
    version = draws.versions(x, versions)
    across, down = version % side, version // side % side
    columns = across + tf.where(version < side**2, tf.range(width), tf.range(width)[::-1])
    padded = tf.pad(x, [[0, 0], [PADDING] * 2, [PADDING] * 2, [0, 0]], constant_values=lower)
    cropped = tf.gather(padded, down + tf.range(height), axis=1, batch_dims=1)
    return tf.ensure_shape(tf.gather(cropped, columns, axis=2, batch_dims=1), x.shape)
