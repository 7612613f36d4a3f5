"""One batch on its way in: checked, detached, clipped; and logits checked on their way out."""

from typing import Any

import torch
from torch import Tensor, nn

from spatlib import errors
from spatlib.config import Threat
from spatlib.errors import DataError, require

from . import ops


def prepare(
    x: Any, y: Any, threat: Threat, validate: bool, name: str = "x"
) -> tuple[Tensor, Tensor]:
    """The batch detached, usable in autograd, with x clipped to the bounds.

    Shapes and dtypes are always checked, values if ``validate`` (which reads them on the host).
    Errors call x by the name.
    """
    x, y = as_tensor(name, x), as_tensor("y", y)
    errors.check_batch(x, y, name)
    if validate:
        errors.check_range(ops.extremes(x), threat.bounds, name)
    with torch.inference_mode(False), torch.no_grad():
        return ops.clip(x, *threat.bounds), y.long()


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
    logits: Tensor = model(x)
    errors.check_logits(logits, isinstance(logits, Tensor), len(x))
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return logits.clamp(min=errors.RULED_OUT)


def one_hot(y: Tensor, logits: Tensor) -> Tensor:
    """(N, K) in the dtype of the logits, NaN (so that the loss is) where y names no class.

    A comparison, so that no value is read on the host.
    """
    rows = (y[:, None] == torch.arange(logits.shape[1], device=y.device)).to(logits.dtype)
    return rows / rows.sum(dim=1, keepdim=True)  # 0 / 0 is NaN


def check_label_values(y: Tensor, classes: int) -> None:
    """DataError unless all labels name one of the classes."""
    errors.check_labels(ops.extremes(y), classes)


def check_model(model: Any) -> None:
    """ConfigError unless it is a module."""
    require(
        isinstance(model, nn.Module), "model", "be a torch.nn.Module that returns logits", model
    )
