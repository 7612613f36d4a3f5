"""Batches, from arrays or from anything that yields them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from spatlib.data import is_pair, length
from spatlib.errors import DataError

Tensor = Any


def batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    """One pass over ``(x, y)`` of arrays, cut into batches, or over the user's batches."""
    if is_pair(data):
        x, y = data
        for begin in range(0, len(x), batch_size):
            yield x[begin : begin + batch_size], y[begin : begin + batch_size]
        return
    empty = True
    # A PyDataset can be indexed for ever: its length, not an IndexError, is its end.
    indexed = isinstance(data, keras.utils.PyDataset)
    for batch in (data[i] for i in range(len(data))) if indexed else data:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataError("data", expected="batches (x, y)", received=type(batch).__name__,
                            fix="Yield pairs of inputs and labels.")  # fmt: skip
        yield batch[0], batch[1]
        empty = False
    if empty:
        raise DataError("data", expected="at least one batch", received="none",
                        fix="Check that the data can be gone through again.")  # fmt: skip


def as_dataset(data: Any, batch_size: int, seed: int, dtype: Any) -> Any:
    """What keras.Model.fit goes through: arrays are shuffled anew each epoch, by the seed."""
    if is_pair(data):
        x, y = (tf.convert_to_tensor(part) for part in data)
        dataset = tf.data.Dataset.from_tensor_slices((tf.cast(x, dtype), y))
        return dataset.shuffle(len(x), seed=seed).batch(batch_size)
    if isinstance(data, keras.utils.PyDataset):
        return data
    dataset = data if isinstance(data, tf.data.Dataset) else _generated(data, batch_size)
    return dataset.map(lambda x, y: (tf.cast(x, dtype), y))


def _generated(data: Any, batch_size: int) -> tf.data.Dataset:
    """Any other iterable of batches as a dataset, of as many if it says how many."""
    first = next(batches(data, batch_size))
    signature = tuple(
        tf.TensorSpec(
            (None, *tf.convert_to_tensor(part).shape[1:]), tf.convert_to_tensor(part).dtype
        )
        for part in first
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: batches(data, batch_size), output_signature=signature
    )
    steps = length(data)
    return (
        dataset if steps is None else dataset.apply(tf.data.experimental.assert_cardinality(steps))
    )
