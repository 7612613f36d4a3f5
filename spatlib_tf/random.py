"""Random draws: stateless Philox, the same numbers eagerly, in a graph and under XLA."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core.feasible import GAUSSIAN_START, uniform_in_ball
from spatlib.errors import check_mask_classes

from . import ops

Tensor = Any
START, RADIUS, MASK = range(3)  # what a seed is split into, so that no draw touches another's


def next_seed(generator: keras.random.SeedGenerator | None, x: Tensor | None = None) -> Tensor:
    """A seed (2,) for the batch x; each replica of a distributed batch gets its own."""
    if generator is None:
        seed = tf.random.uniform((2,), maxval=tf.int32.max, dtype=tf.int32)
    else:
        # Wait for x: where a graph finds no more data, the generator must not move on.
        with tf.control_dependencies([] if x is None else [x]):
            seed = tf.cast(generator.next(), tf.int32)
    context = tf.distribute.get_replica_context()
    return split(seed, 0 if context is None else context.replica_id_in_sync_group)


def split(seed: Tensor, purpose: int | Tensor) -> Tensor:
    """The seed (2,) for one purpose."""
    return tf.random.experimental.stateless_fold_in(seed, purpose, alg="philox")


def uniform(shape: Any, seed: Tensor, dtype: Any) -> Tensor:
    """Uniform in [0, 1), from integers: TensorFlow's own floats differ under XLA (its #117644)."""
    digits = ops.mantissa_bits(tf.zeros((), dtype))
    whole = tf.uint64 if digits > 32 else tf.uint32
    bits = tf.random.stateless_uniform(shape, seed, None, None, whole, alg="philox")
    kept = tf.bitwise.right_shift(bits, tf.cast(8 * whole.size - digits, whole))
    return tf.cast(kept, dtype) * 2.0**-digits


def normal(shape: Any, seed: Tensor, dtype: Any) -> Tensor:
    """Standard normal, by Box and Muller (1958): stateless_normal differs under XLA as well."""
    u = uniform(tf.concat([[2], shape], axis=0), seed, dtype)
    return tf.sqrt(-2 * tf.math.log1p(-u[0])) * tf.cos(2 * math.pi * u[1])


def draw_start(x: Tensor, config: SPATConfig, seed: Tensor) -> Tensor:
    """The start before projection."""
    if config.random_start == "none":
        return tf.zeros_like(x)
    shape, here = tf.shape(x), split(seed, START)
    if config.random_start == "gaussian":
        return GAUSSIAN_START * normal(shape, here, x.dtype)
    draws = (normal if config.norm == "L2" else uniform)(shape, here, x.dtype)
    one_each = tf.concat([shape[:1], tf.ones_like(shape[1:])], axis=0)
    radius = uniform(one_each, split(seed, RADIUS), x.dtype)
    return uniform_in_ball(ops, tf.ensure_shape(draws, x.shape), radius, config.eps, config.norm)


class Draws(NamedTuple):
    """What a mask draws, from a seed (2,); see :class:`spatlib.core.mask.Draws`."""

    seed: Tensor

    def classes(self, label: Tensor, count: int) -> Tensor:
        classes = int(label.shape[1])
        check_mask_classes(count, classes)
        order = tf.math.top_k(uniform((classes - 1,), self.seed, tf.float32), count - 1).indices
        offsets = tf.concat([[0], 1 + order], axis=0)
        columns = (tf.range(classes) - offsets[:, None]) % classes
        return tf.transpose(tf.gather(label, columns, axis=1), (1, 0, 2))

    def signs(self, label: Tensor, count: int) -> Tensor:
        shape = tf.concat([[count], tf.shape(label)], axis=0)
        return 2 * tf.cast(uniform(shape, self.seed, label.dtype) < 0.5, label.dtype) - 1

    def noise(self, like: Tensor) -> Tensor:
        return tf.ensure_shape(uniform(tf.shape(like), self.seed, like.dtype), like.shape)
