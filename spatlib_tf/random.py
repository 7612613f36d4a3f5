"""Random draws: stateless Philox, the same numbers eagerly, in a graph and under XLA."""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from . import ops
from .ops import Tensor

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


class Draws(NamedTuple):
    """See :class:`spatlib.core.feasible.Draws`; from a seed (2,)."""

    seed: Tensor

    def uniform(self, like: Tensor, purpose: str) -> Tensor:
        return tf.ensure_shape(self._uniform(tf.shape(like), purpose, like.dtype), like.shape)

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        # Box and Muller (1958): stateless_normal differs under XLA as well.
        u = self._uniform(tf.concat([[2], tf.shape(like)], axis=0), purpose, like.dtype)
        draws = tf.sqrt(-2 * tf.math.log1p(-u[0])) * tf.cos(2 * math.pi * u[1])
        return tf.ensure_shape(draws, like.shape)

    def signs(self, label: Tensor, count: int) -> Tensor:
        shape = tf.concat([[count], tf.shape(label)], axis=0)
        return 2 * tf.cast(self._uniform(shape, "mask", label.dtype) < 0.5, label.dtype) - 1

    def classes(self, label: Tensor, count: int) -> Tensor:
        classes = int(label.shape[1])
        order = self._uniform((classes - 1,), "mask", tf.float32)
        offsets = tf.concat([[0], 1 + tf.math.top_k(order, count - 1).indices], axis=0)
        columns = (tf.range(classes) - offsets[:, None]) % classes
        return tf.transpose(tf.gather(label, columns, axis=1), (1, 0, 2))

    def _uniform(self, shape: Any, purpose: str, dtype: Any) -> Tensor:
        # Of integers, as TensorFlow's own floats differ under XLA (tensorflow/tensorflow#117644).
        digits = ops.mantissa_bits(tf.zeros((), dtype))
        whole = tf.uint64 if digits > 32 else tf.uint32
        seed = _split(self.seed, PURPOSES.index(purpose))
        bits = tf.random.stateless_uniform(shape, seed, None, None, whole, alg="philox")
        kept = tf.bitwise.right_shift(bits, tf.cast(8 * whole.size - digits, whole))
        return tf.cast(kept, dtype) * 2.0**-digits


def _split(seed: Tensor, number: int | Tensor) -> Tensor:
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
