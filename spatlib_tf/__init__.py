"""SPAT in Keras on TensorFlow: a model to ``fit``, and the attack for a loop of your own."""

import keras

from spatlib.errors import BackendError

if keras.backend.backend() != "tensorflow":
    raise BackendError("spatlib_tf", expected="Keras on TensorFlow",
                       received=f"Keras on {keras.backend.backend()}",
                       fix="Set the environment variable KERAS_BACKEND=tensorflow before keras is "
                       "imported.")  # fmt: skip

from .attack import perturb
from .losses import spat_loss
from .mask import shared_mask
from .model import SPATModel

__all__ = ["SPATModel", "perturb", "shared_mask", "spat_loss"]
