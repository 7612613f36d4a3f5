"""The training attack: shared-pixel mask, start, projected ascent.

An engine provides ``vjp(x) -> (logits, pull)`` with ``pull(cotangent) -> gradient in x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..config import SPATConfig
from .feasible import FeasibleSet
from .mask import Draws, shared_mask
from .ops import Array, Ops, example_axes
from .target import ascent, finite, stalled


class Adversarial(NamedTuple):
    """What an attack made and found.

    Attributes:
        x: The perturbed inputs (N, ...).
        mask: Budget per pixel, or None for all ones.
        clean: The logits (N, K) at the clean inputs, where they were needed, else None.
        stalls: (N,) share of the steps at which unguarded ascent would have pulled back.
        holes: (N,) share of the steps at which the gradient was not finite.
    """

    x: Array
    mask: Array | None
    clean: Array | None
    stalls: Array
    holes: Array


def adversarial(
    ops: Ops,
    vjp: Callable[..., tuple[Array, Callable[..., Array]]],
    one_hot: Callable[[Array], Array],
    x: Array,
    config: SPATConfig,
    start: Array,
    mask: Array | None,
    draws: Draws,
) -> Adversarial:
    """Projected gradient ascent inside B(x, m); see docs/method.md.

    Args:
        vjp: x -> (logits (N, K), pull), finite logits; called with ``many=True`` where pull is
            called more than once.
        one_hot: Logits -> the label (N, K).
        x: Inputs (N, ...) in ``config.bounds``.
        start: The first perturbation (N, ...), before it is projected.
        mask: Budget per pixel; None is that of ``config.mask``.
        draws: The source of a random mask.
    """
    wanted = config.mask if mask is None and config.masked else None
    trades, clean = config.loss == "trades", None
    if wanted or trades:
        clean, pull = vjp(x, many=wanted is not None)
        if wanted:
            mask = shared_mask(ops, x, pull, one_hot(clean), wanted, draws)
        del pull  # and with it the graph
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

    none = ops.max(0 * x, axis=example_axes(x))
    d, stalls, holes = ops.repeat(ascend, config.steps, (allowed.begin(start), none, none))
    found = allowed.at(d)
    return Adversarial(found, mask, clean, stalls / config.steps, holes / config.steps)
