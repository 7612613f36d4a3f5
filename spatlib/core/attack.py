"""The training attack, and who survives the attacks of an evaluation."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from ..config import SPATConfig
from .apgd import auto_ascend
from .feasible import Draws, FeasibleSet, random_start
from .mask import Vjp, shared_mask
from .ops import Array, Ops, example_axes, rivals
from .target import TARGETS, ascent, finite, objective, stalled

PARTS = {"apgd": ("apgd-ce", "apgd-t")}  # attacks that one name stands for


class Adversarial(NamedTuple):
    """What an attack made and found."""

    x: Array  # the perturbed inputs (N, ...)
    mask: Array | None  # budget per pixel, None for all ones
    clean: Array | None  # the logits (N, K) at the clean inputs, where they were needed
    stalls: Array  # (N,) share of the steps at which unguarded ascent would have pulled back
    holes: Array  # (N,) share of them, and of the mask, at which a gradient was not finite


class Verdict(NamedTuple):
    """What is known of each example after some x'."""

    right: Array  # (N,) whether it is correct at all of them
    sound: Array  # (N,) whether all logits and gradients were finite
    x_adv: Array  # (N, ...) the first at which it is not correct, else the last

    def then(self, ops: Ops, x_adv: Array, right: Array, sound: Array) -> "Verdict":
        """After one more."""
        each = (slice(None), *(None,) * len(example_axes(x_adv)))
        shown = ops.where(self.right[each], ops.cast(x_adv, like=self.x_adv), self.x_adv)
        return Verdict(self.right & right, self.sound & sound, shown)


def adversarial(
    ops: Ops,
    vjp: Vjp,
    one_hot: Callable[[Array], Array],
    x: Array,
    config: SPATConfig,
    start: Array | None,
    mask: Array | None,
    draws: Draws,
) -> Adversarial:
    """Projected gradient ascent inside B(x, m) from x (N, ...) in bounds; see docs/method.md.

    ``one_hot`` takes logits to the label; for None ``start`` is drawn, ``mask`` made.
    """
    start = random_start(ops, ops.widen(x), config, draws) if start is None else start
    clean, lost, passes, trades = None, 0.0, config.steps, config.loss == "trades"
    if mask is None and config.mask is not None and config.masked:
        mask, clean, lost = shared_mask(ops, x, vjp, one_hot, config.mask, draws)
        passes += 1
    if trades and clean is None:
        clean = vjp(x)[0]
    allowed = FeasibleSet(ops, x, config, mask)
    base = ops.log_softmax(clean) if trades else None  # None: the label

    def ascend(d: Array, stalls: Array, holes: Array) -> tuple[Array, ...]:
        logits, pull = vjp(allowed.at(d))
        label, log_p = one_hot(logits), ops.log_softmax(logits)
        cotangent = ascent(ops, base, label, log_p, config.smoothing, config.guard)
        grad, bad = finite(ops, pull(cotangent))
        if config.smoothing:
            stalls = stalls + ops.cast(stalled(ops, label, log_p, config.smoothing), like=stalls)
        return allowed.step(d, grad, config.alpha), stalls, holes + bad

    none = ops.max(0 * allowed.x, axis=example_axes(x))
    d, stalls, holes = ops.repeat(ascend, config.steps, (allowed.begin(start), none, none + lost))
    return Adversarial(allowed.at(d), mask, clean, stalls / config.steps, holes / passes)


def survivors(
    ops: Ops,
    vjp: Vjp,
    predict: Callable[[Array], Array],
    named: Mapping[str, str],
    threat: SPATConfig,
    batch: tuple[Array, Array, Array],
    starts: Iterable[Array],
    known: dict[str, Verdict] | None = None,
) -> dict[str, Verdict]:
    """The verdicts by metric: after the clean input, the start and the end of all runs.

    ``predict`` takes x to the logits, ``named`` has the :func:`objective` (or "apgd") by metric,
    ``batch`` x, its logits and one-hot labels, ``starts`` a raw perturbation for each restart.
    """
    x, clean, label = batch
    allowed = FeasibleSet(ops, x, threat)

    def run(name: str, d: Array, rest: Array, *verdict: Array) -> tuple[Array, ...]:
        goal = ops.argmax_one_hot(rest)

        def look(d: Array) -> tuple[Array, ...]:
            z, pull = vjp(allowed.at(d))
            value, cotangent = objective(ops, name, z, label, goal)
            grad, holes = finite(ops, pull(cotangent))
            right, sound = judge(ops, z, label)
            return value, grad, right, sound & (holes == 0)

        def climb(d: Array, sound: Array) -> tuple[Array, Array]:
            _, grad, _, fine = look(d)
            return allowed.step(d, grad, threat.alpha), sound & fine

        if name in PARTS["apgd"]:
            d, right, sound = auto_ascend(ops, look, d, allowed, threat.steps)
        else:
            d, sound = ops.repeat(climb, threat.steps, (d, verdict[1]))
            right, fine = judge(ops, predict(allowed.at(d)), label)
            sound = sound & fine
        return rivals(ops, rest, goal), *Verdict(*verdict).then(ops, allowed.at(d), right, sound)

    unmoved = Verdict(*judge(ops, clean, label), ops.cast(x, like=clean))
    verdicts = {**known} if known else dict.fromkeys(("clean", *named), unmoved)
    targets = min(TARGETS, int(label.shape[1]) - 1)
    for start in starts:
        d = allowed.begin(start)
        begin = judge(ops, predict(allowed.at(d)), label)
        for key, name in named.items():
            verdict = verdicts[key].then(ops, allowed.at(d), *begin)
            for part in PARTS.get(name, (name,)):
                runs = targets if part in ("targeted", "apgd-t") else 1
                state = rivals(ops, clean, label), *verdict
                _, *found = ops.repeat(partial(run, part, d), runs, state, lambda _, r, *__: ~r)
                verdict = Verdict(*found)
            verdicts[key] = verdict
    return verdicts


def judge(ops: Ops, logits: Array, label: Array) -> tuple[Array, Array]:
    """(N,) whether all are finite and the label's the largest, and whether all are finite."""
    sound = ops.sum(ops.abs(logits), axis=1) < math.inf  # never with NaN
    return (ops.sum(ops.argmax_one_hot(logits) * label, axis=1) > 0) & sound, sound
