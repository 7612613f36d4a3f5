"""The perturbations that an attack may make: their set, a step inside it, and where it starts."""

import math
from typing import Protocol

from ..config import SPATConfig, Threat
from .ops import Array, Ops, divisor, example_axes, example_size

GAUSSIAN_START = 0.001  # standard deviation of the starts of TRADES and MART, in units of x
L1_SHARE = 20  # an L1 step moves every 20th coordinate (Croce & Hein 2021, arXiv:2103.01208)
CHORD_ROUNDS = 4  # of two evaluations each; as a rule 2 or 3 suffice
NEWTON_ROUNDS = 16  # at least every second one halves the bracket
LARGEST_RATIO = 2.0**60  # of |d| to eps, up to which the L2 projection is exact
BISECTION_GUARD_BITS = 8  # rounds beyond the mantissa: the bracket starts at max |d|, not at eps


class Draws(Protocol):
    """An engine's random source for one batch; what is drawn for one purpose changes no other."""

    # In [0, 1) or N(0, 1), in the shape and dtype of ``like``; for "start", "radius" or "mask".
    def uniform(self, like: Array, purpose: str) -> Array: ...
    def normal(self, like: Array, purpose: str) -> Array: ...

    # For labels (N, K), (count, N, K): +1 and -1; or one-hot the classes (y + o) mod K, o = 0
    # first, others without replacement.
    def signs(self, label: Array, count: int) -> Array: ...
    def classes(self, label: Array, count: int) -> Array: ...


class FeasibleSet:
    """B(x, m) = {d : ||d||_norm <= eps, |d_i| <= m_i eps, lo <= x + d <= hi}, per example.

    The mask in [0, 1] broadcasts to x (None: ones); all is computed in float32 at least.
    """

    def __init__(self, ops: Ops, x: Array, threat: Threat, mask: Array | None = None) -> None:
        self.ops, self.inputs, self.threat = ops, x, threat
        self.x = x = ops.widen(x)
        self.mask = None if mask is None else ops.clip(ops.cast(mask, like=x), 0.0, 1.0)
        budget = threat.eps if self.mask is None else threat.eps * self.mask
        self.lower = ops.maximum(threat.bounds[0] - x, -budget)
        self.upper = ops.minimum(threat.bounds[1] - x, budget)

    def project(self, d: Array) -> Array:
        """The nearest perturbation of the set, in the Euclidean sense."""
        return project(self.ops, d, self.lower, self.upper, self.threat.eps, self.threat.norm)

    def begin(self, start: Array) -> Array:
        """The first perturbation: ``start`` (N, ...), 0 where the mask is 0, then projected."""
        start = self.ops.cast(start, like=self.x)
        if self.mask is not None:
            start = self.ops.where(self.mask > 0, start, 0.0)
        return self.project(start)

    def step(self, d: Array, grad: Array, size: float) -> Array:
        """project(d + size * direction(m * grad)), with ``size`` in the units of x."""
        grad = grad if self.mask is None else self.mask * grad
        move = direction(self.ops, grad, self.threat.norm)
        move *= size  # in place in NumPy and PyTorch: new memory costs more than the arithmetic
        # Not in place: in the memory format of d in every step, whatever the gradient's is.
        return self.project(d + move)

    def at(self, d: Array) -> Array:
        """x' = x + d, clipped; in lower precision a number next to it that is no further from x."""
        ops, x = self.ops, self.x
        moved = ops.clip(x + d, *self.threat.bounds)
        if self.inputs is x:
            return moved
        bits = ops.mantissa_bits(self.inputs)
        shift = 2.0 ** (ops.mantissa_bits(moved) - bits) * moved
        near = moved + shift - shift  # rounded: some compilers drop a cast and its inverse
        # Less than 3/2 of a spacing, below a power of 2 too: the cast then goes to the next number.
        back = 5 / 8 * 2.0 ** (1 - bits) * ops.sign(near - x) * ops.abs(near)
        further = ops.abs(near - x) > ops.abs(moved - x)
        return ops.cast(ops.where(further, near - back, near), like=self.inputs)


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
    s = ops.where(inside, 1.0, ops.sqrt(low) * (eps / ops.where(inside, 1.0, largest)))
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


def direction(ops: Ops, grad: Array, norm: str) -> Array:
    """The step of unit length towards a larger <grad, d> per example; 0 of a zero gradient.

    In L1 on the n = max(1, floor(D/20 + 1/2)) largest of D entries and all that tie with the n-th.
    """
    if norm == "Linf":
        return ops.sign(grad)
    axes, size = example_axes(grad), ops.abs(grad)
    if norm == "L2":
        # Relative to the largest entry, so that tiny gradients keep their direction.
        ray = grad / divisor(ops, ops.max(size, axis=axes, keepdims=True))
        return ray / divisor(ops, ops.sqrt(ops.sum(ray * ray, axis=axes, keepdims=True)))
    count = max(1, math.floor(example_size(grad) / L1_SHARE + 0.5))
    chosen = ops.where(size >= ops.kth_largest(size, count), ops.sign(grad), 0.0)
    length = ops.sum(ops.abs(chosen), axis=axes, keepdims=True)
    return chosen / ops.maximum(length, 1.0)


def random_start(ops: Ops, x: Array, config: SPATConfig, draws: Draws) -> Array:
    """A raw first perturbation, shaped like x, as ``config.random_start`` says.

    ``uniform``, of u and U in [0, 1): in Linf eps (2u - 1), in L2 a Gaussian direction times
    eps U^(1/D), in L1 D exponentials with random signs over the sum of D + 1 (Devroye 1986, ch. 5):
    the rest is the distance to the sphere.
    """
    eps, norm = config.eps, config.norm
    if config.random_start == "none":
        return 0 * x
    if config.random_start == "gaussian":
        return GAUSSIAN_START * draws.normal(x, "start")
    noise = (draws.normal if norm == "L2" else draws.uniform)(x, "start")
    if norm == "Linf":
        return eps * (2 * noise - 1)
    radius = draws.uniform(ops.max(x, axis=example_axes(x), keepdims=True), "radius")
    if norm == "L2":
        return eps * radius ** (1 / example_size(noise)) * direction(ops, noise, "L2")
    signed = 2 * noise - 1
    # 1 - |signed| is 0 where a draw was exactly 0: 2^-24 is positive even in float16.
    sizes, rest = (-ops.log(ops.maximum(1 - u, 2.0**-24)) for u in (ops.abs(signed), radius))
    total = ops.sum(sizes, axis=example_axes(sizes), keepdims=True) + rest
    return eps * ops.sign(signed) * (sizes / total)
