"""The training attack, the mask and the loss in Keras: the core over gradient tapes."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core.calls import Calls, alone
from spatlib.errors import expect, require

from . import ops
from .ops import Tensor

PURPOSES = ("start", "radius", "mask", "augment")  # of a draw: each has a seed of its own


def vjp(
    model: keras.Model, training: bool, x: Tensor, *, many: bool = False
) -> tuple[Tensor, Callable[..., Tensor]]:
    """The logits at x, and the map, once or ``many`` times, from cotangent to gradient in x."""
    with tf.GradientTape(persistent=many, watch_accessed_variables=False) as tape:
        tape.watch(x)
        logits = ops.logits_of(model, x, training=training)

    def pull(cotangent: Tensor) -> Tensor:
        gradient = tape.gradient(logits, x, output_gradients=cotangent)
        what = "model must return logits that TensorFlow can follow to its input"
        expect(gradient is not None, f"{what}: remove stop_gradient or numpy from its call")
        return tf.ensure_shape(gradient, x.shape)  # some layers' gradients forget it in a graph

    return tf.stop_gradient(logits), pull


def next_seed(generator: keras.random.SeedGenerator | None, x: Tensor | None = None) -> Tensor:
    """A seed (2,) for the batch x, of all replicas if it is distributed."""
    if generator is None:
        return tf.random.uniform((2,), maxval=tf.int32.max, dtype=tf.int32)
    # Wait for x: where a graph finds no more data, the generator must not move on.
    with tf.control_dependencies([] if x is None else [x]):
        return tf.cast(generator.next(), tf.int32)


class Draws(NamedTuple):
    """See :class:`spatlib.core.feasible.Draws`; alike eagerly, in a graph and under XLA."""

    seed: Tensor  # (2,), for stateless Philox

    def uniform(self, like: Tensor, purpose: str) -> Tensor:
        # Of integers, as TensorFlow's own floats differ under XLA (tensorflow/tensorflow#117644).
        digits = ops.mantissa_bits(like)
        whole = tf.uint64 if like.dtype == tf.float64 else tf.uint32
        bits = self._rows(tf.shape(like), purpose, None, None, whole)
        kept = tf.bitwise.right_shift(bits, tf.cast(8 * whole.size - digits, whole))
        return tf.ensure_shape(tf.cast(kept, like.dtype) * 2.0**-digits, like.shape)

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        # Box and Muller (1958): stateless_normal differs under XLA as well.
        u, v = tf.unstack(self.uniform(tf.stack([like, like], 1), purpose), axis=1)
        return tf.sqrt(-2 * tf.math.log1p(-u)) * tf.cos(math.tau * v)

    def signs(self, label: Tensor, count: int) -> Tensor:
        signs = 1 - 2 * tf.floor(2 * self.uniform(tf.stack([label] * count, 1), "mask"))
        return tf.transpose(signs, (1, 0, 2))

    def classes(self, label: Tensor, count: int) -> Tensor:
        classes = int(label.shape[1])
        order = self._integers([classes - 1], "mask", 0, tf.int32.max, tf.int32)
        offsets = tf.pad(1 + tf.math.top_k(order, count - 1).indices, [[1, 0]])
        columns = (tf.range(classes) - offsets[:, None]) % classes
        return tf.transpose(tf.gather(label, columns, axis=1), (1, 0, 2))

    def versions(self, x: Tensor, count: int) -> Tensor:
        """One of 0 to count - 1 for each example, (N, 1)."""
        return self._rows([tf.shape(x)[0], 1], "augment", 0, count, tf.int32)

    def _rows(self, shape: Any, *how: Any) -> Tensor:
        """Drawn for replicas with as many rows each, of which this one takes its own."""
        context = tf.distribute.get_replica_context()
        if context is None or context.num_replicas_in_sync == 1:
            return self._integers(shape, *how)
        drawn = self._integers(tf.concat([[context.num_replicas_in_sync], shape], 0), *how)
        return drawn[context.replica_id_in_sync_group]

    def _integers(self, shape: Any, purpose: str, low: Any, high: Any, dtype: Any) -> Tensor:
        number, fold = PURPOSES.index(purpose), tf.random.experimental.stateless_fold_in
        seed = fold(self.seed, number, alg="philox")
        return tf.random.stateless_uniform(shape, seed, low, high, dtype, alg="philox")


@contextmanager
def unmoved(model: keras.Model, foreign: bool = False) -> Iterator[None]:
    """Put back what layers assign when called (``foreign`` code: all); other threads wait."""
    with alone(model):
        variables = model.variables if foreign else model.non_trainable_variables
        before = [(v, tf.identity(v.value)) for v in variables]
        try:
            yield
        finally:
            for variable, value in before:
                variable.assign(value)


@contextmanager
def _attacking(
    model: keras.Model, x: Tensor, config: SPATConfig, source: Any, start: Any
) -> Iterator[tuple[Callable[..., Any], Draws]]:
    train = config.attack_mode == "train"
    what = "be 'eval' until the model was called on a batch"
    require(model.built or not train, "attack_mode", what, config.attack_mode)
    # With a start and no generator nothing is drawn from TensorFlow's own.
    fixed = source is None and start is not None
    seed = tf.zeros(2, tf.int32) if fixed else next_seed(source, x)
    with unmoved(model):
        yield partial(vjp, model, train), Draws(seed)


def _averages(optimizer: keras.optimizers.Optimizer, weights: list[Any]) -> list[Tensor]:
    """Those of the weights that the optimizer keeps, before its first update the weights."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    if not optimizer.built:
        optimizer.build(weights)
    found = [v for v in optimizer.variables if v.path.endswith("average")]
    what = "have use_ema=True for rectify, which reads averaged weights"
    require(len(found) == len(weights), "optimizer", what, optimizer.name)
    first = optimizer.iterations == 0
    return [tf.where(first, *pair) for pair in zip(weights, found, strict=True)]


def averaged(network: keras.Model, x: Tensor, optimizer: Any = None) -> Tensor:
    """Its logits in inference mode, without gradient; of the averages that ``optimizer`` keeps."""
    own = None if optimizer is None else _averages(optimizer, network.trainable_weights)

    def read(x: Tensor, training: bool) -> Tensor:
        if own is None:
            return network(x, training=training)
        return network.stateless_call(own, network.non_trainable_variables, x, training=training)[0]

    with unmoved(network):
        return tf.stop_gradient(ops.logits_of(read, x))


_calls = Calls(ops, _attacking, partial(ops.logits_of, training=True), averaged)
attacked, outer = _calls.attacked, _calls.outer


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

    No gradient flows through them. Raises ConfigError, DataError.

    Args:
        model: Gives logits (N, K) for inputs (N, ...), called with ``training=False`` (or True, as
            ``config.attack_mode`` says, once it was called on a batch).
        x: Floats in ``config.bounds``, (N, D), (N, L, C) or (N, H, W, C).
        y: Class indices (N,) or (N, 1), or rows (N, K), one-hot or soft labels.
        config: Threat model and method.
        start, mask: First perturbation, in the units of x, and budget per pixel in [0, 1], both
            broadcastable to x; default: drawn, and :func:`shared_mask`.
        generator: Source of start and mask; default TensorFlow's own, which stays untouched if
            there is a start (a mask is then always drawn alike).
        validate: Check values too (not inside a tf.function).
    """
    batch, validate = (model, x, y, config), validate and tf.executing_eagerly()
    return _calls.perturb(batch, start, mask, generator, validate)


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator]
def spat_loss(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    x_adv: Tensor | None = None,
    weights: Tensor | None = None,
    average: keras.Model | None = None,
    reduction: str = "mean",
    generator: keras.random.SeedGenerator | None = None,
    validate: bool = True,
) -> Tensor:
    """The loss to differentiate in a loop of your own, inside your tape: a scalar.

    As :func:`spatlib_torch.spat_loss`, with ``training=True`` in the outer passes. An eager tape
    around it also holds on to the attack's tensors: wrap the step in a tf.function, or call
    :func:`perturb` before the tape and pass ``x_adv``.
    """
    batch, validate = (model, x, y, config), validate and tf.executing_eagerly()
    return _calls.spat_loss(batch, (x_adv, weights, average), reduction, generator, validate)


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
    """The budget of every pixel, (N, D), (N, L, 1) or (N, H, W, 1), for :func:`perturb`.

    Its arguments are those of :func:`perturb`, all else is as in :func:`spatlib_torch.shared_mask`.
    """
    return _calls.shared_mask((model, x, y, config), generator, validate and tf.executing_eagerly())
