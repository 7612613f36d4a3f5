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
    """The values by place and path: names may repeat, and change from one process to the next."""
    return {
        f"{i}": np.array(keras.ops.convert_to_numpy(v.value), order="C")
        for i, v in enumerate(variables)
    }


def put(variables: Sequence[Any], values: Mapping[str, np.ndarray], source: str) -> None:
    """Assign what :func:`named` gave; DataError if the shapes are those of another model."""
    mine = [tuple(v.shape) for v in variables]
    numbered = values.keys() == {str(i) for i in range(len(values))}
    theirs = [values[str(i)].shape for i in range(len(values))] if numbered else []
    if mine != theirs:
        raise DataError(
            source,
            expected=f"weights of this architecture, {len(mine)} arrays",
            received=f"{len(values)} others",
            fix="Build the model as it was trained.",
        )
    for i, variable in enumerate(variables):
        variable.assign(values[str(i)])
