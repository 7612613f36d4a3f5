"""BatchNorm in inference mode as a product and a sum per channel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def as_affine(model: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers in inference mode multiply and add until the end of the block.

    On a CPU only, where PyTorch's kernels for it take a fifth of a training step
    (docs/performance.md). Layers with a forward of their own, inputs of another precision and
    compiled networks are left to PyTorch.
    """
    found = _terms(model)
    if found and is_compiled(model):
        found = {}
    for layer, terms in found.items():
        vars(layer)["forward"] = partial(_affine, layer, *terms)
    try:
        yield
    finally:
        for layer in found:
            del vars(layer)["forward"]


def is_compiled(model: nn.Module) -> bool:
    """Whether a module holds compiled code, which every replaced forward would compile again."""
    return any(
        hasattr(value, "_torchdynamo_orig_callable")
        for module in model.modules()
        for value in (*vars(module).values(), *vars(type(module)).values())
    )


def _terms(model: nn.Module) -> dict[_BatchNorm, tuple[Tensor, Tensor]]:
    """Factor and addend of each channel, as constants, for every layer to change."""
    found = {}
    for layer in model.modules():
        if not isinstance(layer, _BatchNorm) or type(layer).forward is not _BatchNorm.forward:
            continue
        mean, var = layer.running_mean, layer.running_var
        if mean is None or var is None or layer.training or "forward" in vars(layer):
            continue
        if var.device.type == "cpu" and var.dtype in (torch.float32, torch.float64):
            with torch.no_grad():
                scale = torch.rsqrt(var + layer.eps)
                scale = scale if layer.weight is None else scale * layer.weight
                shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
            found[layer] = scale, shift
    return found


def _affine(layer: _BatchNorm, scale: Tensor, shift: Tensor, x: Tensor) -> Tensor:
    if x.dtype != scale.dtype:
        return _BatchNorm.forward(layer, x)
    layer._check_input_dim(x)  # type: ignore[no-untyped-call]
    ones = (1,) * (x.ndim - 2)
    return torch.addcmul(shift.view(-1, *ones), x, scale.view(-1, *ones))
