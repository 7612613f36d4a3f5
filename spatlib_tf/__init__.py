"""SPAT in Keras on TensorFlow: a model to ``fit``, and the attack for a loop of your own."""

import os

from spatlib.errors import BackendError

_asked = os.environ.get("KERAS_BACKEND", "tensorflow")
try:
    import keras
except ImportError as error:  # also where Keras was told to use a framework that is missing
    raise BackendError(
        f"spatlib_tf needs Keras on TensorFlow, got {error}: run pip install tensorflow keras, and "
        f"set KERAS_BACKEND=tensorflow (it is {_asked!r})"
    ) from error

if keras.backend.backend() != "tensorflow":
    raise BackendError(
        f"spatlib_tf needs Keras on TensorFlow, got Keras on {keras.backend.backend()}: set the "
        "environment variable KERAS_BACKEND=tensorflow before keras is imported"
    )

from .attack import perturb, shared_mask, spat_loss
from .model import SPATModel

__all__ = ["SPATModel", "perturb", "shared_mask", "spat_loss"]
