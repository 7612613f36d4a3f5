"""The training attack."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..config import SPATConfig
from .feasible import Draws, FeasibleSet, random_start
from .mask import Vjp, shared_mask
from .ops import Array, Ops, example_axes
from .target import ascent, finite, stalled


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
    own: tuple[Array | None, Array | None],
    draws: Draws,
    fused: Callable[..., Any] = lambda function: function,
) -> Adversarial:
    """Projected gradient ascent inside B(x, m) from x (N, ...) in bounds; see docs/method.md.

    ``one_hot`` takes logits to the label. ``own`` holds start and mask: a start of None is drawn, a
    mask of None made. ``fused`` may compile what is arithmetic alone.
    """
    start, mask = own
    start = random_start(ops, ops.widen(x), config, draws) if start is None else start
    clean, lost, passes, trades = None, 0.0, config.steps, config.loss == "trades"
    if mask is None and config.mask is not None and config.masked:
        mask, clean, lost = shared_mask(ops, x, vjp, one_hot, config.mask, draws)
        passes += 1
    if trades and clean is None:
        clean = vjp(x)[0]
    allowed = FeasibleSet(ops, x, config, mask)
    base = ops.log_softmax(clean) if trades else None  # None: the label
    at, up, move = fused(FeasibleSet.at), fused(_up), fused(_move)

    def ascend(d: Array, stalls: Array, holes: Array) -> tuple[Array, ...]:
        logits, pull = vjp(at(allowed, d))
        cotangent, stalls = up(ops, config, base, one_hot(logits), logits, stalls)
        d, holes = move(allowed, config.alpha, d, pull(cotangent), holes)
        return d, stalls, holes

    none = ops.max(0 * allowed.x, axis=example_axes(x))
    d, stalls, holes = ops.repeat(ascend, config.steps, (allowed.begin(start), none, none + lost))
    return Adversarial(allowed.at(d), mask, clean, stalls / config.steps, holes / passes)


def _up(
    ops: Ops, config: SPATConfig, base: Array | None, label: Array, logits: Array, stalls: Array
) -> tuple[Array, ...]:
    """The cotangent (N, K) of the logits, and one more where unguarded ascent would pull back."""
    log_p = ops.log_softmax(logits)
    cotangent = ascent(ops, base, label, log_p, config.smoothing, config.guard)
    if config.smoothing:
        stalls = stalls + ops.cast(stalled(ops, label, log_p, config.smoothing), like=stalls)
    return cotangent, stalls


def _move(
    allowed: FeasibleSet, size: float, d: Array, grad: Array, holes: Array
) -> tuple[Array, ...]:
    """The perturbation a step further, and one more where the gradient is not finite."""
    grad, bad = finite(allowed.ops, grad)
    return allowed.step(d, grad, size), holes + bad
