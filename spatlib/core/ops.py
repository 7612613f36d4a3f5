"""What the core needs of an array framework: one plain module each implements :class:`Ops`.

The first axis is the batch, whose size need not be known. What ``sign``, ``where`` and arithmetic
return is new memory. Functions never update an argument in place, read a value back to the host or
branch on one. Gradients and random numbers belong to the engines.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

Array: TypeAlias = Any  # of the framework behind ops
Axes: TypeAlias = int | tuple[int, ...]


class Ops(Protocol):
    """The primitives; ``axis`` counts from 0 and reductions keep their axes when asked."""

    CHANNEL_AXIS: int  # where images have their channels: 1 or -1

    def abs(self, x: Array) -> Array: ...
    def sign(self, x: Array) -> Array: ...
    def sqrt(self, x: Array) -> Array: ...
    def exp(self, x: Array) -> Array: ...
    def log(self, x: Array) -> Array: ...
    def clip(self, x: Array, lower: Array | float, upper: Array | float) -> Array: ...
    def minimum(self, x: Array, y: Array | float) -> Array: ...
    def maximum(self, x: Array, y: Array | float) -> Array: ...
    def where(self, condition: Array, x: Array | float, y: Array | float) -> Array: ...
    def sum(self, x: Array, axis: Axes, keepdims: bool = ...) -> Array: ...
    def max(self, x: Array, axis: Axes, keepdims: bool = ...) -> Array: ...
    def take(self, x: Array, rows: Any) -> Array: ...  # of an array, by their numbers in NumPy
    def cast(self, x: Array, like: Array) -> Array: ...  # x in the dtype of like
    def widen(self, x: Array) -> Array: ...  # float16 and bfloat16 as float32, others as they are
    def log_softmax(self, x: Array) -> Array: ...  # of (N, K), finite for finite x of any size
    def logsumexp(self, x: Array) -> Array: ...  # of (N, K) to (N,), entries of -inf are absent
    def argmax_one_hot(self, x: Array) -> Array: ...  # 1 at one largest entry of each row, else 0
    def kth_largest(self, x: Array, k: int) -> Array: ...  # of each example, (N, 1, ..., 1)
    def mantissa_bits(self, x: Array) -> int: ...  # of its dtype: 24 for float32, 53 for float64

    # state = body(*state), so many times; shapes and dtypes stay the same. Or until all of
    # done(*state) holds, where asking is free; more rounds must do no harm.
    def repeat(self, body: Callable[..., Any], times: int, state: Any, done: Any = ...) -> Any: ...


def example_axes(x: Array) -> tuple[int, ...]:
    """All axes of ``x`` but the batch."""
    return tuple(range(1, len(x.shape)))


def example_size(x: Array) -> int:
    """Number of entries per example."""
    return math.prod([int(length) for length in x.shape[1:]])


def divisor(ops: Ops, x: Array) -> Array:
    """``x`` where it is positive, else 1, so that zero divided by it is zero."""
    return ops.where(x > 0, x, 1.0)


def rivals(ops: Ops, scores: Array, one_hot: Array) -> Array:
    """The scores (N, K) of all classes but the one in ``one_hot``, which gets -inf."""
    return ops.where(one_hot > 0, -math.inf, scores)


def ranked(ops: Ops, scores: Array, count: int) -> Iterator[Array]:
    """So many classes, one-hot (N, K), from the one of the highest score on."""
    for _ in range(count):
        yield (best := ops.argmax_one_hot(scores))
        scores = rivals(ops, scores, best)
