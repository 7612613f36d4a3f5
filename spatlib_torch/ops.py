"""The core's primitives in PyTorch; see :mod:`spatlib.core.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from spatlib.core.ops import Axes

CHANNEL_AXIS = 1

abs, sign, sqrt, where = torch.abs, torch.sign, torch.sqrt, torch.where
exp, log = torch.exp, torch.log


def clip(x: Tensor, lower: Tensor | float, upper: Tensor | float) -> Tensor:
    return torch.clamp(x, lower, upper)  # type: ignore[arg-type]  # both numbers or both tensors


def minimum(x: Tensor, y: Tensor | float) -> Tensor:
    return torch.clamp(x, max=y)


def maximum(x: Tensor, y: Tensor | float) -> Tensor:
    return torch.clamp(x, min=y)


def sum(x: Tensor, axis: Axes, keepdims: bool = False) -> Tensor:
    return torch.sum(x, dim=axis, keepdim=keepdims)


def max(x: Tensor, axis: Axes, keepdims: bool = False) -> Tensor:
    return torch.amax(x, dim=axis, keepdim=keepdims)


def cast(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def log_softmax(x: Tensor) -> Tensor:
    return functional.log_softmax(x, dim=-1)


def logsumexp(x: Tensor) -> Tensor:
    return torch.logsumexp(x, dim=-1)


def argmax_one_hot(x: Tensor) -> Tensor:
    classes = torch.arange(x.shape[-1], device=x.device)  # one_hot reads values on the host
    return (x.argmax(dim=-1, keepdim=True) == classes).to(x.dtype)


def kth_largest(x: Tensor, k: int) -> Tensor:
    kth = torch.topk(x.flatten(1), k, dim=1, sorted=False).values.amin(dim=1)
    return kth.reshape(-1, *(1,) * (x.ndim - 1))


def repeat(
    body: Callable[..., tuple[Tensor, ...]],
    times: int,
    state: tuple[Tensor, ...],
    done: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, ...]:
    # Reading done would wait for a GPU and break a graph: stop early on the CPU only.
    asks = done is not None and not torch.compiler.is_compiling()
    free = asks and state[0].device.type == "cpu"
    for _ in range(times):
        if free and done is not None and bool(done(*state).all()):
            break
        state = body(*state)
    return state


def mantissa_bits(x: Tensor) -> int:
    return 1 - round(math.log2(torch.finfo(x.dtype).eps))
