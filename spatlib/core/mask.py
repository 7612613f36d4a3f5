"""The shared-pixel mask: which pixels matter to all classes alike.

Our reading of arXiv:2009.10978, "perturbation on the pixels that are shared among all classes".
The saliency s_k(u) of pixel u for class k is |d(z_k - mean_j z_j) / dx| summed over the channels
of u, divided by its sum over pixels. One class (or random probe) after the other is folded into
a running score, so that memory does not grow with the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ..config import Mask
from ..errors import require
from .ops import Array, Ops, divisor, example_axes, example_size
from .target import finite


class Draws(Protocol):
    """An engine's random source for one batch."""

    def classes(self, label: Array, count: int) -> Array:
        """(count, N, K) one-hot: classes (y + o) mod K, o = 0 first, others without replacement."""

    def signs(self, label: Array, count: int) -> Array:
        """(count, N, K) of +1 and -1, for labels (N, K)."""

    def noise(self, like: Array) -> Array:
        """Uniform in [0, 1), shaped like ``like``, one draw per entry."""


class Score(NamedTuple):
    """A running score: of the pixels (N, ..., one channel), and what it needs to be continued."""

    score: Array
    scale: Array  # (N, 1, ..., 1): the largest gradient so far, the unit of "rms"
    reach: Array  # the largest saliency so far, not normalised: 0 where no class depends on a pixel


def shared_mask(
    ops: Ops,
    x: Array,
    pull: Callable[..., Array],
    label: Array,
    config: Mask,
    draws: Draws,
) -> Array:
    """The budget of every pixel, (N, ...) of the input's shape with one channel.

    Args:
        x: Inputs (N, ...).
        pull: Cotangent (N, K) -> gradient in x, called several times.
        label: One-hot (N, K).
        config: Score, share to keep, and what the others keep.
        draws: For ``classes``, ``rms`` and ``random``.
    """
    axis, classes = channel_axis(ops, x, config), int(label.shape[1])
    state, zeros = begin(ops, x, config.score, axis), ops.cast(label > 2, like=label)
    if config.score == "random":
        noise = draws.noise(state.score)
        return finish(ops, Score(noise, state.scale, noise + 1), config.keep, config.floor)

    def folded(cotangent: Array, score: Score) -> tuple[Array, Score]:
        grad, _ = finite(ops, pull(cotangent, last=False))
        return grad, fold(ops, score, grad, config.score, axis)

    if config.score == "rms" or config.classes not in (None, classes):
        count = config.probes if config.score == "rms" else config.classes or classes
        rows = (draws.signs if config.score == "rms" else draws.classes)(label, count)

        def one(k: int, *score: Array) -> tuple[Array, ...]:
            return k + 1, *folded(centred(ops, rows[k]), Score(*score))[1]

        _, *last = ops.repeat(one, count, (0, *state))
        return finish(ops, Score(*last), config.keep, config.floor)

    def each(rest: Array, total: Array, *score: Array) -> tuple[Array, ...]:
        """Take one class of those whose entry in ``rest`` (1, K) is not yet -inf."""
        chosen = ops.argmax_one_hot(rest)
        grad, new = folded(centred(ops, chosen + zeros), Score(*score))
        return ops.where(chosen > 0, -math.inf, rest), total + grad, *new

    # The centred gradients of all classes add up to zero: one backward pass less.
    _, total, *last = ops.repeat(each, classes - 1, (zeros[:1], 0 * x, *state))
    state = fold(ops, Score(*last), -total, config.score, axis)
    return finish(ops, state, config.keep, config.floor)


def channel_axis(ops: Ops, x: Array, config: Mask) -> int | None:
    """The axis of x that the channels of a pixel are on; None where x is (N, D)."""
    axes, axis = len(x.shape), config.channel_axis
    if axes == 2:
        return None
    require(axis is None or axis < axes, "channel_axis", f"be one of x, below {axes}", axis)
    return ops.CHANNEL_AXIS % axes if axis is None else axis


def centred(ops: Ops, rows: Array) -> Array:
    """The cotangent of sum_k v_k (z_k - mean_j z_j) for the rows v of (N, K)."""
    return rows - ops.sum(rows, axis=1, keepdims=True) / int(rows.shape[1])


def begin(ops: Ops, x: Array, score: str, axis: int | None) -> Score:
    """The running score before any fold."""
    pixels = _pixels(ops, 0 * x, axis)
    scale = ops.sum(pixels, axis=example_axes(pixels), keepdims=True)
    return Score(pixels + math.inf if score in ("min", "neutral") else pixels, scale, pixels)


def fold(ops: Ops, state: Score, grad: Array, score: str, axis: int | None) -> Score:
    """Fold one more gradient into the score.

    Args:
        state: From :func:`begin` or an earlier fold.
        grad: Gradient with respect to the input, in its shape: of one class's centred logit
            (``min``, ``mean``, ``neutral``) or of one probe (``rms``).
        score: ``min``: min_k s_k; ``mean``: sum_k s_k; ``neutral``: -max_k s_k, over the classes
            with some saliency. ``rms``: sum over probes of the squared gradient, summed over
            channels. (A mean over as many classes or probes, and its root, rank the pixels of an
            example alike.)
        axis: That of the channels, or None.
    """
    s = _pixels(ops, ops.abs(grad), axis)
    reach = ops.maximum(state.reach, s)
    if score == "rms":
        # In units of the largest entry so far: the squares of tiny gradients would vanish.
        largest = ops.max(ops.abs(grad), axis=example_axes(grad), keepdims=True)
        largest = ops.maximum(state.scale, largest)
        unit = divisor(ops, largest)
        old, new = state.scale / unit, grad / unit
        return Score(state.score * old * old + _pixels(ops, new * new, axis), largest, reach)
    total = ops.sum(s, axis=example_axes(s), keepdims=True)
    alive = total > 0
    s = s / divisor(ops, total)
    if score == "mean":
        return Score(state.score + s, state.scale, reach)
    s = ops.where(alive, -s if score == "neutral" else s, math.inf)
    return Score(ops.minimum(state.score, s), state.scale, reach)


def finish(ops: Ops, state: Score, keep: float, floor: float) -> Array:
    """The mask: 1 on the pixels with the highest scores, ``floor`` elsewhere.

    n = max(1, floor(keep P + 1/2)) of the P pixels are kept, and every pixel that ties with the
    n-th; never one that no class depends on, unless there is no other: then all are kept.
    """
    score, scale, reach = state
    used = reach > 0
    score = ops.where(used, score, -math.inf)
    threshold = ops.kth_largest(score, max(1, math.floor(keep * example_size(score) + 0.5)))
    none = ops.max(reach, axis=example_axes(reach), keepdims=True) == 0
    # Adding 0 * scale gives the constants the dtype of the score in every framework.
    return ops.where(((score >= threshold) & used) | none, 0 * scale + 1.0, 0 * scale + floor)


def _pixels(ops: Ops, x: Array, axis: int | None) -> Array:
    return x if axis is None else ops.sum(x, axis=axis, keepdims=True)
