"""Who survives the attacks of an evaluation: full eps, hard labels, no mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

from ..config import SPATConfig
from .apgd import auto_ascend
from .feasible import FeasibleSet
from .ops import Array, Ops, rivals
from .target import TARGETS, finite, objective

AUTO = ("apgd-ce", "apgd-t")
PARTS = {"apgd": AUTO}  # attacks that one name stands for


def survivors(
    ops: Ops,
    vjp: Callable[[Array], tuple[Array, Callable[[Array], Array]]],
    predict: Callable[[Array], Array],
    named: Mapping[str, str],
    threat: SPATConfig,
    batch: tuple[Array, Array, Array],
    starts: Iterable[Array],
) -> dict[str, Array]:
    """By metric, boolean (N,): True where an example is correct in all runs of the attack.

    Args:
        vjp, predict: x -> (logits, pull) as for :func:`spatlib.core.attack.adversarial`, and
            x -> logits.
        named: The attacks by metric: names of :func:`spatlib.core.target.objective`, or "apgd".
        threat: Of :func:`spatlib.config.plain_pgd`.
        batch: x (N, ...), its logits and its one-hot labels (N, K).
        starts: One raw perturbation (N, ...) per restart.
    """
    x, clean, label = batch
    allowed = FeasibleSet(ops, x, threat)
    others = rivals(ops, clean, label)

    def run(name: str, d: Array, rest: Array, robust: Array) -> tuple[Array, Array]:
        goal = ops.argmax_one_hot(rest)

        def look(d: Array) -> tuple[Array, Array, Array]:
            z, pull = vjp(allowed.at(d))
            value, cotangent = objective(ops, name, z, label, goal)
            grad, _ = finite(ops, pull(cotangent))
            return value, grad, is_correct(ops, z, label)

        if name in AUTO:
            _, right = auto_ascend(ops, look, d, allowed, threat.steps)
        else:

            def climb(d: Array) -> tuple[Array]:
                return (allowed.step(d, look(d)[1], threat.alpha),)

            (d,) = ops.repeat(climb, threat.steps, (d,))
            right = is_correct(ops, predict(allowed.at(d)), label)
        return rivals(ops, rest, goal), robust & right

    verdicts = dict.fromkeys(("clean", *named), is_correct(ops, clean, label))
    targets = min(TARGETS, int(label.shape[1]) - 1)
    for start in starts:
        d = allowed.begin(start)
        started = is_correct(ops, predict(allowed.at(d)), label)
        for key, name in named.items():
            verdicts[key] = verdicts[key] & started
            for part in PARTS.get(name, (name,)):
                runs = targets if part in ("targeted", "apgd-t") else 1
                state = (others, verdicts[key])
                _, verdicts[key] = ops.repeat(partial(run, part, d), runs, state)
    return verdicts


def is_correct(ops: Ops, logits: Array, label: Array) -> Array:
    """(N,) whether the largest logit is that of the one-hot label; never where one is NaN."""
    total = ops.sum(logits, axis=1)
    return (ops.sum(ops.argmax_one_hot(logits) * label, axis=1) > 0) & (total == total)
