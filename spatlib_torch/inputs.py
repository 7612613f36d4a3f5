"""One batch on its way in: checked, detached, clipped; and logits checked on their way out."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from spatlib import errors
from spatlib.config import Threat
from spatlib.errors import ConfigError, expect

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
    errors.check_batch(x, y, name)
    if validate:
        errors.check_range(ops.extremes(x), threat.bounds, name)
    # Tensors made in inference mode cannot be saved for a backward pass; copies can.
    with torch.inference_mode(False), torch.no_grad():
        x, y = (t.clone() if t.is_inference() else t.detach() for t in (x, y))
        return ops.clip(x, *threat.bounds), y.long()


def given(name: str, value: Tensor | None, x: Tensor, validate: bool) -> Tensor | None:
    """A "start" or "mask" in the dtype of x, checked likewise; None stays None."""
    if value is None:
        return None
    check_tensor(name, value)
    errors.check_same_shape(name, value, x)
    bounds, advice = errors.GIVEN[name]
    if validate:
        errors.check_range(ops.extremes(value), bounds, name, advice)
    return ops.clip(value.detach().to(x.dtype), *bounds)


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits (N, K), in float32 at least, checked for shape; -inf becomes -1e9."""
    logits = model(x)
    kind = type(logits).__name__
    expect(isinstance(logits, Tensor), f"model must return a tensor of logits, got {kind}: wrap it")
    errors.check_logits(logits.shape, len(x))
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    found: Tensor = logits.clamp(min=errors.RULED_OUT)
    return found


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """(N, K) in the dtype of the logits, NaN for a label that names no class.

    Comparisons, so that no value is read on the host. NaN makes the loss NaN.
    """
    classes = torch.arange(logits.shape[1], device=y.device)
    known = (y >= 0) & (y < logits.shape[1])
    rows = (y[:, None] == classes).to(logits.dtype)
    return torch.where(known[:, None], rows, math.nan)


def check_label_values(y: Tensor, classes: int) -> None:
    """DataError unless all labels name one of the classes."""
    errors.check_labels(ops.extremes(y), classes)


def check_model(model: Any) -> None:
    """ConfigError unless it is a module."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError(f"model must be a torch.nn.Module that returns logits, got {kind}")


def check_tensor(name: str, value: Any) -> None:
    """DataError unless it is a tensor."""
    kind, advice = type(value).__name__, "convert it by torch.as_tensor"
    expect(isinstance(value, Tensor), f"{name} must be a torch.Tensor, got {kind}: {advice}")
