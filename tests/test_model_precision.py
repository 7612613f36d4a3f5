"""Networks by name in low precision: what they keep in that of their weights, and what not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spatlib_torch import engine as torch_engine

from .entry import to_last
from .test_models import ENGINES, MEAN, NARROW, STD, build, images, policy

__all__ = ["policy"]  # a fixture


@pytest.mark.parametrize("name", ["small_cnn", "mnist_cnn", NARROW])
@pytest.mark.parametrize("framework", ENGINES)
@pytest.mark.parametrize("policy", ["mixed_bfloat16"], indirect=True)
def test_inputs_and_logits_are_not_rounded(framework: str, name: str, policy: None) -> None:
    """In bfloat16 pixels near 1 are half a step of 2/255 apart."""
    model, x = build(ENGINES[framework][0], name), images((3, 18, 18))
    rounded = torch.as_tensor(x).bfloat16().float().numpy()
    seen = []
    with torch.autocast("cpu", torch.bfloat16):
        for each in (x, rounded):
            if framework == "tf":
                seen.append(model(to_last(each), training=False).numpy())
            else:
                seen.append(model.eval()(torch.as_tensor(each)).detach().numpy())
            assert seen[-1].dtype == np.float32
            exact = torch.as_tensor(seen[-1])
            assert not torch.equal(exact, exact.bfloat16().float())
    assert not np.array_equal(*seen)
    np.testing.assert_allclose(*seen, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["small_cnn", "mnist_cnn", NARROW])
def test_what_lies_between_first_and_last_layer_is_in_low_precision(name: str) -> None:
    model, entered = build(torch_engine, name, mean=MEAN, std=STD), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.ReLU):
            module.register_forward_hook(lambda _, inputs, z: entered.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.as_tensor(images((3, 18, 18))))
    assert entered == [torch.float32] + [torch.bfloat16] * (len(entered) - 1)
    assert len(entered) > 4


@pytest.mark.parametrize("name", ["small_cnn", NARROW])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_autocast_leaves_weights_of_other_precisions_alone(name: str, dtype: torch.dtype) -> None:
    model, x = build(torch_engine, name).eval().to(dtype), torch.as_tensor(images((3, 18, 18)))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x.to(dtype))
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.bfloat16)
    torch.testing.assert_close(
        logits.double(), model.double()(x.to(dtype).double()), rtol=0, atol=0.1
    )
