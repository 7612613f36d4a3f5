"""The backends under test: everything that a property needs to know of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from spatlib.core.ops import Ops

from . import record


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
        record.saw_dtypes(args)
        native = [self.array(a) if isinstance(a, np.ndarray) else a for a in args]
        with np.errstate(divide="raise", invalid="raise"):  # no NaN on the way either
            result = function(self.ops, *native, **kwargs)
        if isinstance(result, tuple):
            return tuple(self.numpy(part) for part in result)
        return self.numpy(result)


def _numpy() -> Backend:
    from spatlib.core import numpy_ops

    return Backend("numpy", numpy_ops, np.asarray, np.asarray)


def _torch() -> Backend:
    import torch

    from spatlib_torch import ops

    return Backend("torch", ops, torch.as_tensor, lambda x: x.detach().numpy())


def _tf() -> Backend:
    import tensorflow as tf

    from spatlib_tf import ops

    return Backend("tf", ops, tf.convert_to_tensor, lambda x: x.numpy(), flushes_subnormals=True)


def _toy() -> Backend:
    from spatlib_toy import ops

    return Backend("toy", ops, np.asarray, np.asarray)


# Made when first asked for, so that a run for one backend loads no other framework.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "numpy": cache(_numpy),
    "torch": cache(_torch),
    "tf": cache(_tf),
    "toy": cache(_toy),
}
