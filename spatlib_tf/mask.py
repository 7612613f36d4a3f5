"""The shared-pixel mask: class by class through one tape into the core's running score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from spatlib import checks
from spatlib.config import SPATConfig
from spatlib.core import mask as core

from . import ops
from .inputs import check_gradient, check_label_values, logits_of, one_hot, prepare
from .random import MASK, draw_offsets, draw_probes, next_seed, split
from .state import attack_state

Tensor = Any


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def shared_mask(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    generator: keras.random.SeedGenerator | None = None,
    validate: bool = True,
) -> Tensor:
    """The budget of every pixel: 1 where it is shared among the classes, ``floor`` elsewhere.

    As :func:`spatlib_torch.shared_mask`, for channels-last inputs.

    Args:
        model: Gives logits (N, K) for inputs (N, ...); its state comes back as it was.
        x: Floating inputs in ``config.bounds``: (N, D), (N, L, C) or (N, H, W, C).
        y: Integer labels (N,) or (N, 1), or one-hot (N, K).
        config: ``share``, ``keep``, ``floor``, ``mask_classes``, ``probes``, ``attack_mode``.
        generator: Seeds the draws of ``mask_classes`` and ``rms``; default TensorFlow's own.
        validate: Check values too (not inside a tf.function).

    Returns:
        Values in {floor, 1} with one channel: (N, D), (N, L, 1) or (N, H, W, 1).

    Raises:
        DataError: Inputs, labels or logits of the wrong shape, dtype or range.
    """
    x, y = prepare(x, y, config, validate)
    if not config.masked:
        return tf.ones_like(x[..., :1] if len(x.shape) > 2 else x)
    with attack_state(model, config.attack_mode) as training:
        logits, gradient = logits_and_gradient(model, x, training)
        if validate:
            check_label_values(y, logits.shape[1])
        return mask_from_logits(logits, gradient, x, y, config, next_seed(generator))


def logits_and_gradient(
    model: keras.Model, x: Tensor, training: bool
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The logits at x, and the map from a cotangent (N, K) to the gradient with respect to x."""
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_of(model, x, training=training)

    def gradient(cotangent: Tensor) -> Tensor:
        return check_gradient(tape.gradient(logits, x, output_gradients=cotangent), x)

    return logits, gradient


def mask_from_logits(
    logits: Tensor,
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    seed: Tensor,
) -> Tensor:
    """The mask from :func:`logits_and_gradient`; a graph loop, whatever the number of classes."""
    channel_axis = len(x.shape) - 1 if len(x.shape) > 2 else None
    classes, seed = logits.shape[1], split(seed, MASK)
    every = config.share != "rms" and config.mask_classes in (None, classes)

    if config.share == "rms":
        rounds, signs = config.probes, draw_probes(config, logits, seed)

        def cotangent(k: Tensor) -> Tensor:
            return core.probe_cotangent(ops, signs[k])
    elif every:
        # The centred gradients of all classes add up to zero, which saves the last pass.
        rounds, like = classes - 1, tf.zeros_like(logits)

        def cotangent(k: Tensor) -> Tensor:
            return core.class_cotangent(like + tf.one_hot(k, classes, dtype=logits.dtype))
    else:
        checks.check_mask_classes(config.mask_classes, classes)
        label = one_hot(y, logits)
        rounds = config.mask_classes or classes
        offsets = tf.concat([[0], draw_offsets(config, classes, seed)], axis=0)

        def cotangent(k: Tensor) -> Tensor:
            return core.class_cotangent(tf.roll(label, offsets[k], axis=1))

    def body(k: Tensor, total: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Any, ...]:
        grad = gradient(cotangent(k))
        return k + 1, total + grad, core.fold(ops, state, grad, config.share, channel_axis)

    first = (0, tf.zeros_like(x), core.begin(ops, x, config.share, channel_axis))
    _, total, state = tf.while_loop(
        lambda k, *_: k < rounds, body, first, maximum_iterations=rounds, parallel_iterations=1
    )
    if every:
        state = core.fold(ops, state, -total, config.share, channel_axis)
    return core.finish(ops, state, config.keep, config.floor)
