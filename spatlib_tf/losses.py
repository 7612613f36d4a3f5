"""The training loss of a batch: attack, then one or two forward passes."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core.losses import outer_loss

from . import ops
from .attack import adversarial
from .inputs import logits_of, one_hot, prepare

Tensor = Any


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def spat_loss(
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
    """The loss to differentiate in a training loop of your own, inside your tape.

    Perturbs the batch as :func:`perturb` does (same arguments), then evaluates the outer loss of
    ``config.base`` (formulas in :mod:`spatlib.core.losses`) with ``training=True``: one forward
    pass for ``pgd``, two for ``trades`` and ``mart``, clean first (the order in which BatchNorm
    sees them). An eager tape around it also holds on to the attack's tensors: wrap the step in a
    tf.function, or call :func:`perturb` before the tape.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        DataError: See :func:`perturb`.
    """
    x, y = prepare(x, y, config, validate)
    attack = adversarial(model, x, y, config, start, mask, generator, validate)
    losses, _ = outer_losses(model, x, attack.x, y, config)
    return tf.reduce_mean(losses)


def outer_losses(
    model: keras.Model, x: Tensor, x_adv: Tensor, y: Tensor, config: SPATConfig
) -> tuple[Tensor, Tensor]:
    """The loss of each example (N,) and the logits (N, K) at x', with ``training=True``."""
    clean = None if config.base == "pgd" else logits_of(model, x, training=True)
    logits = logits_of(model, x_adv, training=True)
    label = one_hot(y, logits)
    return outer_loss(ops, config.base, config.beta, label, clean, logits), logits
