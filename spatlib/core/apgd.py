"""Auto-PGD: ascent that finds its own step size (Croce & Hein 2020, arXiv:2003.01690)."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from .feasible import FeasibleSet, direction
from .ops import Array, Ops, example_axes

MOMENTUM = 0.75  # alpha: the share of the new step, the rest is the one before
RISING = 0.75  # rho: the share of steps that have to raise the loss
# p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06), in hundredths of all steps.
CHECKED = (0, 22, 41, 57, 70, 80, 87, 93, 99)

Look = Callable[[Array], tuple[Array, Array, Array, Array]]  # f (N,), gradient, right, sound


class Ascent(NamedTuple):
    """Where each example is, all (N, 1, ..., 1) or like d; a whole batch or a part of one."""

    d: Array
    value: Array  # f at d
    grad: Array
    before: Array  # the d before
    best: Array  # the d of the largest f so far
    best_value: Array
    best_grad: Array
    size: Array  # of a step
    share: Array  # of the new step in a move, all of it in the first
    halved: Array  # 1 where the last checkpoint halved the size
    mark: Array  # best_value at the last checkpoint
    fallen: Array  # the first d at which the label did not stand, if there was one
    stands: Array  # (N,) whether the label stands at all d so far
    sound: Array  # (N,) whether all numbers were finite


def stretches(steps: int) -> list[int]:
    """The numbers of steps between the checkpoints, at ceil(p_j steps), and after the last."""
    ends = [*(math.ceil(part * steps / 100) for part in CHECKED), steps]
    return [end - begin for begin, end in pairwise(ends) if end > begin]


def begin(ops: Ops, look: Look, d: Array, eps: float) -> Ascent:
    """The state at a first d in the feasible set; the size of a step is 2 eps."""
    value, grad, stands, sound = look(d)
    value = value[_each(d)]
    zero = 0 * ops.cast(stands, like=value)[_each(d)]  # 0 * value could be NaN
    best, own = (d, value, grad), (zero + 2 * eps, zero + 1.0, zero, value)
    return Ascent(*best, d, *best, *own, d, stands, sound)


def rise(ops: Ops, look: Look, state: Ascent, allowed: FeasibleSet, steps: int) -> Ascent:
    """Maximise a loss f for so many steps, and look at the step size of each example.

    It is halved, and the example goes back to the best point so far, if (1) fewer than 3/4 of these
    steps raised f, or (2) it was not halved at the last checkpoint and the best f is still what it
    was there. ``look`` says of d (N, ...) what f and its gradient are, and in booleans (N,) whether
    the label stands and all numbers are finite.
    """
    each = _each(state.d)

    def move(rises: Array, *state: Array) -> tuple[Array, ...]:
        s = Ascent(*state)
        z = s.d + ops.cast(s.size, like=s.d) * direction(ops, s.grad, allowed.threat.norm)
        z, share = allowed.project(z), ops.cast(s.share, like=s.d)
        d = allowed.project(s.d + share * (z - s.d) + (1 - share) * (s.d - s.before))
        value, grad, right, fine = look(d)
        now = (d, value[each], grad)
        rises = rises + ops.cast(now[1] > s.value, like=rises) - RISING
        better, best = now[1] > s.best_value, (s.best, s.best_value, s.best_grad)
        best = tuple(ops.where(better, new, old) for new, old in zip(now, best, strict=True))
        own = (s.size, 0 * s.share + MOMENTUM, s.halved, s.mark)
        fallen = ops.where(s.stands[each], d, s.fallen)
        return rises, *now, s.d, *best, *own, fallen, s.stands & right, s.sound & fine

    rises, *moved = ops.repeat(move, steps, (0 * state.halved, *state))
    s = Ascent(*moved)
    stuck = (s.halved == 0) & (s.best_value == s.mark)
    halve = (rises < 0) | stuck
    pairs = ((s.best, s.d), (s.best_value, s.value), (s.best_grad, s.grad), (s.size / 2, s.size))
    d, value, grad, size = (ops.where(halve, new, old) for new, old in pairs)
    halved = ops.cast(halve, like=rises)
    return s._replace(d=d, value=value, grad=grad, size=size, halved=halved, mark=s.best_value)


def found(ops: Ops, state: Ascent) -> Array:
    """The first d of each example at which its label fell, else that of its largest f."""
    return ops.where(state.stands[_each(state.d)], state.best, state.fallen)


def _each(d: Array) -> tuple[slice | None, ...]:
    """The index that makes (N,) to (N, 1, ..., 1)."""
    return (slice(None), *(None,) * len(example_axes(d)))
