"""Who survives the attacks of an evaluation: an example that is decided is attacked no further."""

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np

from ..config import SPATConfig
from ..data import as_array
from ..errors import RULED_OUT
from .apgd import Ascent, begin, found, rise, stretches
from .feasible import FeasibleSet
from .mask import Vjp
from .ops import Array, Ops, ranked, rivals
from .target import TARGETED, TARGETS, finite, objective


class Verdict(NamedTuple):
    """What is known of each example after some x', in arrays of NumPy."""

    right: Any  # (N,) whether it is correct at all of them
    sound: Any  # (N,) whether all logits and gradients were finite
    x_adv: Any  # (N, ...) the first at which it is not correct, else the last

    def see(self, rows: np.ndarray, x_adv: Any, right: Any, sound: Any) -> None:
        """Take note of one more x' of the examples in these rows."""
        x_adv, right, sound = map(as_array, (x_adv, right, sound))
        before = self.right[rows]
        self.x_adv[rows[before]] = x_adv[before]
        self.right[rows] &= right
        self.sound[rows] &= sound


class Attacked(NamedTuple):
    """A model under attack; the functions below take it first, and batches (N, ...) of any N."""

    ops: Ops
    vjp: Vjp
    predict: Callable[[Array], Array]  # x to logits
    threat: SPATConfig
    name: str = "pgd"  # of the attack's objective

    def allowed(self, x: Array) -> FeasibleSet:
        return FeasibleSet(self.ops, x, self.threat)

    def look(self, x: Array, label: Array, goal: Array) -> Callable[..., Any]:
        """See :func:`spatlib.core.apgd.rise`, for the :func:`objective`."""
        allowed = self.allowed(x)

        def look(d: Array) -> tuple[Array, ...]:
            z, pull = self.vjp(allowed.at(d))
            value, cotangent = objective(self.ops, self.name, z, label, goal)
            grad, holes = finite(self.ops, pull(cotangent))
            right, sound = judge(self.ops, z, label)
            return value, grad, right, sound & (holes == 0)

        return look


def read(net: Attacked, x: Array) -> Array:
    """The logits at x."""
    return net.predict(x)


def placed(net: Attacked, x: Array, label: Array, start: Array) -> tuple[Array, ...]:
    """The first d of a raw start, x' there, and how it is judged."""
    d = net.allowed(x).begin(start)
    x_adv = net.allowed(x).at(d)
    return d, x_adv, *judge(net.ops, net.predict(x_adv), label)


def climbed(net: Attacked, x: Array, label: Array, goal: Array, d: Array) -> tuple[Array, ...]:
    """x' after all steps of PGD from d, and how it is judged."""
    look, allowed = net.look(x, label, goal), net.allowed(x)

    def climb(d: Array, sound: Array) -> tuple[Array, Array]:
        _, grad, _, fine = look(d)
        return allowed.step(d, grad, net.threat.alpha), sound & fine

    none = 0 * net.ops.sum(label, axis=1) == 0
    d, sound = net.ops.repeat(climb, net.threat.steps, (d, none))
    x_adv = allowed.at(d)
    right, fine = judge(net.ops, net.predict(x_adv), label)
    return x_adv, right, sound & fine


def begun(net: Attacked, x: Array, label: Array, goal: Array, d: Array) -> Ascent:
    """Auto-PGD's state at d."""
    return begin(net.ops, net.look(x, label, goal), d, net.threat.eps)


def risen(
    net: Attacked, x: Array, label: Array, goal: Array, steps: int, *state: Array
) -> tuple[Array, Ascent]:
    """x' after so many of its steps and the checkpoint after them, and the state there."""
    look, allowed = net.look(x, label, goal), net.allowed(x)
    after = rise(net.ops, look, Ascent(*state), allowed, steps)
    return allowed.at(found(net.ops, after)), after


def survivors(
    net: Attacked,
    evaluation: Any,
    batch: tuple[Any, Array, Array, Array],
    starts: Iterable[Array],
    separable: bool | None,
    call: Callable[..., Any],
    foreign: Callable[..., Any],
) -> dict[str, Verdict]:
    """The verdicts by metric: after the clean input, the start and the end of all runs.

    Of a :class:`spatlib.evaluate.Evaluation` on a batch: x, y, the logits, one-hot labels. Each of
    ``starts`` is the raw perturbation of a restart. What is decided leaves a ``separable`` batch.
    ``call`` calls a function of those above, in TensorFlow as a graph; ``foreign`` a user's own
    attack, with its metric, x and y.
    """
    ops, (x, y, clean, label) = net.ops, batch
    every = np.arange(len(x))
    unmoved = Verdict(*map(as_array, (*judge(ops, clean, label), ops.widen(x))))
    verdicts = {key: deepcopy(unmoved) for key in evaluation.keys}
    goals = [*ranked(ops, rivals(ops, clean, label), min(TARGETS, int(label.shape[1]) - 1))]

    def run(part: str, verdict: Verdict, goal: Array, d: Array) -> None:
        rows = np.flatnonzero(verdict.right) if separable else every
        if not verdict.right.any():
            return
        own, its = [ops.take(v, rows) for v in (x, label, goal, d)], net._replace(name=part)
        if not part.startswith("apgd"):
            verdict.see(rows, *call(climbed, its, *own))
            return
        state = call(begun, its, *own)
        for steps in stretches(net.threat.steps):
            x_adv, state = call(risen, its, *own[:3], steps, *state)
            verdict.see(rows, x_adv, state.stands, state.sound)
            left = np.flatnonzero(verdict.right[rows])
            if not len(left):
                return
            if separable and len(left) < len(rows):
                rows, own = rows[left], [ops.take(v, left) for v in own]
                state = Ascent(*(ops.take(v, left) for v in state))

    for start in starts:
        d, *seen = call(placed, net, x, label, start)
        for key, parts in evaluation.named.items():
            verdicts[key].see(every, *seen)
            for part in parts:
                for goal in goals if part in TARGETED else goals[:1]:
                    run(part, verdicts[key], goal, d)
    for key, attack in evaluation.callables.items():
        verdict = verdicts[evaluation.keys[-1] if evaluation.joint else key]
        rows = np.flatnonzero(verdict.right) if evaluation.joint and separable else every
        if len(rows):
            own_x, own_y, own_label = (ops.take(v, rows) for v in (x, y, label))
            x_adv = foreign(key, attack, own_x, own_y)
            evaluation.check_inside(key, own_x, x_adv, ops.mantissa_bits(x))
            verdict.see(rows, x_adv, *judge(ops, net.predict(x_adv), own_label))
    return verdicts


def judge(ops: Ops, logits: Array, label: Array) -> tuple[Array, Array]:
    """(N,) whether all are finite and the label's the largest, and whether all are finite."""
    sound = ops.sum(ops.abs(logits), axis=1) < math.inf  # never with NaN
    return (ops.sum(ops.argmax_one_hot(logits) * label, axis=1) > 0) & sound, sound


def separable(net: Attacked, x: Array, clean: Array) -> bool:
    """Whether the logits of some examples are the same without those between them."""
    # Each elsewhere, no groups, of 2^n an odd number; and two at least, as one would broadcast.
    some = np.arange(1, len(x), 3 if len(x) > 4 else 1)
    try:
        alone = as_array(net.predict(net.ops.take(x, some)))
    except Exception:  # a network that is made for one batch size may raise anything
        return False
    whole = as_array(clean)[some]
    usual = np.abs(whole[whole > RULED_OUT / 2])  # without classes ruled out
    slack = 2.0 ** (-net.ops.mantissa_bits(x) / 2) * usual.max(initial=0)
    return bool(np.allclose(alone, whole, rtol=0, atol=slack, equal_nan=True))
