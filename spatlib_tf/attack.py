"""The training-time attack: shared-pixel mask, start, guarded ascent, as one graph loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core import target
from spatlib.core.projection import feasible_box
from spatlib.core.step import initial, step

from . import ops
from .inputs import (
    check_budget,
    check_gradient,
    check_label_values,
    check_start,
    logits_of,
    one_hot,
    prepare,
)
from .mask import logits_and_gradient, mask_from_logits
from .random import draw_start, next_seed
from .state import attack_state

Tensor = Any
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


class Adversarial(NamedTuple):
    """Perturbed inputs, clean logits (None: not computed), share of stalled example-steps."""

    x: Tensor
    clean: Tensor | None
    stall_rate: Tensor


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def perturb(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    generator: keras.random.SeedGenerator | None = None,
    validate: bool = True,
) -> Tensor:
    """The training-time adversarial examples x' of a batch.

    As :func:`spatlib_torch.perturb`, for channels-last inputs.

    Args:
        model: Gives logits (N, K) for inputs (N, ...), called with ``training=False``.
        x: Floating inputs in ``config.bounds`` (excess by rounding is clipped): (N, D),
            (N, L, C) or (N, H, W, C).
        y: Integer labels (N,) or (N, 1), or one-hot (N, K).
        config: Threat model and method.
        start: First perturbation, shaped like x, in its units; set to 0 where the mask is 0 and
            projected. Default: drawn as ``config.random_start`` says.
        mask: Budget per pixel in [0, 1], broadcastable to x; default :func:`shared_mask`.
        generator: Source of the start and of the mask's draws; default TensorFlow's own, which
            stays untouched if a start is given (a random mask is then always drawn alike).
        validate: Check values too (not inside a tf.function).

    Returns:
        x' with the shape and dtype of x; x' - x is in the feasible set and exactly 0 where the
        mask is 0. No gradient flows through it.

    Raises:
        DataError: Inputs, labels, logits, start or mask of the wrong shape, dtype or range.
    """
    x, y = prepare(x, y, config, validate)
    return adversarial(model, x, y, config, start, mask, generator, validate).x


def adversarial(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    generator: keras.random.SeedGenerator | None = None,
    validate: bool = False,
) -> Adversarial:
    """What :func:`perturb` returns and what it found on the way, for a prepared batch."""
    needs_mask = mask is None and config.masked
    # With a start and no generator, TensorFlow's own stays untouched.
    untouched = generator is None and start is not None
    seed = tf.zeros(2, tf.int32) if untouched else next_seed(generator, x)
    with attack_state(model, config.attack_mode) as training:
        clean = None
        if needs_mask or config.base == "trades":
            clean, gradient = logits_and_gradient(model, x, training)
            if needs_mask:
                mask = mask_from_logits(clean, gradient, x, y, config, seed)
        start = check_start(draw_start(x, config, seed) if start is None else start, x, validate)
        if mask is not None:
            mask = check_budget(mask, x, validate)
        lower, upper = feasible_box(ops, x, mask, config.eps, config.bounds)
        d = initial(ops, start, mask, lower, upper, config.eps, config.norm)
        objective = ascent_objective(y, config, clean, validate)
        predict = partial(logits_of, model, training=training)
        x_adv, stall = ascend(predict, x, d, mask, lower, upper, config, objective)
    return Adversarial(tf.stop_gradient(x_adv), clean, stall)


def ascent_objective(
    y: Tensor, config: SPATConfig, clean: Tensor | None, validate: bool
) -> Objective:
    """The objective of the inner problem and the share stalled, as functions of the logits."""
    base_target = None
    if config.base == "trades" and clean is not None:
        base_target = tf.stop_gradient(tf.nn.softmax(clean))

    def objective(logits: Tensor) -> tuple[Tensor, Tensor]:
        if validate:
            check_label_values(y, logits.shape[1])
        label, log_p = one_hot(y, logits), ops.log_softmax(logits)
        constant = tf.stop_gradient(log_p)
        b = label if base_target is None else base_target
        q = target.smoothed_target(ops, b, label, constant, config.smoothing, config.guard)
        stall = target.stalled(ops, label, constant, config.smoothing)
        return target.objective(ops, log_p, tf.stop_gradient(q)), mean(stall)

    return objective


def mean(x: Tensor) -> Tensor:
    """The mean of x (N,); 0 for the empty share of a replica in a last, small batch."""
    return tf.math.divide_no_nan(tf.reduce_sum(x), tf.cast(tf.size(x), x.dtype))


def ascend(
    predict: Callable[[Tensor], Tensor],
    x: Tensor,
    d: Tensor,
    mask: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    config: SPATConfig,
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    """``config.steps`` of projected ascent from the perturbation d; x' and the mean stall."""
    eps, step_size, norm = config.eps, config.step_size, config.norm

    def body(d: Tensor, stall: Tensor) -> tuple[Tensor, Tensor]:
        iterate = ops.clip(x + d, *config.bounds)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(iterate)
            value, stalled = objective(predict(iterate))
        grad = check_gradient(tape.gradient(value, iterate), x)
        moved = step(ops, d, grad, mask, lower, upper, eps=eps, step_size=step_size, norm=norm)
        return moved, stall + tf.cast(stalled, stall.dtype)

    d, stall = ops.repeat(body, config.steps, (d, tf.zeros((), x.dtype)))
    return ops.clip(x + d, *config.bounds), stall / config.steps
