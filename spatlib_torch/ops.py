"""PyTorch's primitives: of arrays (:mod:`spatlib.core.ops`) and of batches, in and out."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from spatlib import errors
from spatlib.config import Threat
from spatlib.errors import DataError, require

CHANNEL_AXIS = 1

abs, sign, sqrt, exp, log = torch.abs, torch.sign, torch.sqrt, torch.exp, torch.log
where, sum, max = torch.where, torch.sum, torch.amax
clip, minimum, maximum = torch.clamp, torch.clamp_max, torch.clamp_min
detach, mean, argmax = torch.Tensor.detach, torch.mean, partial(torch.argmax, dim=-1)
log_softmax, logsumexp = partial(torch.log_softmax, dim=-1), partial(torch.logsumexp, dim=-1)


def take(x: Tensor, rows: Any) -> Tensor:
    return x[torch.as_tensor(rows, device=x.device)]


def cast(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def widen(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def argmax_one_hot(x: Tensor) -> Tensor:
    return one_hot(x.argmax(dim=1), x)


def kth_largest(x: Tensor, k: int) -> Tensor:
    kth = torch.topk(x.flatten(1), k, dim=1, sorted=False).values.amin(dim=1)
    return kth.reshape(-1, *(1,) * (x.ndim - 1))


def repeat(
    body: Callable[..., Any], times: int, state: Any, done: Any = None
) -> tuple[Tensor, ...]:
    # Reading done would wait for a GPU and break a graph: stop early on the CPU only.
    asks = done is not None and state[0].is_cpu and not torch.compiler.is_compiling()
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


def prepare(
    x: Any, y: Any, threat: Threat, validate: bool, name: str = "x"
) -> tuple[Tensor, Tensor]:
    """The batch, usable in autograd, x clipped; values are looked at only if ``validate``."""
    x, y = as_tensor(name, errors.only(x, name)), as_tensor("y", y)
    errors.check_batch(x, y, name)
    if validate:
        errors.check_range(extremes(x), threat.bounds, name)
    with torch.inference_mode(False), torch.no_grad():
        kind = torch.int64 if y.ndim == 1 else torch.promote_types(y.dtype, torch.float32)
        return clip(x, *threat.bounds), y.to(kind)


def as_tensor(name: str, value: Any) -> Tensor:
    """The tensor, detached, and usable in autograd; DataError if it is none."""
    if not isinstance(value, Tensor):
        kind, advice = type(value).__name__, "convert it by torch.as_tensor"
        raise DataError(f"{name} must be a torch.Tensor, got {kind}: {advice}")
    # Tensors made in inference mode cannot be saved for a backward pass; copies can.
    with torch.inference_mode(False), torch.no_grad():
        return value.clone() if value.is_inference() else value.detach()


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    logits: Tensor = errors.logits_in(model(x), torch.is_tensor, len(x))
    return widen(logits).clamp(min=errors.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """Of class indices (N,): (N, K) in the dtype of the logits, zeros where y names no class."""
    # torch's own would read the values on the host.
    return (y[:, None] == torch.arange(logits.shape[1], device=y.device)).to(logits.dtype)


def check_model(model: Any, name: str = "model") -> None:
    """ConfigError unless it is a module that autograd can go through."""
    what, known = "be a torch.nn.Module that returns logits", isinstance(model, nn.Module)
    require(known, name, what, model)
    kinds = [kind for module in model.modules() for kind in type(module).__mro__]
    fsdp = {"FSDPModule", "FullyShardedDataParallel"} & {kind.__name__ for kind in kinds}
    require(not fsdp, name, f"{what}, whole (FSDP is not supported)", fsdp)
    foreign = any(kind.__module__.partition(".")[0] == "keras" for kind in kinds)
    how = "not of Keras, whose BatchNorm would not move here (run Keras on TensorFlow)"
    require(not foreign, name, f"{what}, {how}", type(model).__name__)
    made = any(p.is_inference() for p in model.parameters() if not is_lazy(p))
    require(not made, name, f"{what}, made outside torch.inference_mode", type(model).__name__)
