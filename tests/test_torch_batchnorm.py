"""The BatchNorm of our PyTorch networks is PyTorch's own, without its kernel in the attack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spatlib import Mask, SPATConfig
from spatlib_torch import engine as torch_engine
from spatlib_torch import models as torch_models
from spatlib_torch import perturb

from .test_models import NARROW, build, images


def settled(layer: nn.BatchNorm2d) -> Any:
    """With statistics and weights like those of a trained network, in inference mode."""
    source = torch.Generator().manual_seed(1)
    least = {"running_mean": -1.0, "running_var": 0.5, "weight": 0.5, "bias": -1.0}
    for name, value in layer.state_dict().items():
        if name in least:
            value.copy_(least[name] + torch.rand(value.shape, generator=source))
    return layer.eval()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_our_batchnorm_has_the_values_and_gradients_of_torchs_own(
    memory: torch.memory_format, dtype: torch.dtype, training: bool
) -> None:
    layer, expected = settled(torch_models.BatchNorm(3)), settled(nn.BatchNorm2d(3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert layer.state_dict().keys() == expected.state_dict().keys()
    x = torch.randn(7, 3, 5, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = x.contiguous(memory_format=memory).requires_grad_()
    results = []
    for each in (layer.to(wide).train(training), expected.to(wide).train(training)):
        z = each(x)
        assert z.dtype == dtype
        assert z.is_contiguous(memory_format=memory)
        weight = torch.arange(z.numel()).reshape(z.shape).sin().to(z)
        grads = torch.autograd.grad(z, [x, each.weight, each.bias], weight)
        results.append([z, *grads, each.running_mean, each.running_var])
    rounding = 30 * torch.finfo(wide).eps  # bfloat16 goes the way of torch's own
    for mine, its in zip(*results, strict=True):
        torch.testing.assert_close(mine, its, rtol=rounding, atol=rounding)


def test_the_attack_does_without_torchs_own_kernel_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, x = build(torch_engine, NARROW), torch.as_tensor(images((3, 18, 18)))

    def refuse(*_: Any, **__: Any) -> Any:
        raise KeyError("the kernel")

    monkeypatch.setattr(nn.functional, "batch_norm", refuse)
    config = SPATConfig(eps=0.1, steps=2, mask=Mask())
    assert not torch.equal(perturb(model, x, torch.arange(6) % 5, config), x)
    with pytest.raises(KeyError, match="the kernel"):
        model.train()(x)
