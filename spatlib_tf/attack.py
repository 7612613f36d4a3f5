"""The training attack, the mask and the loss in Keras: the core over gradient tapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core import mask as core
from spatlib.core.attack import Adversarial, adversarial, survivors
from spatlib.core.target import outer_loss
from spatlib.errors import check_same_shape, require_type

from . import ops
from .inputs import (
    as_tensor,
    check_budget,
    check_gradient,
    check_label_values,
    check_start,
    logits_of,
    one_hot,
    prepare,
)
from .random import MASK, Draws, draw_start, next_seed, split
from .state import attack_state

Tensor = Any


def vjp(
    model: keras.Model, training: bool, x: Tensor, *, many: bool = False
) -> tuple[Tensor, Callable[..., Tensor]]:
    """The logits at x, and the map from a cotangent (N, K) to the gradient in x.

    With ``many`` the map can be called several times.
    """
    with tf.GradientTape(persistent=many, watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = logits_of(model, x, training=training)

    def pull(cotangent: Tensor, *, last: bool = True) -> Tensor:
        return check_gradient(tape.gradient(logits, x, output_gradients=cotangent), x)

    return tf.stop_gradient(logits), pull


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
    require_type("config", config, SPATConfig)
    x, y = prepare(x, y, config, validate)
    if start is not None:
        start = check_start(start, x, validate)
    if mask is not None:
        mask = check_budget(mask, x, validate)
    return attacked(model, x, y, config, start=start, mask=mask, source=generator, check=validate).x


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def spat_loss(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    x_adv: Tensor | None = None,
    generator: keras.random.SeedGenerator | None = None,
    validate: bool = True,
) -> Tensor:
    """The loss to differentiate in a training loop of your own, inside your tape.

    Perturbs the batch as :func:`perturb` does, then evaluates the outer loss ``config.loss``
    (formulas in :mod:`spatlib.core.target`) with ``training=True``: one forward pass for ``pgd``,
    two for ``trades`` and ``mart``, clean first (the order in which BatchNorm sees them). An eager
    tape around it also holds on to the attack's tensors: wrap the step in a tf.function, or call
    :func:`perturb` before the tape and pass ``x_adv``.

    Args:
        model, x, y, config, generator, validate: As for :func:`perturb`.
        x_adv: What :func:`perturb` made of this batch already; default: it is made here.

    Returns:
        The mean over the batch, a scalar.

    Raises:
        DataError: See :func:`perturb`.
    """
    require_type("config", config, SPATConfig)
    x, y = prepare(x, y, config, validate)
    if x_adv is None:
        x_adv = attacked(model, x, y, config, source=generator, check=validate).x
    else:
        x_adv = as_tensor("x_adv", x_adv)
        check_same_shape("x_adv", x_adv.shape, x.shape)
        x_adv, _ = prepare(x_adv, y, config, validate, "x_adv")
    losses, logits = outer(model, x, x_adv, y, config)
    if validate:
        check_label_values(y, logits.shape[1])
    return tf.reduce_mean(losses)


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
        model, x, y, validate: As for :func:`perturb`.
        config: ``mask`` and ``attack_mode``.
        generator: Seeds the draws of ``classes``, ``rms`` and ``random``; default TensorFlow's
            own.

    Returns:
        Values in {floor, 1} with one channel: (N, D), (N, L, 1) or (N, H, W, 1).

    Raises:
        DataError: Inputs, labels or logits of the wrong shape, dtype or range.
    """
    require_type("config", config, SPATConfig)
    x, y = prepare(x, y, config, validate)
    if config.mask is None or not config.masked:
        return tf.ones_like(x[..., :1] if len(x.shape) > 2 else x)
    with attack_state(model, config.attack_mode) as training:
        logits, pull = vjp(model, training, x, many=True)
        if validate:
            check_label_values(y, logits.shape[1])
        draws = Draws(split(next_seed(generator), MASK))
        return core.shared_mask(ops, x, pull, one_hot(y, logits), config.mask, draws)


def attacked(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    source: keras.random.SeedGenerator | None = None,
    check: bool = False,
) -> Adversarial:
    """The attack on a prepared batch; ``check`` looks at the labels where that is possible."""
    # With a start and no generator nothing is drawn from TensorFlow's own.
    fixed = source is None and start is not None
    seed = tf.zeros(2, tf.int32) if fixed else next_seed(source, x)
    if start is None:
        start = draw_start(x, config, seed)

    def label(logits: Tensor) -> Tensor:
        nonlocal check
        if check:  # once: the labels stay the same from step to step
            check_label_values(y, logits.shape[1])
            check = False
        return one_hot(y, logits)

    with attack_state(model, config.attack_mode) as training:
        own, draws = (partial(vjp, model, training), label), Draws(split(seed, MASK))
        found = adversarial(ops, *own, x, config, start, mask, draws)
    return found._replace(x=tf.stop_gradient(found.x))


def outer(
    model: keras.Model, x: Tensor, x_adv: Tensor, y: Tensor, config: SPATConfig
) -> tuple[Tensor, Tensor]:
    """The outer loss of each example (N,) and the logits (N, K) at x', with ``training=True``."""
    clean = None if config.loss == "pgd" else logits_of(model, x, training=True)
    logits = logits_of(model, x_adv, training=True)
    label = one_hot(y, logits)
    return outer_loss(ops, config.loss, config.beta, label, clean, logits), logits


def robust_on(model: keras.Model, x: Tensor, y: Tensor, threat: SPATConfig, source: Any) -> Tensor:
    """(N,) whether the label survives clean, at one start and at the end of PGD from it."""
    return survivors_of(model, x, y, threat, {"pgd": "pgd"}, [next_seed(source, x)])["pgd"]


def survivors_of(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    threat: SPATConfig,
    named: Mapping[str, str],
    seeds: Sequence[Tensor],
) -> dict[str, Tensor]:
    """The verdicts (N,) under every named attack, one seed (2,) per restart."""
    clean = logits_of(model, x)
    batch, starts = (x, clean, one_hot(y, clean)), (draw_start(x, threat, seed) for seed in seeds)
    own = partial(vjp, model, False), partial(logits_of, model)
    return survivors(ops, *own, named, threat, batch, starts)
