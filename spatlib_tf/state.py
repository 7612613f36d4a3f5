"""The variables that an attack in training mode moves, put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from spatlib.errors import require

from .inputs import check_model


@contextmanager
def attack_state(model: keras.Model, mode: str) -> Iterator[bool]:
    """Yield the ``training`` argument for the attack's calls of the model.

    In ``"train"`` mode the non-trainable variables (BatchNorm's, dropout's) come back as they were,
    also after an exception; in ``"eval"`` mode what a layer assigns (a stateful RNN, say) stays.
    """
    check_model(model)
    train, what = mode == "train", "be 'eval' until the model was called on a batch"
    require(model.built or not train, "attack_mode", what, mode)
    before = [(v, tf.identity(v.value)) for v in model.non_trainable_variables if train]
    try:
        yield train
    finally:
        for variable, value in before:
            variable.assign(value)
