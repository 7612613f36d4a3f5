"""One batch on its way in: checked, detached, clipped; and logits checked on their way out."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spatlib import errors as checks
from spatlib.config import Threat
from spatlib.errors import ConfigError, DataError

from . import ops


def prepare(
    x: Any, y: Any, threat: Threat, validate: bool, name: str = "x"
) -> tuple[Tensor, Tensor]:
    """The batch detached, usable in autograd, with x clipped to the bounds.

    Shapes and dtypes are always checked, values if ``validate`` (which reads them on the host).
    Errors call x by the name.
    """
    check_tensor(name, x)
    check_tensor("y", y)
    y_is_integer = not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    labels = y.shape, y.dtype, y_is_integer
    checks.check_batch(x.shape, x.dtype, x.is_floating_point(), *labels, name)
    if validate:
        low, high = torch.stack(torch.aminmax(x.detach())).tolist()
        checks.check_range(low, high, threat.bounds, name)
    # Tensors made in inference mode cannot be saved for a backward pass; copies can.
    with torch.inference_mode(False), torch.no_grad():
        x, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
        return ops.clip(x, *threat.bounds), y.long()


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    logits = model(x)
    if not isinstance(logits, Tensor):
        raise DataError(
            f"model must return a tensor of logits, got {type(logits).__name__}: wrap it in a "
            "module that returns its logits only"
        )
    checks.check_logits(logits.shape, len(x))
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits.clamp(min=checks.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """(N, K) in the dtype of the logits, NaN for a label that names no class.

    Comparisons, so that no value is read on the host. NaN makes the loss NaN.
    """
    classes = torch.arange(logits.shape[1], device=y.device)
    known = (y >= 0) & (y < logits.shape[1])
    rows = (y[:, None] == classes).to(logits.dtype)
    return torch.where(known[:, None], rows, math.nan)


def check_label_values(y: Tensor, classes: int) -> None:
    """Raise DataError unless all labels name one of the classes."""
    low, high = torch.stack(torch.aminmax(y)).tolist()
    checks.check_labels(low, high, classes)


def check_model(model: Any) -> None:
    """Raise ConfigError unless it is a module."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"model must be a torch.nn.Module that returns logits, got {kind}")


def check_tensor(name: str, value: Any) -> None:
    """Raise DataError unless it is a tensor."""
    if not isinstance(value, Tensor):
        kind = type(value).__name__
        raise DataError(f"{name} must be a torch.Tensor, got {kind}: convert it by torch.as_tensor")


def check_graph(logits: Tensor) -> None:
    """Raise DataError unless a gradient can be taken of the logits."""
    if not logits.requires_grad:
        raise DataError(
            "model must return logits that depend on its input through autograd: remove no_grad, "
            "detach or item from its forward"
        )


def check_start(start: Tensor, x: Tensor, validate: bool) -> Tensor:
    """The start in the dtype of x; DataError unless it broadcasts to x and holds numbers."""
    check_tensor("start", start)
    checks.check_same_shape("start", start.shape, x.shape)
    if validate and not bool(start.isfinite().all()):
        raise DataError("start must be finite, got NaN or infinity: look at where it comes from")
    return start.detach().to(x.dtype)


def check_budget(mask: Tensor, x: Tensor, validate: bool) -> Tensor:
    """The mask in the dtype of x; DataError unless it broadcasts to x and holds shares of eps."""
    check_tensor("mask", mask)
    checks.check_same_shape("mask", mask.shape, x.shape)
    if validate and not bool(((mask >= 0) & (mask <= 1)).all()):
        raise DataError("mask must be in [0, 1], each pixel's share of eps, got others or NaN")
    return mask.detach().to(x.dtype)
