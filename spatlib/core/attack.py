"""The training attack, and who survives the attacks of an evaluation."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

from ..config import SPATConfig
from .apgd import auto_ascend
from .feasible import Draws, FeasibleSet, random_start
from .mask import Vjp, shared_mask
from .ops import Array, Ops, example_axes, rivals
from .target import TARGETS, ascent, finite, objective, stalled

AUTO = ("apgd-ce", "apgd-t")
PARTS = {"apgd": AUTO}  # attacks that one name stands for


class Adversarial(NamedTuple):
    """What an attack made and found."""

    x: Array  # the perturbed inputs (N, ...)
    mask: Array | None  # budget per pixel, None for all ones
    clean: Array | None  # the logits (N, K) at the clean inputs, where they were needed
    stalls: Array  # (N,) share of the steps at which unguarded ascent would have pulled back
    holes: Array  # (N,) share of them, and of the mask, at which a gradient was not finite


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
    """Projected gradient ascent inside B(x, m); see docs/method.md.

    ``one_hot`` takes logits to the label (N, K); x (N, ...) is in ``config.bounds``. ``start`` is
    the first perturbation, before it is projected (None: drawn), ``mask`` the budget per pixel
    (None: that of ``config.mask``).
    """
    start = random_start(ops, ops.widen(x), config, draws) if start is None else start
    clean, trades = None, config.loss == "trades"
    lost, passes = 0.0, config.steps
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
    sources: Iterable[Draws],
) -> dict[str, Array]:
    """By metric, boolean (N,): True where an example is correct in all runs of the attack.

    Args:
        predict: x -> logits (N, K).
        named: By metric the name of :func:`spatlib.core.target.objective`, or "apgd" for both.
        threat: Of :func:`spatlib.config.plain_pgd`: full eps, hard labels, no mask.
        batch: x (N, ...), its logits and its one-hot labels (N, K).
        sources: Of the start of each restart.
    """
    x, clean, label = batch
    allowed = FeasibleSet(ops, x, threat)

    def run(name: str, d: Array, rest: Array, robust: Array) -> tuple[Array, Array]:
        goal = ops.argmax_one_hot(rest)

        def look(d: Array) -> tuple[Array, Array, Array]:
            z, pull = vjp(allowed.at(d))
            value, cotangent = objective(ops, name, z, label, goal)
            return value, finite(ops, pull(cotangent))[0], is_correct(ops, z, label)

        def climb(d: Array) -> tuple[Array]:
            return (allowed.step(d, look(d)[1], threat.alpha),)

        if name in AUTO:
            _, right = auto_ascend(ops, look, d, allowed, threat.steps)
        else:
            (d,) = ops.repeat(climb, threat.steps, (d,))
            right = is_correct(ops, predict(allowed.at(d)), label)
        return rivals(ops, rest, goal), robust & right

    verdicts = dict.fromkeys(("clean", *named), is_correct(ops, clean, label))
    targets = min(TARGETS, int(label.shape[1]) - 1)
    for draws in sources:
        d = allowed.begin(random_start(ops, x, threat, draws))
        started = is_correct(ops, predict(allowed.at(d)), label)
        for key, name in named.items():
            verdicts[key] = verdicts[key] & started
            for part in PARTS.get(name, (name,)):
                runs = targets if part in ("targeted", "apgd-t") else 1
                state = (rivals(ops, clean, label), verdicts[key])
                _, verdicts[key] = ops.repeat(partial(run, part, d), runs, state)
    return verdicts


def is_correct(ops: Ops, logits: Array, label: Array) -> Array:
    """(N,) whether the largest logit is that of the one-hot label; never where one is NaN."""
    total = ops.sum(logits, axis=1)
    return (ops.sum(ops.argmax_one_hot(logits) * label, axis=1) > 0) & (total == total)
