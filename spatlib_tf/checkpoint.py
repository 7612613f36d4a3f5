"""Weights of a model as the content of a file, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import safetensors.numpy

from spatlib import tensors
from spatlib.errors import DataError


def weights(model: keras.Model) -> bytes:
    """All weights, as the content of a safetensors file; of a SPATModel, those of its base."""
    return tensors.pack(safetensors.numpy.save, named(base_of(model).weights))


def load_weights(model: keras.Model, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave, into a model of the same architecture."""
    put(base_of(model).weights, tensors.unpack(safetensors.numpy.load, content, source)[0], source)


def base_of(model: keras.Model) -> keras.Model:
    """The bare network of a SPATModel."""
    return getattr(model, "base", model)


def named(variables: Sequence[Any]) -> dict[str, np.ndarray]:
    """The values by position: names may repeat, and change from one process to the next."""
    values = (keras.ops.convert_to_numpy(v.value) for v in variables)
    return {str(i): np.array(value, order="C") for i, value in enumerate(values)}


def put(variables: Sequence[Any], values: Mapping[str, np.ndarray], source: str) -> None:
    """Assign what :func:`named` gave; DataError if the shapes are those of another model."""
    mine = [tuple(v.shape) for v in variables]
    numbered = values.keys() == {str(i) for i in range(len(values))}
    theirs = [values[str(i)].shape for i in range(len(values))] if numbered else []
    if mine != theirs:
        raise DataError(
            f"{source} must hold the {len(mine)} weights of this architecture, got {len(values)} "
            "others: build the model as it was trained"
        )
    for i, variable in enumerate(variables):
        variable.assign(values[str(i)])
