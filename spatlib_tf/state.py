"""The variables that an attack in training mode moves, put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from spatlib.errors import ConfigError

from .inputs import check_model


@contextmanager
def attack_state(model: keras.Model, mode: str) -> Iterator[bool]:
    """Yield the ``training`` argument for the attack's calls of the model.

    In ``"train"`` mode batch statistics are used and dropout is on; the non-trainable variables
    (BatchNorm's statistics, the states of dropout's generators) come back as they were, also
    after an exception. In ``"eval"`` mode nothing is copied and put back: most layers move nothing
    then, and what one does assign (a stateful RNN, say) stays.
    """
    check_model(model)
    if mode == "eval":
        yield False
        return
    if not model.built:
        raise ConfigError(
            "attack_mode must be 'eval' for a model that is not built yet, got 'train': call the "
            "model on a batch first"
        )
    before = [(v, tf.identity(v.value)) for v in model.non_trainable_variables]
    try:
        yield True
    finally:
        for variable, value in before:
            variable.assign(value)
