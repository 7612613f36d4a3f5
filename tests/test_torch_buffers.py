"""Buffers that move in any mode come back from an attack by value, shape and identity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.functional import batch_norm, cross_entropy

from spatlib_torch import perturb, spat_loss

from .test_torch_state import ATTACKS, CLASSES, batch, config, network, over_modes, state


class Moving(nn.Module):
    """A module with a running mean, moved in training and in inference mode."""

    def __init__(self, move: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.register_buffer("r", torch.full((2,), 0.25))
        self.move = move

    def forward(self, x: Tensor) -> Tensor:
        self.move(self, x)
        return x + self.r.mean()


def replace(module: nn.Module, x: Tensor) -> None:
    module.r = 0.9 * module.r + x.mean()


def grow(module: nn.Module, x: Tensor) -> None:
    module.r = torch.cat([module.r, x.mean()[None]])


def move_in_place(module: nn.Module, x: Tensor) -> None:
    module.r.mul_(0.9).add_(x.mean())


def resize_in_place(module: nn.Module, x: Tensor) -> None:
    module.r.resize_(len(module.r) + 1).copy_(x.detach().mean())


def set_data(module: nn.Module, x: Tensor) -> None:
    module.r.data = 0.9 * module.r.data + x.detach().mean()


class Filled(nn.Module):
    """Its running mean begins with the first batch: None until then, or not there."""

    def __init__(self, declared: bool) -> None:
        super().__init__()
        if declared:
            self.register_buffer("r", None)

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "r", None) is None:
            self.register_buffer("r", x.mean())
        else:
            self.r = 0.9 * self.r + x.mean()
        return x + self.r


class Around(nn.Module):
    """It moves the statistics of a BatchNorm that does not move them itself."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.norm, self.functional = nn.BatchNorm2d(1, affine=False), functional

    def forward(self, x: Tensor) -> Tensor:
        mean, var, gray = self.norm.running_mean, self.norm.running_var, x.mean(1, keepdim=True)
        if self.functional:
            return x + batch_norm(gray, mean, var, training=True)
        mean.mul_(0.9).add_(x.detach().mean())
        return x + self.norm(gray)


MOVERS: dict[str, Callable[[], nn.Module]] = {
    **{move.__name__: partial(Moving, move) for move in (replace, grow, move_in_place)},
    **{move.__name__: partial(Moving, move) for move in (resize_in_place, set_data)},
    "declared": partial(Filled, True),
    "new": partial(Filled, False),
    "parent": partial(Around, False),
    "functional": partial(Around, True),
    **{
        kind.__name__: kind
        for kind in (
            quantization.MinMaxObserver,
            quantization.MovingAverageMinMaxObserver,
            quantization.PerChannelMinMaxObserver,
            quantization.HistogramObserver,
            quantization.FakeQuantize,
        )
    },
}


def with_mover(name: str, dropout: float = 0.5) -> nn.Module:
    model = network(dropout)
    for place in (4, 0):  # behind layers, and where the inputs come in
        model.insert(place, MOVERS[name]())
    return model


@pytest.mark.parametrize("loss", ["pgd", "trades"])
@over_modes
@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("mover", MOVERS)
def test_every_buffer_comes_back_by_value_shape_and_identity(
    mover: str, attack: str, mode: str, loss: str
) -> None:
    model = with_mover(mover)
    before = state(model)
    ATTACKS[attack](model, *batch(), config(loss=loss, attack_mode=mode))
    assert state(model) == before
    copy.deepcopy(model)  # which a buffer that hangs on a graph would refuse
    model(batch()[0])
    assert state(model) != before


@over_modes
@pytest.mark.parametrize("mover", MOVERS)
def test_every_buffer_comes_back_after_an_exception(mover: str, mode: str) -> None:
    model, calls = with_mover(mover), []

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyError("boom")

    before = state(model)
    model[-1].register_forward_hook(fail)
    with pytest.raises(KeyError, match="boom"):
        perturb(model, *batch(), config(attack_mode=mode))
    assert state(model) == before


@pytest.mark.parametrize("mover", MOVERS)
def test_buffers_move_in_the_outer_pass_alone(mover: str) -> None:
    model, (x, y) = with_mover(mover, dropout=0.0), batch()
    expected = copy.deepcopy(model)
    settings = config(random_start="none", mask=None)
    expected(perturb(expected, x, y, settings))
    spat_loss(model, x, y, settings)
    assert state(model)["buffers"] == state(expected)["buffers"]


def lazy() -> nn.Module:
    """Layers that take the number of their inputs, and their statistics, from the first batch."""
    return nn.Sequential(
        nn.LazyConv2d(6, 3),
        nn.LazyBatchNorm2d(),
        nn.Tanh(),
        nn.LazyInstanceNorm2d(track_running_stats=True),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


@over_modes
@pytest.mark.parametrize("attack", ATTACKS)
def test_lazy_modules_take_their_shape_and_no_statistics(attack: str, mode: str) -> None:
    model, (x, y) = lazy(), batch()
    model[0].weight.requires_grad = False
    ATTACKS[attack](model, x, y, config(attack_mode=mode))
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 7
    assert all(module.training for module in model.modules())
    buffers = {name: value.tolist() for name, value in model.named_buffers()}
    for layer in ("1", "3"):
        assert buffers[f"{layer}.running_mean"] == [0.0] * 6
        assert buffers[f"{layer}.running_var"] == [1.0] * 6
        assert buffers[f"{layer}.num_batches_tracked"] == 0
    before = state(model)
    ATTACKS[attack](model, x, y, config(attack_mode=mode))  # from now on like any other
    assert state(model) == before
    spat_loss(model, x, y, config(attack_mode=mode)).backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    assert int(model[1].num_batches_tracked) == 1


def test_lazy_modules_stay_lazy_after_an_exception_before_their_batch() -> None:
    model = nn.Sequential(nn.Identity(), lazy())
    model[0].register_forward_hook(lambda *_: {}["boom"])
    with pytest.raises(KeyError, match="boom"):
        perturb(model, *batch(), config())
    assert all(map(nn.parameter.is_lazy, model[1][1].parameters()))
    assert all(p.requires_grad for p in model.parameters())
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("training", [False, True])
def test_a_graph_that_saved_a_buffer_can_still_be_gone_back_through(training: bool) -> None:
    x, y = torch.rand(6, 3, 4, 4), torch.arange(6) % 3
    layers = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3)
    model = nn.Sequential(*layers).train(training)
    losses = [spat_loss(model, x, y, config(), generator=torch.Generator()) for _ in range(2)]
    sum(losses, cross_entropy(model(x), y)).backward()  # an attack came after each forward pass
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_buffers_that_take_no_value_in_place_come_back() -> None:
    model, (x, y) = nn.Sequential(Moving(replace), network()), batch()
    model[0].r = torch.ones(1).expand(2)
    perturb(model, x, y, config())
    assert model[0].r.tolist() == [1, 1]
    with torch.inference_mode():
        model(x)  # its buffer is now one that autograd cannot have
    before = model[0].r.tolist()
    perturb(model, x, y, config())
    assert model[0].r.tolist() == before
