"""The feasible set of a perturbation, and the exact Euclidean projection onto it.

    B(x, m) = { d : ||d||_p <= eps, |d_i| <= m_i eps, lo <= x + d <= hi }

is a box that holds 0, intersected with a norm ball. By the KKT conditions the projection of d is,
with one multiplier t >= 0 for the ball,

    L2: clip(d / (1 + t), lower, upper)          L1: clip(sign(d) max(|d| - t, 0), lower, upper)

Every coordinate keeps the sign of d_i, so only a_i = |d_i| and the bound on that side, c_i,
matter. The norm of the result is a monotone function of the multiplier, smooth between sorted
breakpoints, so the segment that holds eps is found by walking through them and then solved.
"""

import math

import numpy as np

from .arrays import Array, per_coordinate


def feasible_box(
    x: Array, mask: Array, eps: float, bounds: tuple[float, float]
) -> tuple[Array, Array]:
    """Return max(-m eps, lo - x) and min(m eps, hi - x), (D,) each; mask (P,)."""
    lo, hi = bounds
    radius = eps * per_coordinate(mask, x.size)
    return np.maximum(-radius, lo - x), np.minimum(radius, hi - x)


def project(d: Array, lower: Array, upper: Array, eps: float, norm: str) -> Array:
    """Return argmin ||v - d||_2 over lower <= v <= upper, ||v|| <= eps.

    d, lower, upper and the result are (D,), with lower <= 0 <= upper.
    """
    if np.any(lower > 0.0) or np.any(upper < 0.0):
        raise ValueError("the box must hold 0: expected lower <= 0 <= upper")
    clipped: Array = np.clip(d, lower, upper)
    sizes = np.abs(d)
    caps = np.where(d > 0.0, upper, np.where(d < 0.0, -lower, 0.0))
    if norm == "Linf":
        return np.clip(clipped, -eps, eps)
    if norm == "L2":
        inside = _l2(clipped) <= eps
        return clipped if inside else np.sign(d) * _project_sizes_l2(sizes, caps, eps)
    if norm == "L1":
        inside = math.fsum(np.abs(clipped)) <= eps
        return clipped if inside else np.sign(d) * _project_sizes_l1(sizes, caps, eps)
    raise ValueError(f'norm must be "Linf", "L2" or "L1", not {norm!r}')


def _l2(v: Array) -> float:
    return math.sqrt(math.fsum(v * v))


def _project_sizes_l2(sizes: Array, caps: Array, eps: float) -> Array:
    """v_i(s) = min(c_i, s a_i) at the s = 1 / (1 + t) in [0, 1] where ||v(s)||_2 = eps.

    Coordinate i meets its cap at s = c_i / a_i. ||v(s)|| grows with s and exceeds eps at s = 1.
    """
    breakpoints = np.full(sizes.size, np.inf)  # inf: the cap is not met for any s < 1
    meets = caps < sizes
    breakpoints[meets] = caps[meets] / sizes[meets]

    def value(s: float) -> Array:
        return np.where(breakpoints <= s, caps, s * sizes)

    right = next(s for s in [*sorted(breakpoints[meets]), 1.0] if _l2(value(s)) >= eps)
    # Left of `right`, the coordinates whose breakpoints come earlier are fixed and the rest free:
    # eps^2 = sum over fixed of c^2 + s^2 sum over free of a^2.
    fixed = breakpoints < right
    room = eps**2 - math.fsum(caps[fixed] ** 2)
    s = math.sqrt(max(room, 0.0) / math.fsum(sizes[~fixed] ** 2))
    return np.where(fixed, caps, np.minimum(s * sizes, caps))


def _project_sizes_l1(sizes: Array, caps: Array, eps: float) -> Array:
    """v_i(t) = min(c_i, max(a_i - t, 0)) at the t >= 0 where sum_i v_i(t) = eps.

    Coordinate i leaves its cap at t = a_i - c_i and reaches 0 at t = a_i. The sum falls with t, is
    above eps at t = 0 and is 0 at t = max_i a_i.
    """

    def value(t: float) -> Array:
        return np.minimum(caps, np.maximum(sizes - t, 0.0))

    left = 0.0
    right = 0.0
    for right in sorted({*np.maximum(sizes - caps, 0.0).tolist(), *sizes.tolist()}):
        if math.fsum(value(right)) <= eps:
            break
        left = right
    # Between `left` and `right`: eps = sum over fixed of c + sum over free of (a - t).
    middle = left + 0.5 * (right - left)
    fixed = sizes - middle >= caps
    free = ~fixed & (sizes > middle)
    count = int(np.count_nonzero(free))
    if count == 0:  # only when the segment is as short as a rounding error
        return value(right)
    t = (math.fsum(caps[fixed]) + math.fsum(sizes[free]) - eps) / count
    return value(min(max(t, left), right))
