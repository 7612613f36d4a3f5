"""One step of the attack, and where it starts, for one example: d, g of shape (D,), mask (P,).

    d <- project(d + step_size * direction(m * g))

The L1 direction is that of Croce & Hein (2021), "Mind the box": the largest coordinates only.
"""

import math

import numpy as np

from .arrays import Array, per_coordinate
from .projection import project


def direction(g: Array, norm: str) -> Array:
    """Return the ascent direction for gradient g, (D,); a zero gradient gives zero.

    Linf: sign(g). L2: g / ||g||_2. L1: sign(g) where |g_i| is at least the n-th largest,
    n = max(1, floor(D / 20 + 1/2)), ties at the threshold all kept, scaled to unit L1 norm.
    """
    if norm == "Linf":
        return np.sign(g)
    largest = float(np.max(np.abs(g)))
    if norm == "L2":
        if largest == 0.0:
            return np.zeros_like(g)
        scaled = g / largest  # or the squares of a tiny gradient would underflow to 0
        return scaled / math.sqrt(math.fsum(scaled * scaled))
    if norm == "L1":
        if largest == 0.0:
            return np.zeros_like(g)
        n = max(1, math.floor(g.size / 20 + 0.5))
        threshold = sorted((abs(value) for value in g.tolist()), reverse=True)[n - 1]
        chosen = np.array([np.sign(v) if abs(v) >= threshold else 0.0 for v in g.tolist()])
        return chosen / math.fsum(np.abs(chosen))
    raise ValueError(f'norm must be "Linf", "L2" or "L1", not {norm!r}')


def step(
    d: Array,
    g: Array,
    mask: Array,
    lower: Array,
    upper: Array,
    eps: float,
    step_size: float,
    norm: str,
) -> Array:
    """Return project(d + step_size * direction(m * g)), (D,)."""
    ascent = direction(per_coordinate(mask, g.size) * g, norm)
    return project(d + step_size * ascent, lower, upper, eps, norm)


def initial(noise: Array, mask: Array, lower: Array, upper: Array, eps: float, norm: str) -> Array:
    """Return the given noise, zeroed where m = 0, then projected, (D,)."""
    kept = np.where(per_coordinate(mask, noise.size) == 0.0, 0.0, noise)
    return project(kept, lower, upper, eps, norm)
