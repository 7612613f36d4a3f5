"""The core's primitives in PyTorch; see :mod:`spatlib.core.ops`."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

CHANNEL_AXIS = 1

abs, sign, sqrt, exp, log = torch.abs, torch.sign, torch.sqrt, torch.exp, torch.log
where, clip, sum, max = torch.where, torch.clamp, torch.sum, torch.amax
detach = torch.Tensor.detach
log_softmax, logsumexp = partial(torch.log_softmax, dim=-1), partial(torch.logsumexp, dim=-1)


def minimum(x: Tensor, y: Tensor | float) -> Tensor:
    return torch.clamp(x, max=y)


def maximum(x: Tensor, y: Tensor | float) -> Tensor:
    return torch.clamp(x, min=y)


def cast(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def argmax_one_hot(x: Tensor) -> Tensor:
    classes = torch.arange(x.shape[-1], device=x.device)  # one_hot reads values on the host
    return (x.argmax(dim=-1, keepdim=True) == classes).to(x.dtype)


def kth_largest(x: Tensor, k: int) -> Tensor:
    kth = torch.topk(x.flatten(1), k, dim=1, sorted=False).values.amin(dim=1)
    return kth.reshape(-1, *(1,) * (x.ndim - 1))


def repeat(
    body: Callable[..., Any], times: int, state: Any, done: Any = None
) -> tuple[Tensor, ...]:
    # Reading done would wait for a GPU and break a graph: stop early on the CPU only.
    compiling = torch.compiler.is_compiling()
    asks = done is not None and not compiling and state[0].device.type == "cpu"
    for _ in range(times):
        if asks and bool(done(*state).all()):
            break
        state = body(*state)
    return state  # type: ignore[no-any-return]


def mantissa_bits(x: Tensor) -> int:
    return 1 - round(math.log2(torch.finfo(x.dtype).eps))


def extremes(x: Tensor) -> list[float]:
    """The lowest and the highest value, read on the host: NaN if there is one."""
    return torch.stack(torch.aminmax(x.detach())).tolist()
