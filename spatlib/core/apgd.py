"""Auto-PGD: ascent that finds its own step size (Croce & Hein 2020, arXiv:2003.01690)."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeAlias

from .feasible import FeasibleSet, direction
from .ops import Array, Ops, example_axes

MOMENTUM = 0.75  # alpha: the share of the new step, the rest is the one before
RISING = 0.75  # rho: the share of steps that have to raise the loss
# p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), in hundredths of all steps.
CHECKED = (0, 22, 41, 57, 70, 80, 87, 93, 99)

Point: TypeAlias = tuple[Array, ...]  # what belongs to one d (N, ...), such as f there


def checkpoints(steps: int) -> list[int]:
    """0 and the numbers of steps after which the step size is looked at: ceil(p_j steps)."""
    return [math.ceil(part * steps / 100) for part in CHECKED]


def auto_ascend(
    ops: Ops, look: Callable[[Array], Point], d: Array, allowed: FeasibleSet, steps: int
) -> tuple[Array, Array, Array]:
    """Maximise a loss f over the feasible set, each example with a step size s of its own.

    s = 2 eps at first. At a checkpoint it is halved, and the example goes back to the best point
    so far, if (1) fewer than 3/4 of the steps since the last checkpoint raised f, or (2) s was
    not halved at the last checkpoint and the best f is still what it was there.

    ``look`` says of d (N, ...) what f (N,) and its gradient are, and in booleans (N,) whether the
    label stands and all numbers are finite. Returns the d of each example at which its label fell
    first, else that of its largest f; and whether both held at every d on the way, from the first.
    """
    each = (slice(None), *(None,) * len(example_axes(d)))  # (N,) -> (N, 1, ..., 1)
    ends, project = checkpoints(steps), allowed.project

    def pick(condition: Array, one: Point, other: Point) -> Point:
        return tuple(ops.where(condition, a, b) for a, b in zip(one, other, strict=True))

    def move(*state: Any) -> tuple[Any, ...]:
        number, size, halved, rises, mark, before, points, fallen, stands, sound = state
        (at, value, grad), best = points
        z = project(at + ops.cast(size, like=d) * direction(ops, grad, allowed.threat.norm))
        alpha = MOMENTUM + (1 - MOMENTUM) * ops.cast(number == 0, like=d)
        moved = project(at + alpha * (z - at) + (1 - alpha) * (at - before))
        new_value, new_grad, right, fine = look(moved)
        now = (moved, new_value[each], new_grad)
        rises = rises + ops.cast(now[1] > value, like=value)
        best = pick(now[1] > best[1], now, best)
        number = number + 1
        # Steps since the last checkpoint where this is one, else 0: no branch on a value.
        period = zero
        for begin, end in pairwise(ends):
            period = period + (end - begin) * ops.cast(number == end, like=value)
        check = period > 0
        stuck = check & (halved == 0) & (best[1] == mark)
        halve = (rises < RISING * period) | stuck
        halved, mark = pick(check, (ops.cast(halve, like=value), best[1]), (halved, mark))
        size, rises = ops.where(halve, size / 2, size), ops.where(check, 0.0, rises)
        points = (pick(halve, best, now), best)
        fallen, stands, sound = ops.where(stands[each], moved, fallen), stands & right, sound & fine
        return number, size, halved, rises, mark, at, points, fallen, stands, sound

    value, grad, stands, sound = look(d)
    begin = (d, value[each], grad)
    zero = 0 * ops.cast(stands, like=value)[each]  # a loss that is not a number would give others
    first = zero + 2 * allowed.threat.eps
    state = (zero, first, zero, zero, value[each], d, (begin, begin), d, stands, sound)
    *_, (_, best), fallen, stands, sound = ops.repeat(move, steps, state)
    return ops.where(stands[each], best[0], fallen), stands, sound
