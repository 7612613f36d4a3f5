"""The feasible set, a box intersected with a norm ball, and the exact projection onto it."""

from __future__ import annotations

from .ops import Array, Ops, example_axes

NEWTON_ROUNDS = 16  # every second one halves the bracket: 8 halvings, 8 plain steps
LARGEST_RATIO = 2.0**60  # of |d| to eps, up to which the L2 projection is exact
BISECTION_GUARD_BITS = 8  # rounds beyond the mantissa: the bracket starts at max |d|, not at eps


def feasible_box(
    ops: Ops, x: Array, mask: Array | None, eps: float, bounds: tuple[float, float]
) -> tuple[Array, Array]:
    """Lower and upper limits of d: |d_i| <= m_i eps and lo <= x + d <= hi; they enclose 0.

    Args:
        x: Inputs (N, ...) inside ``bounds``.
        mask: Budget per pixel in [0, 1], broadcastable to x; None is all ones.
        eps: Radius, in the units of x.
        bounds: The input range (lo, hi).
    """
    budget = eps if mask is None else eps * mask
    return ops.maximum(bounds[0] - x, -budget), ops.minimum(bounds[1] - x, budget)


def project(ops: Ops, d: Array, lower: Array, upper: Array, eps: float, norm: str) -> Array:
    """Euclidean projection: argmin over v of ||v - d||_2, lower <= v <= upper, ||v||_norm <= eps.

    Args:
        d: Perturbations (N, ...), each example projected by itself.
        lower, upper: The box, shaped like d, with lower <= 0 <= upper.
        eps: Radius of the ball, in the units of d.
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``.

    Returns:
        Shaped like d; inside the box exactly and inside the ball up to a few ulp of eps. Where
        clipping d to the box already lands in the ball, that is the answer, to the bit.
    """
    if norm == "Linf":
        return ops.clip(ops.clip(d, -eps, eps), lower, upper)
    size = ops.abs(d)
    # Both sets are boxes of one sign per coordinate, so only the side that d points to matters.
    side = ops.where(d < 0, -lower, upper)
    onto = _onto_l2_ball if norm == "L2" else _onto_l1_ball
    return ops.sign(d) * onto(ops, size, side, eps)


def _onto_l2_ball(ops: Ops, size: Array, side: Array, eps: float) -> Array:
    """Solve ||min(s size, side)|| = eps for s by Newton's method, safeguarded by bisection.

    As a function of s^2 the squared norm is concave and piecewise linear, so Newton's step from
    anywhere, left or right, lands at or below the root: ``low`` is feasible in every round. From
    ``low`` it converges in a few rounds, unless every wall that is met frees room just enough to
    meet the next; the other rounds start half-way (in the logarithm) to ``high`` and so skip such
    chains. A step from the root's own linear piece is exact.
    """
    axes = example_axes(size)
    clipped = ops.minimum(size, side)
    inside = ops.sum((clipped / eps) * (clipped / eps), axis=axes, keepdims=True) <= 1
    # In units of eps, and relative to the largest entry, squares neither overflow nor vanish.
    largest = ops.max(size, axis=axes, keepdims=True)
    ray = size / ops.where(largest > 0, largest, 1.0)
    wall = ops.minimum(side, eps) / eps
    ray_squared, wall_squared = ray * ray, wall * wall
    total = ops.sum(ray_squared, axis=axes, keepdims=True)
    low = 1 / ops.sqrt(ops.where(total > 0, total, 1.0))
    high = ops.maximum(ops.minimum(largest / eps, LARGEST_RATIO), low)

    def newton(s: Array, low: Array, high: Array) -> tuple[Array, Array]:
        free = s * ray <= wall
        free_sum = ops.sum(ops.where(free, ray_squared, 0.0), axis=axes, keepdims=True)
        wall_sum = ops.sum(ops.where(free, 0.0, wall_squared), axis=axes, keepdims=True)
        rest = ops.sqrt(ops.maximum(1 - wall_sum, 0.0))  # roots first: the ratio could overflow
        root = rest / ops.sqrt(ops.where(free_sum > 0, free_sum, 1.0))
        high = ops.where(root < s, ops.minimum(high, s), high)
        return ops.minimum(ops.maximum(low, ops.where(free_sum > 0, root, low)), high), high

    def two_rounds(low: Array, high: Array) -> tuple[Array, Array]:
        low, high = newton(low, low, high)
        return newton(ops.sqrt(low) * ops.sqrt(high), low, high)

    low, high = ops.repeat(two_rounds, NEWTON_ROUNDS // 2, (low, high))
    return ops.where(inside, clipped, ops.minimum(low * ray * eps, clipped))


def _onto_l1_ball(ops: Ops, size: Array, side: Array, eps: float) -> Array:
    """Solve sum(min(max(size - t, 0), side)) = eps for t by bisection.

    The infeasible end of the bracket is kept and scaled onto the ball: where t = 0 is feasible
    it stays at 0, and the scale at 1.
    """
    axes = example_axes(size)
    high = ops.max(size, axis=axes, keepdims=True)
    low = 0 * high

    def halve(low: Array, high: Array) -> tuple[Array, Array]:
        t = (low + high) / 2
        shrunk = ops.minimum(ops.maximum(size - t, 0.0), side)
        outside = ops.sum(shrunk, axis=axes, keepdims=True) > eps
        return ops.where(outside, t, low), ops.where(outside, high, t)

    low, high = ops.repeat(halve, ops.mantissa_bits(size) + BISECTION_GUARD_BITS, (low, high))
    shrunk = ops.minimum(ops.maximum(size - low, 0.0), side)
    length = ops.sum(shrunk, axis=axes, keepdims=True)
    return shrunk * ops.where(length > eps, eps / ops.where(length > 0, length, 1.0), 1.0)
