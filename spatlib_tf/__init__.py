"""SPAT in Keras on TensorFlow: a model to ``fit``, and the attack for a loop of your own."""

import os

from spatlib.errors import BackendError

try:
    import keras

    if keras.backend.backend() != "tensorflow":
        raise ImportError(f"Keras on {keras.backend.backend()}")
except ImportError as error:  # also where Keras was told to use a framework that is missing
    raise BackendError(
        f"spatlib_tf needs Keras on TensorFlow, got {error}: run pip install tensorflow keras, and "
        f"set KERAS_BACKEND=tensorflow (it is {os.environ.get('KERAS_BACKEND')!r}) before the start"
    ) from error

from .attack import perturb, shared_mask, spat_loss
from .model import SPATModel

__all__ = ["SPATModel", "perturb", "shared_mask", "spat_loss"]
