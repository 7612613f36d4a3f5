"""Random draws: stateless Philox, the same numbers eagerly, in a graph and under XLA."""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from . import ops

Tensor = Any
PURPOSES = ("start", "radius", "mask")  # each has a seed of its own


def next_seed(generator: keras.random.SeedGenerator | None, x: Tensor | None = None) -> Tensor:
    """A seed (2,) for the batch x; each replica of a distributed batch gets its own."""
    if generator is None:
        seed = tf.random.uniform((2,), maxval=tf.int32.max, dtype=tf.int32)
    else:
        # Wait for x: where a graph finds no more data, the generator must not move on.
        with tf.control_dependencies([] if x is None else [x]):
            seed = tf.cast(generator.next(), tf.int32)
    context = tf.distribute.get_replica_context()
    return _split(seed, 0 if context is None else context.replica_id_in_sync_group)


def uniform(shape: Any, seed: Tensor, dtype: Any) -> Tensor:
    """Uniform in [0, 1).

    Made of integers: TensorFlow's own floats differ under XLA (tensorflow/tensorflow#117644).
    """
    digits = ops.mantissa_bits(tf.zeros((), dtype))
    whole = tf.uint64 if digits > 32 else tf.uint32
    bits = tf.random.stateless_uniform(shape, seed, None, None, whole, alg="philox")
    kept = tf.bitwise.right_shift(bits, tf.cast(8 * whole.size - digits, whole))
    return tf.cast(kept, dtype) * 2.0**-digits


class Draws(NamedTuple):
    """See :class:`spatlib.core.feasible.Draws`; from a seed (2,)."""

    seed: Tensor

    def uniform(self, like: Tensor, purpose: str) -> Tensor:
        draws = uniform(tf.shape(like), self._of(purpose), like.dtype)
        return tf.ensure_shape(draws, like.shape)

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        # Box and Muller (1958): stateless_normal differs under XLA as well.
        shape = tf.concat([[2], tf.shape(like)], axis=0)
        u = uniform(shape, self._of(purpose), like.dtype)
        draws = tf.sqrt(-2 * tf.math.log1p(-u[0])) * tf.cos(2 * math.pi * u[1])
        return tf.ensure_shape(draws, like.shape)

    def signs(self, label: Tensor, count: int) -> Tensor:
        shape = tf.concat([[count], tf.shape(label)], axis=0)
        return 2 * tf.cast(uniform(shape, self._of("mask"), label.dtype) < 0.5, label.dtype) - 1

    def classes(self, label: Tensor, count: int) -> Tensor:
        classes = int(label.shape[1])
        order = uniform((classes - 1,), self._of("mask"), tf.float32)
        offsets = tf.concat([[0], 1 + tf.math.top_k(order, count - 1).indices], axis=0)
        columns = (tf.range(classes) - offsets[:, None]) % classes
        return tf.transpose(tf.gather(label, columns, axis=1), (1, 0, 2))

    def _of(self, purpose: str) -> Tensor:
        return _split(self.seed, PURPOSES.index(purpose))


def _split(seed: Tensor, number: int | Tensor) -> Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
