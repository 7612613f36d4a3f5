"""The core's primitives in NumPy; see :mod:`spatlib.core.ops`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .ops import Array, example_axes, example_size

CHANNEL_AXIS = -1

abs, sign, sqrt, exp, log = np.abs, np.sign, np.sqrt, np.exp, np.log
clip, minimum, maximum, where = np.clip, np.minimum, np.maximum, np.where
sum: Any = np.sum
max: Any = np.max


def take(x: Array, rows: Any) -> Array:
    return x[rows]


def cast(x: Array, like: Array) -> Array:
    return np.asarray(x).astype(like.dtype)


def widen(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def log_softmax(x: Array) -> Array:
    centred = x - np.max(x, axis=1, keepdims=True)  # x - logsumexp(x) would cancel
    return centred - np.log(np.sum(np.exp(centred), axis=1, keepdims=True))


def logsumexp(x: Array) -> Array:
    return np.logaddexp.reduce(x, axis=1)


def argmax_one_hot(x: Array) -> Array:
    return (np.arange(x.shape[1]) == np.argmax(x, axis=1)[:, None]).astype(x.dtype)


def kth_largest(x: Array, k: int) -> Array:
    kth = np.partition(x.reshape(len(x), example_size(x)), -k, axis=1)[:, -k]
    return kth[(..., *(None,) * len(example_axes(x)))]


def repeat(body: Callable[..., Any], times: int, state: Any, done: Any = None) -> tuple[Array, ...]:
    for _ in range(times):
        if done is not None and np.all(done(*state)):
            break
        state = body(*state)
    return state  # type: ignore[no-any-return]


def mantissa_bits(x: Array) -> int:
    return int(np.finfo(x.dtype).nmant) + 1
