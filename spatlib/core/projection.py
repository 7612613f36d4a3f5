"""The feasible set, a box intersected with a norm ball, and the exact projection onto it."""

from .ops import Array, Ops, divisor, example_axes

CHORD_ROUNDS = 4  # of two evaluations each; as a rule 2 or 3 suffice
NEWTON_ROUNDS = 16  # at least every second one halves the bracket
LARGEST_RATIO = 2.0**60  # of |d| to eps, up to which the L2 projection is exact
BISECTION_GUARD_BITS = 8  # rounds beyond the mantissa: the bracket starts at max |d|, not at eps


def project(ops: Ops, d: Array, lower: Array, upper: Array, eps: float, norm: str) -> Array:
    """Euclidean projection: argmin over v of ||v - d||_2, lower <= v <= upper, ||v||_norm <= eps.

    Per example, with lower <= 0 <= upper (for Linf inside the ball). The result is in the box
    exactly, in the ball up to a few ulp; where clipping suffices, that is the answer to the bit.
    """
    if norm == "Linf":
        return ops.clip(d, lower, upper)
    onto = _onto_l2_ball if norm == "L2" else _onto_l1_ball
    return onto(ops, d, lower, upper, eps)


def _onto_l2_ball(ops: Ops, d: Array, lower: Array, upper: Array, eps: float) -> Array:
    """Solve ||clip(s d)|| = eps for s in (0, 1].

    As a function of q = (s max|d| / eps)^2 the squared norm f, in units of eps^2, is concave and
    piecewise linear. A chord through a point on either side of the root ends at or above it, the
    line through two points above it at or below it: cheap rounds that as a rule end within
    rounding. Where walls follow each other closely Newton's method takes over: its step lands at or
    below the root, exactly from the root's own piece. If one from below does not pass the middle of
    the bracket (in the logarithm), the next leaves from there: each wall might free just a little.
    """
    axes = example_axes(d)

    def total(x: Array) -> Array:
        return ops.sum(x, axis=axes, keepdims=True)

    # Relative to the largest entry, and in units of eps, squares neither overflow nor vanish.
    largest = ops.max(ops.abs(d), axis=axes, keepdims=True)
    ray = d / divisor(ops, largest)
    wall = ops.clip(2 * eps * ops.sign(d), lower, upper) / eps  # 2 eps: no wall at all
    ray, wall = ray * ray, wall * wall
    tolerance = 2.0 ** (3 - ops.mantissa_bits(d))  # 4 ulp of f: 2 of the norm

    def meet(q: Array, low: Array, f_low: Array, high: Array, f_high: Array) -> tuple[Array, ...]:
        f = total(ops.minimum(q * ray, wall))
        above, ends = f > 1, ((low, q), (f_low, f), (q, high), (f, f_high))
        return tuple(ops.where(above, one, other) for one, other in ends)

    def chords(low: Array, f_low: Array, high: Array, f_high: Array) -> tuple[Array, ...]:
        before, f_before = high, f_high
        q = low + (1 - f_low) * ((high - low) / divisor(ops, f_high - f_low))
        low, f_low, high, f_high = meet(ops.minimum(q, high), low, f_low, high, f_high)
        q = high - (f_high - 1) * ((before - high) / divisor(ops, f_before - f_high))
        return meet(ops.minimum(ops.maximum(q, low), high), low, f_low, high, f_high)

    def newton(low: Array, high: Array, q: Array) -> tuple[Array, ...]:
        clipped = ops.sign(ops.maximum(q * ray - wall, 0.0))
        slope = total((1 - clipped) * ray)
        root = (1 - total(clipped * wall)) / divisor(ops, slope)  # < 0 where walls fill the ball
        middle = ops.sqrt(low) * ops.sqrt(high)
        high = ops.where(root <= q, ops.minimum(high, q), high)
        landed = ops.minimum(ops.maximum(low, root), high)
        stuck = (q <= low) & (landed < middle)
        return landed, high, ops.where(stuck, ops.sqrt(landed) * ops.sqrt(high), landed)

    end = ops.minimum(largest / eps, LARGEST_RATIO)
    zero, end = 0 * end, end * end
    *_, f_high = meet(end, zero, zero, end, zero)
    inside = f_high == 0
    state = (zero, zero, end, f_high)

    def near(low: Array, f_low: Array, high: Array, f_high: Array) -> Array:
        return inside | (1 - f_low <= tolerance) | (f_high - 1 <= tolerance)

    low, f_low, high, f_high = state = ops.repeat(chords, CHORD_ROUNDS, state, near)
    q = ops.where(f_high - 1 < 1 - f_low, high, low)
    met = near(*state)
    low, high = ops.where(met, q, low), ops.where(met, q, high)
    low, _, _ = ops.repeat(newton, NEWTON_ROUNDS, (low, high, q), lambda low, high, _: high <= low)
    s = ops.where(inside, 1.0, ops.sqrt(low) * (eps / ops.where(inside, eps, largest)))
    return ops.clip(s * d, lower, upper)


def _onto_l1_ball(ops: Ops, d: Array, lower: Array, upper: Array, eps: float) -> Array:
    """Solve sum(min(max(|d| - t, 0), side)) = eps for t by bisection, ``side`` where d points to.

    The infeasible end of the bracket is scaled onto the ball: where t = 0 is feasible, by 1.
    """
    axes, size, sign = example_axes(d), ops.abs(d), ops.sign(d)
    side = ops.maximum(sign * lower, sign * upper)
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
    return sign * shrunk * ops.where(length > eps, eps / divisor(ops, length), 1.0)
