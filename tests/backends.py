"""The backends under test: everything that a property needs to know of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import torch

import spatlib_tf.ops
import spatlib_torch.ops
from spatlib.core import numpy_ops
from spatlib.core.ops import Ops


@dataclass(frozen=True)
class Backend:
    """A framework's primitives, and the way of an array in and out."""

    name: str
    ops: Ops
    array: Callable[[np.ndarray], Any]
    numpy: Callable[[Any], np.ndarray]
    flushes_subnormals: bool = False

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``function(ops, ...)`` with NumPy arrays in and out (also inside tuples)."""
        native = [self.array(a) if isinstance(a, np.ndarray) else a for a in args]
        result = function(self.ops, *native, **kwargs)
        if isinstance(result, tuple):
            return tuple(self.numpy(part) for part in result)
        return self.numpy(result)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("numpy", numpy_ops, np.asarray, np.asarray),
        Backend("torch", spatlib_torch.ops, torch.as_tensor, lambda x: x.detach().numpy()),
        Backend(
            "tf", spatlib_tf.ops, tf.convert_to_tensor, lambda x: x.numpy(), flushes_subnormals=True
        ),
    )
}
