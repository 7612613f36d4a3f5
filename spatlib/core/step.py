"""One step of projected ascent, and where it starts."""

from __future__ import annotations

import math

from .ops import Array, Ops, divisor, example_axes, example_size
from .projection import project

L1_SHARE = 20  # an L1 step moves every 20th coordinate (Croce & Hein 2021, arXiv:2103.01208)


def direction(ops: Ops, grad: Array, norm: str) -> Array:
    """The step of unit length towards a larger <grad, d>; a zero gradient gives zero.

    Linf: the sign. L2: grad / ||grad||. L1: the sign on the n = max(1, floor(D/20 + 1/2))
    largest of D entries and all that tie with the n-th, scaled to unit L1 norm.

    Args:
        grad: (N, ...), each example by itself.
    """
    if norm == "Linf":
        return ops.sign(grad)
    axes, size = example_axes(grad), ops.abs(grad)
    if norm == "L2":
        # Relative to the largest entry, so that tiny gradients keep their direction.
        largest = ops.max(size, axis=axes, keepdims=True)
        ray = grad / divisor(ops, largest)
        length = ops.sqrt(ops.sum(ray * ray, axis=axes, keepdims=True))
        return ray / divisor(ops, length)
    count = max(1, math.floor(example_size(grad) / L1_SHARE + 0.5))
    chosen = ops.where(size >= ops.kth_largest(size, count), ops.sign(grad), 0.0)
    length = ops.sum(ops.abs(chosen), axis=axes, keepdims=True)
    return chosen / ops.maximum(length, 1.0)


def step(
    ops: Ops,
    d: Array,
    grad: Array,
    mask: Array | None,
    lower: Array,
    upper: Array,
    *,
    eps: float,
    step_size: float,
    norm: str,
) -> Array:
    """d <- project(d + step_size * direction(m * grad)).

    Args:
        d: Perturbations (N, ...) inside the feasible set.
        grad: Gradient of the objective at x + d, shaped like d.
        mask: Budget per pixel in [0, 1], broadcastable to d; None is all ones.
        lower, upper: From :func:`spatlib.core.projection.feasible_box`.
        eps, step_size: In the units of the input.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.
    """
    move = direction(ops, grad if mask is None else mask * grad, norm)
    move *= step_size  # in place in NumPy and PyTorch: new memory costs more than the arithmetic
    move += d
    return project(ops, move, lower, upper, eps, norm)


def initial(
    ops: Ops, noise: Array, mask: Array | None, lower: Array, upper: Array, eps: float, norm: str
) -> Array:
    """The first perturbation: ``noise`` (N, ...) off where the mask is 0, then projected."""
    start = noise if mask is None else ops.where(mask > 0, noise, 0.0)
    return project(ops, start, lower, upper, eps, norm)
