"""The shared-pixel mask: which pixels matter to all classes alike (docs/method.md, our reading).

One class (or random probe) after the other is folded into a running score, so that memory does not
grow with the number of classes.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

from ..config import Mask
from ..errors import expect, require
from .feasible import Draws
from .ops import Array, Ops, divisor, example_axes, example_size, rivals
from .target import finite

# x -> (logits (N, K), pull), pull: cotangent (N, K) -> gradient in x, more than once if many=True.
Vjp: TypeAlias = Callable[..., tuple[Array, Callable[[Array], Array]]]
# Of the pixels (N, ..., one channel) the score so far and the largest saliency, not normalised: 0
# where no class depends on one; and the largest gradient (N, 1, ..., 1), the unit of "rms".
Running: TypeAlias = tuple[Array, Array, Array]


def shared_mask(
    ops: Ops, x: Array, vjp: Vjp, one_hot: Callable[[Array], Array], config: Mask, draws: Draws
) -> tuple[Array, Array | None, Array]:
    """The budget of every pixel (one channel), the logits (``random``: None), the holes (N,)."""
    axis, zeros = channel_axis(ops, x, config), 0 * ops.widen(x)
    state = begin(ops, zeros, config.score, axis)
    if config.score == "random":
        noise = draws.uniform(state[0], "mask")
        state = noise, noise + math.inf, state[2]
        holes = ops.max(zeros, axis=example_axes(zeros))
        return finish(ops, state, config.keep, config.floor), None, holes
    logits, pull = vjp(x, many=True)
    label, probes = one_hot(logits), config.score == "rms"
    classes = int(label.shape[1])
    count = config.classes or classes
    expect(count <= classes, f"classes of the mask must be at most {classes}, got {count}")
    every = not probes and count == classes
    if not every:
        y = ops.argmax_one_hot(label)
        rows = draws.signs(y, config.probes) if probes else draws.classes(y, count)

    def one(k: Array, rest: Array, total: Array, *state: Array) -> tuple[Array, ...]:
        """Fold in row k, or of all classes the one of the largest logit in ``rest`` (N, K)."""
        row = ops.argmax_one_hot(rest) if every else rows[k]
        grad = ops.widen(pull(centred(ops, row)))
        new = fold(ops, state, finite(ops, grad)[0], config.score, axis)
        return k + 1, rivals(ops, rest, row), total + grad, *new

    passes = classes - 1 if every else int(rows.shape[0])
    _, _, total, *state = ops.repeat(one, passes, (0, logits, zeros, *state))
    last, holes = finite(ops, total)
    if every:  # the centred gradients add up to zero: but for its sign, total is the last one's
        state = fold(ops, state, last, config.score, axis)
    return finish(ops, state, config.keep, config.floor), logits, holes


def channel_axis(ops: Ops, x: Array, config: Mask) -> int | None:
    """The axis of x that the channels of a pixel are on; None where x is (N, D)."""
    axes, axis = len(x.shape), config.channel_axis
    if axes == 2:
        return None
    require(axis is None or axis < axes, "channel_axis", f"be one of x, below {axes}", axis)
    return ops.CHANNEL_AXIS if axis is None else axis


def centred(ops: Ops, rows: Array) -> Array:
    """The cotangent of sum_k v_k (z_k - mean_j z_j) for the rows v of (N, K)."""
    return rows - ops.sum(rows, axis=1, keepdims=True) / int(rows.shape[1])


def begin(ops: Ops, x: Array, score: str, axis: int | None) -> Running:
    """The running score before any fold."""
    pixels = _pixels(ops, 0 * x, axis)
    scale = ops.sum(pixels, axis=example_axes(pixels), keepdims=True)
    return pixels + math.inf if score in ("min", "neutral") else pixels, pixels, scale


def fold(ops: Ops, state: Running, grad: Array, score: str, axis: int | None) -> Running:
    """Fold in one more gradient: of a class's centred logit, or of a probe (``rms``).

    For ``mean`` and ``rms`` sums, which rank pixels as their means and roots do.
    """
    (before, reach, scale), s = state, _pixels(ops, ops.abs(grad), axis)
    reach = ops.maximum(reach, s)
    if score == "rms":
        # In units of the largest entry so far: the squares of tiny gradients would vanish.
        entry = ops.max(ops.abs(grad), axis=example_axes(grad), keepdims=True)
        largest = ops.maximum(scale, entry)
        unit = divisor(ops, largest)
        old, new = scale / unit, grad / unit
        return before * old * old + _pixels(ops, new * new, axis), reach, largest
    total = ops.sum(s, axis=example_axes(s), keepdims=True)
    s = s / divisor(ops, total)
    if score == "mean":
        return before + s, reach, scale
    s = ops.where(total > 0, -s if score == "neutral" else s, math.inf)
    return ops.minimum(before, s), reach, scale


def finish(ops: Ops, state: Running, keep: float, floor: float) -> Array:
    """The mask: 1 on the share ``keep`` of the pixels with the highest scores, ``floor`` elsewhere.

    Never on one that no class depends on, unless there is no other: then all are kept.
    """
    score, reach, scale = state
    used = reach > 0
    score = ops.where(used, score, -math.inf)
    threshold = ops.kth_largest(score, max(1, math.floor(keep * example_size(score) + 0.5)))
    none = ops.max(reach, axis=example_axes(reach), keepdims=True) == 0
    # Adding 0 * scale gives the constants the dtype of the score in every framework.
    return ops.where(((score >= threshold) & used) | none, 0 * scale + 1.0, 0 * scale + floor)


def _pixels(ops: Ops, x: Array, axis: int | None) -> Array:
    return x if axis is None else ops.sum(x, axis=axis, keepdims=True)
