"""The training attack, the mask and the loss in Keras: the core over gradient tapes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core import mask as core
from spatlib.core.attack import Adversarial, adversarial, survivors
from spatlib.core.target import outer_loss
from spatlib.errors import check_same_shape, expect, require_type

from . import ops
from .inputs import as_tensor, check_label_values, given, logits_of, one_hot, prepare
from .random import Draws, next_seed
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
        gradient = tape.gradient(logits, x, output_gradients=cotangent)
        expect(
            gradient is not None,
            "model must return logits that TensorFlow can differentiate by its input: remove "
            "stop_gradient or numpy from its call",
        )
        return tf.ensure_shape(gradient, x.shape)  # some layers' gradients forget it in a graph

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
    """The training-time adversarial examples x' of a batch, as :func:`spatlib_torch.perturb`.

    Args:
        model: Gives logits (N, K) for inputs (N, ...), called with ``training=False``.
        x: Floats in ``config.bounds``, (N, D), (N, L, C) or (N, H, W, C).
        y: Integer labels (N,) or (N, 1), or one-hot (N, K).
        config: Threat model and method.
        start, mask: First perturbation, in the units of x, and budget per pixel in [0, 1], both
            broadcastable to x; default: drawn, and :func:`shared_mask`.
        generator: Source of start and mask; default TensorFlow's own, which stays untouched if
            there is a start (a mask is then always drawn alike).
        validate: Check values too (not inside a tf.function).

    Returns:
        x' with the shape and dtype of x; x' - x is in the feasible set and exactly 0 where the
        mask is 0. No gradient flows through it.

    Raises:
        ConfigError, DataError: What was expected, what came, what to do.
    """
    x, y = _prepared(x, y, config, validate)
    own = {name: given(name, t, x, validate) for name, t in (("start", start), ("mask", mask))}
    return attacked(model, x, y, config, **own, source=generator, check=validate).x


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
    """The loss to differentiate in a loop of your own, inside your tape: a scalar.

    As :func:`spatlib_torch.spat_loss`, with ``training=True`` in the outer passes. An eager tape
    around it also holds on to the attack's tensors: wrap the step in a tf.function, or call
    :func:`perturb` before the tape and pass ``x_adv``.
    """
    x, y = _prepared(x, y, config, validate)
    if x_adv is None:
        x_adv = attacked(model, x, y, config, source=generator, check=validate).x
    else:
        x_adv = as_tensor("x_adv", x_adv)
        check_same_shape("x_adv", x_adv, x)
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
    """The budget of every pixel, as :func:`spatlib_torch.shared_mask`, with one channel:

    (N, D), (N, L, 1) or (N, H, W, 1) of values in {floor, 1}. Arguments are those of
    :func:`perturb`.
    """
    x, y = _prepared(x, y, config, validate)
    if config.mask is None or not config.masked:
        return tf.ones_like(x[..., :1] if len(x.shape) > 2 else x)
    with _attacking(model, y, config, validate) as own:
        return core.shared_mask(ops, x, *own, config.mask, Draws(next_seed(generator)))[0]


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
    draws = Draws(tf.zeros(2, tf.int32) if fixed else next_seed(source, x))
    with _attacking(model, y, config, check) as own:
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
    own = partial(vjp, model, False), partial(logits_of, model)
    batch = x, clean, one_hot(y, clean)
    return survivors(ops, *own, named, threat, batch, map(Draws, seeds))


@contextmanager
def _attacking(
    model: keras.Model, y: Tensor, config: SPATConfig, check: bool
) -> Iterator[tuple[Callable[..., Any], Callable[[Tensor], Tensor]]]:
    """The primitive and the labels that the core asks for, while the model is set up for them."""

    def label(logits: Tensor) -> Tensor:
        nonlocal check
        if check:  # once: the labels stay the same from step to step
            check_label_values(y, logits.shape[1])
            check = False
        return one_hot(y, logits)

    with attack_state(model, config.attack_mode) as training:
        yield partial(vjp, model, training), label


def _prepared(x: Any, y: Any, config: SPATConfig, validate: bool) -> tuple[Tensor, Tensor]:
    require_type("config", config, SPATConfig)
    return prepare(x, y, config, validate)
