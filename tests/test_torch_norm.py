"""BatchNorm in inference mode, as the attack runs it: faster, and otherwise what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spatlib import SPATConfig
from spatlib_torch import perturb
from spatlib_torch.norm import as_affine, is_compiled
from spatlib_torch.state import attack_state

CONFIG = SPATConfig(eps=0.1, steps=2, norm="L2", share="min")
KINDS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def settled(layer: Any) -> Any:
    """With statistics and weights like those of a trained network, in inference mode."""
    source = torch.Generator().manual_seed(1)
    for name, least in (
        ("running_mean", -1.0),
        ("running_var", 0.5),
        ("weight", 0.5),
        ("bias", -1.0),
    ):
        value = getattr(layer, name)
        if value is not None:
            with torch.no_grad():
                value.copy_(least + torch.rand(value.shape, generator=source))
    return layer.eval()


def network(*first: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *first,
        nn.Conv2d(2, 4, 3, padding=1),
        settled(nn.BatchNorm2d(4)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(100, 3),
    )


def batch() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(2)
    return torch.rand(6, 2, 5, 5, generator=source), torch.arange(6) % 3


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever calls PyTorch's kernel fails."""

    def refuse(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("the kernel was called")

    monkeypatch.setattr(torch.nn.functional, "batch_norm", refuse)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("kind", "shape"), [(1, ()), (1, (5,)), (2, (5, 4)), (3, (3, 2, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_those_of_the_kernel(
    kind: int, shape: tuple[int, ...], affine: bool, dtype: torch.dtype
) -> None:
    layer = settled(KINDS[kind](3, affine=affine, dtype=dtype))
    x = torch.randn((7, 3, *shape), dtype=dtype, requires_grad=True)
    expected = layer(x)
    weight = torch.randn_like(expected)
    (slope,) = torch.autograd.grad(expected, x, weight)
    with as_affine(layer):
        assert "forward" in vars(layer)
        found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)
    torch.testing.assert_close(torch.autograd.grad(found, x, weight)[0], slope)


def test_an_attack_does_without_the_kernel_and_puts_the_layer_back(no_kernel: None) -> None:
    model = network()
    x, y = batch()
    assert not torch.equal(perturb(model, x, y, CONFIG), x)
    assert all("forward" not in vars(module) for module in model.modules())
    with pytest.raises(AssertionError, match="kernel"):
        model(x)


def test_the_layer_is_put_back_after_an_error() -> None:
    model = network()
    with pytest.raises(KeyError), attack_state(model, "eval", torch.device("cpu"), keep_rng=False):
        raise KeyError
    assert "forward" not in vars(model[1])


def test_hooks_shapes_and_the_memory_format_stay() -> None:
    layer, seen = settled(nn.BatchNorm2d(4)), []
    layer.register_forward_hook(lambda *_: seen.append(1))
    x = torch.rand(2, 4, 6, 6).to(memory_format=torch.channels_last)
    with as_affine(layer):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
        with pytest.raises(ValueError, match="4D"):
            layer(x[0])
    assert seen == [1]


class Own(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "layer",
    [
        Own(4),
        nn.SyncBatchNorm(4),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4, dtype=torch.bfloat16),
    ],
    ids=["own forward", "synchronised", "without statistics", "bfloat16"],
)
def test_others_stay_as_they_are(layer: nn.Module) -> None:
    with as_affine(layer.eval()):
        assert "forward" not in vars(layer)


def test_layers_that_take_the_statistics_of_the_batch_stay_as_they_are() -> None:
    model = network().train()
    with attack_state(model, "train", torch.device("cpu"), keep_rng=False):
        assert "forward" not in vars(model[1])
    with attack_state(model, "eval", torch.device("cpu"), keep_rng=False):
        assert "forward" in vars(model[1])


def test_inputs_of_another_precision_go_through_the_kernel() -> None:
    layer, x = settled(nn.BatchNorm2d(4)), torch.rand(2, 4, 3, 3)
    low = x.to(torch.bfloat16)
    expected = layer(low)
    with as_affine(layer):
        assert torch.equal(layer(low), expected)
    assert expected.dtype == torch.bfloat16


class Compiled(nn.Module):
    """A part of the forward pass is a compiled function."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.part = torch.compile(self.network.forward, backend="eager")

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


@pytest.mark.parametrize("how", ["whole", "in place", "a part"])
def test_what_is_compiled_stays_as_it_is_and_is_compiled_once(how: str) -> None:
    torch._dynamo.reset()
    model: Any = network()
    if how == "whole":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model = Compiled().eval()
    assert is_compiled(model)
    assert not is_compiled(network())
    x, y = batch()
    perturb(model, x, y, CONFIG)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for _ in range(3):
        perturb(model, x, y, CONFIG)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
