"""A few attacked examples, to look at."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig

from .attack import perturb
from .batches import batches
from .inputs import logits_of, prepare
from .mask import shared_mask


def examples(
    model: keras.Model, data: Any, config: SPATConfig, *, count: int = 8, seed: int = 0
) -> dict[str, Any]:
    """What :func:`spatlib.plots.sheet` shows, of the first ``count`` examples, in NumPy."""
    x, y = next(iter(batches(data, count, config.bounds, model.variable_dtype)))
    x, y = prepare(x[:count], y[:count], config, validate=True)
    mask = shared_mask(model, x, y, config, generator=keras.random.SeedGenerator(seed))
    x_adv = perturb(model, x, y, config, mask=mask, generator=keras.random.SeedGenerator(seed))
    clean, adversarial = (tf.argmax(logits_of(model, z), axis=1) for z in (x, x_adv))
    y = tf.argmax(y, axis=1) if len(y.shape) == 2 else y
    shown = {"x": x, "mask": mask, "x_adv": x_adv, "y": y}
    shown |= {"clean": clean, "adversarial": adversarial}
    return {name: value.numpy() for name, value in shown.items()}


def logits(model: keras.Model, x: Any, batch_size: int = 256) -> Any:
    """See :class:`spatlib.backends.Engine`."""
    parts = (x[k : k + batch_size] for k in range(0, len(x), batch_size))
    cast = (tf.cast(part, model.variable_dtype) for part in parts)
    return tf.concat([logits_of(model, part) for part in cast], axis=0).numpy()
