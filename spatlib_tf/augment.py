"""Random crops and flips of a training batch."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spatlib.train_config import PADDING

Tensor = Any


def augment(x: Tensor, kind: str, lower: float, seed: Tensor) -> Tensor:
    """Each image shifted, and mirrored or not, by a draw of its own; see ``TrainConfig.augment``.

    Args:
        x: Images (N, H, W, C).
        kind: ``"crop"``, ``"crop-flip"`` or ``"none"``.
        lower: What is around the images.
        seed: Integers (2,); decides the draws.
    """
    if kind == "none":
        return x
    side = 2 * PADDING + 1
    n, height, width = tf.unstack(tf.shape(x)[:3])
    versions = side**2 * (2 if kind == "crop-flip" else 1)
    version = tf.random.stateless_uniform([n, 1], seed, 0, versions, tf.int32, alg="philox")
    across, down = version % side, version // side % side
    columns = tf.range(width)
    columns = across + tf.where(version < side**2, columns, columns[::-1])
    rows = down + tf.range(height)
    padded = tf.pad(x, [[0, 0], [PADDING] * 2, [PADDING] * 2, [0, 0]], constant_values=lower)
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.ensure_shape(tf.gather(cropped, columns, axis=2, batch_dims=1), x.shape)
