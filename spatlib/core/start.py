"""Random starts: raw draws of the engine turned into a point of the ball."""

from __future__ import annotations

from .ops import Array, Ops, example_axes, example_size
from .step import direction

GAUSSIAN_START = 0.001  # standard deviation of the starts of TRADES and MART, in units of x


def uniform_in_ball(ops: Ops, draws: Array, radius: Array, eps: float, norm: str) -> Array:
    """A point drawn uniformly from the ball ||d||_norm <= eps.

    Linf: eps (2u - 1). L2: a Gaussian direction times eps U^(1/D). L1: D exponentials with
    random signs over the sum of D + 1 (Devroye 1986, ch. 5), so that the rest is the distance
    to the sphere.

    Args:
        draws: Shaped like the inputs (N, ...): uniform in [0, 1), for L2 standard normal.
        radius: (N, 1, ..., 1), uniform in [0, 1); not used for Linf.
    """
    if norm == "Linf":
        return eps * (2 * draws - 1)
    if norm == "L2":
        return eps * radius ** (1 / example_size(draws)) * direction(ops, draws, "L2")
    signed = 2 * draws - 1
    sizes = _exponential(ops, ops.abs(signed))
    total = ops.sum(sizes, axis=example_axes(sizes), keepdims=True) + _exponential(ops, radius)
    return eps * ops.sign(signed) * (sizes / total)


def _exponential(ops: Ops, uniform: Array) -> Array:
    # 1 - uniform is 0 where a signed draw was exactly -1: 2^-24 is positive even in float16.
    return -ops.log(ops.maximum(1 - uniform, 2.0**-24))
