"""Auto-PGD on one example: Algorithm 1 of Croce & Hein (2020, arXiv:2003.01690), by its lists.

x, d, start are (D,), y and goal are ints. Every point ever visited is kept, so that what the
algorithm asks of its past ("the best so far", "since the last checkpoint") is looked up there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from .arrays import Array
from .models import Classifier
from .projection import feasible_box, project
from .step import direction
from .target import log_softmax, objective_gradient, one_hot


@dataclass
class Ascent:
    """Where Auto-PGD went.

    ``clear`` points, from the start on, do not hang on rounding: no two values of f that were
    compared for them are nearer than 1e-12 of their size (unless equal), nor does a gradient with
    a sign that matters come so near to 0.
    """

    points: list[Array] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    halvings: list[int] = field(default_factory=list)  # the numbers of steps after which
    clear: int = 0

    @property
    def best(self) -> Array:
        """The first of the points with the largest f."""
        return self.points[self.values.index(max(self.values))]


def checkpoints(steps: int) -> list[int]:
    """Return ceil(p_j steps), p = 0.22, 0.41, 0.57, ... as far as 1: periods shrink to 0.06."""
    p = [Fraction(0), Fraction(22, 100)]
    while p[-1] <= 1:
        p.append(p[-1] + max(p[-1] - p[-2] - Fraction(3, 100), Fraction(6, 100)))
    return [math.ceil(part * steps) for part in p[1:-1]]


def auto_ascend(
    f: Callable[[Array], float],
    gradient: Callable[[Array], Array],
    start: Array,
    lower: Array,
    upper: Array,
    eps: float,
    steps: int,
    norm: str,
) -> Ascent:
    """Return the path of Auto-PGD on f from the start; step size 2 eps, alpha = rho = 3/4."""
    seen = Ascent([start], [f(start)])
    d, previous, size = start, start, 2 * eps
    rises: list[bool] = []
    halved, top = False, seen.values[0]
    clear = True
    for number in range(1, steps + 1):
        g = gradient(d)
        clear = clear and not (norm == "Linf" and _near_zero(g))
        seen.clear += clear
        d_next = project(d + size * direction(g, norm), lower, upper, eps, norm)
        if number > 1:
            pushed = d + 0.75 * (d_next - d) + 0.25 * (d - previous)
            d_next = project(pushed, lower, upper, eps, norm)
        value = f(d_next)
        clear = clear and not any(_near(value, other) for other in (f(d), max(seen.values)))
        rises.append(value > f(d))
        d, previous = d_next, d
        seen.points.append(d)
        seen.values.append(value)
        if number in checkpoints(steps):
            too_few = sum(rises) < Fraction(3, 4) * len(rises)
            no_better = not halved and max(seen.values) == top
            halved, top, rises = too_few or no_better, max(seen.values), []
            if halved:
                size, d = size / 2, seen.best
                seen.halvings.append(number)
    seen.clear += clear
    return seen


def auto_attack(
    model: Classifier,
    x: Array,
    y: int,
    goal: int | None,
    *,
    eps: float,
    steps: int,
    norm: str,
    bounds: tuple[float, float],
    start: Array,
) -> Ascent:
    """Return Auto-PGD's path of d from the start, on the cross-entropy or towards the goal."""
    lower, upper = feasible_box(x, np.ones(x.size), eps, bounds)

    def point(d: Array) -> Array:
        return np.clip(x + d, *bounds)

    def f(d: Array) -> float:
        z = model.logits(point(d))
        return -float(log_softmax(z)[y]) if goal is None else targeted_ratio(z, y, goal)[0]

    def gradient(d: Array) -> Array:
        z = model.logits(point(d))
        if goal is None:
            cotangent = objective_gradient(z, one_hot(y, z.size))
        else:
            cotangent = targeted_ratio(z, y, goal)[1]
        slope: Array = cotangent @ model.input_gradients(point(d))
        return slope

    return auto_ascend(f, gradient, start, lower, upper, eps, steps, norm)


def targeted_ratio(z: Array, y: int, goal: int) -> tuple[float, Array]:
    """Return (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) and its gradient, by the quotient rule.

    z_t - z_y alone if there are fewer than four classes or the divisor is 0.
    """
    top = float(z[goal] - z[y])
    d_top = one_hot(goal, z.size) - one_hot(y, z.size)
    if z.size < 4:
        return top, d_top
    first, _, third, fourth = sorted(range(z.size), key=lambda k: -z[k])[:4]
    bottom = float(z[first] - (z[third] + z[fourth]) / 2)
    if bottom == 0:
        return top, d_top
    d_bottom = one_hot(first, z.size) - (one_hot(third, z.size) + one_hot(fourth, z.size)) / 2
    return top / bottom, (bottom * d_top - top * d_bottom) / bottom**2


def _near(a: float, b: float) -> bool:
    return a != b and abs(a - b) <= 1e-12 * max(abs(a), abs(b))


def _near_zero(g: Array) -> bool:
    return bool(np.any((g != 0) & (np.abs(g) <= 1e-9 * np.max(np.abs(g)))))
