"""The core's primitives in the array API standard; see :mod:`spatlib.core.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable

import array_api_compat.numpy as xp

from spatlib.core.ops import Array, Axes

abs, sign, sqrt, exp, log = xp.abs, xp.sign, xp.sqrt, xp.exp, xp.log
clip, minimum, maximum, where = xp.clip, xp.minimum, xp.maximum, xp.where

CHANNEL_AXIS = 1


def sum(x: Array, axis: Axes, keepdims: bool = False) -> Array:
    return xp.sum(x, axis=axis, keepdims=keepdims)


def max(x: Array, axis: Axes, keepdims: bool = False) -> Array:
    return xp.max(x, axis=axis, keepdims=keepdims)


def take(x: Array, rows: Array) -> Array:
    return xp.take(x, rows, axis=0)


def cast(x: Array, like: Array) -> Array:
    return xp.astype(x, like.dtype)


def widen(x: Array) -> Array:
    return xp.astype(x, xp.float32) if x.dtype == "float16" else x


def log_softmax(x: Array) -> Array:
    centred = x - max(x, -1, keepdims=True)
    return centred - xp.log(sum(xp.exp(centred), -1, keepdims=True))


def logsumexp(x: Array) -> Array:
    top = max(x, -1, keepdims=True)
    return xp.squeeze(top + xp.log(sum(xp.exp(x - top), -1, keepdims=True)), axis=-1)


def argmax_one_hot(x: Array) -> Array:
    chosen = xp.expand_dims(xp.argmax(x, axis=-1), axis=-1)
    return xp.astype(xp.arange(x.shape[-1]) == chosen, x.dtype)


def kth_largest(x: Array, k: int) -> Array:
    ordered = xp.sort(xp.reshape(x, (x.shape[0], -1)), axis=1, descending=True)
    return xp.reshape(ordered[:, k - 1], (-1,) + (1,) * (x.ndim - 1))


def repeat(
    body: Callable[..., tuple[Array, ...]],
    times: int,
    state: tuple[Array, ...],
    done: Callable[..., Array] | None = None,
) -> tuple[Array, ...]:
    # All rounds, always: done only saves time.
    for _ in range(times):
        state = body(*state)
    return state


def mantissa_bits(x: Array) -> int:
    return 1 - round(math.log2(xp.finfo(x.dtype).eps))
