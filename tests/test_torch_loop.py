"""PyTorch's training loop: any optimizer, resumed bit for bit, draws, the moving average."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import spatlib
from spatlib import RECIPES, ConfigError
from spatlib.config import lr_factor
from spatlib.monitor import Monitor
from spatlib_torch import engine, spat_loss

from .looping import (
    BATCH,
    CLASSES,
    CONFIG,
    COUNT,
    Keeper,
    Pictures,
    arrays,
    disturb,
    fit,
    generators,
    loader,
    network,
    state,
    training,
)


class Averaging(torch.optim.Optimizer):
    """Its state is of another dtype than the weights, and has numbers, as its group has."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.05, "steps": 0, "betas": (0.5, 0.25)})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["steps"] += 1
            for p in group["params"]:
                own = self.state[p]
                own["seen"] = own.get("seen", 0) + 1
                mean = own.setdefault("mean", torch.zeros_like(p, dtype=torch.float64))
                mean.mul_(group["betas"][0]).add_(p.grad)
                p.sub_(group["lr"] * mean / (own["seen"] + group["steps"]))


def in_groups(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Rates of their own."""
    return torch.optim.AdamW([{"params": params[:2], "lr": 0.01}, {"params": params[2:]}])


OPTIMIZERS: dict[str, Callable[..., Any] | None] = {
    "SGD by default": None,
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "two groups": in_groups,
    "one of its own": Averaging,
}
DATA: dict[str, Callable[[], Any]] = {
    "arrays": arrays,
    "map-style": Pictures,
    "loader": loader,
    "loader with a generator": lambda: loader(generator=torch.Generator()),
}
CASES = [
    *[("arrays", name) for name in OPTIMIZERS],
    *[(data, "AdamW") for data in DATA if data != "arrays"],
]


@pytest.mark.parametrize(("data", "optimizer"), CASES)
def test_a_run_goes_on_from_every_step_bit_for_bit(data: str, optimizer: str) -> None:
    settings = {"optimizer": OPTIMIZERS[optimizer], "ema": 0.5, "augment": "crop"}
    keeper = Keeper(training())
    expected = fit(DATA[data](), monitor=keeper, **settings)
    assert len(keeper.kept) == 2 * math.ceil(COUNT / BATCH)
    for content in keeper.kept:
        disturb()
        assert fit(DATA[data](), monitor=Keeper(training(), content), **settings) == expected


@pytest.mark.parametrize("optimizer", ["AdamW", "one of its own"])
def test_weights_of_low_precision_go_on_bit_for_bit(optimizer: str) -> None:
    def linear() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES)).bfloat16()

    keeper, make = Keeper(training()), OPTIMIZERS[optimizer]
    expected = fit(arrays(), linear(), keeper, optimizer=make)
    for content in keeper.kept:
        assert fit(arrays(), linear(), Keeper(training(), content), optimizer=make) == expected


def test_buffers_of_the_optimizer_have_the_memory_format_of_their_weights() -> None:
    made: list[torch.optim.Optimizer] = []

    def make(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        made.append(torch.optim.SGD(params, lr=0.01, momentum=0.9))
        return made[-1]

    keeper = Keeper(training())
    fit(arrays(), monitor=keeper, optimizer=make)
    fit(arrays(), monitor=Keeper(training(), keeper.kept[-1]), optimizer=make)
    kernel = made[1].param_groups[0]["params"][0]
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert made[1].state[kernel]["momentum_buffer"].stride() == kernel.stride()


def test_another_optimizer_does_not_go_on() -> None:
    keeper = Keeper(training())
    fit(arrays(), monitor=keeper, optimizer=OPTIMIZERS["AdamW"])
    for other in (None, OPTIMIZERS["two groups"]):
        with pytest.raises(ConfigError, match="optimizer must be AdamW of the parameters with"):
            fit(arrays(), monitor=Keeper(training(), keeper.kept[0]), optimizer=other)


def test_any_optimizer_is_the_loop_by_hand() -> None:
    config, plan = spatlib.SPATConfig(eps=0.1, steps=2, random_start="none"), training()
    x, y = map(torch.as_tensor, arrays(2 * BATCH))
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    torch.manual_seed(1)  # its first logits are no probabilities, by chance
    model, expected = (nn.Sequential(nn.Flatten(), nn.Linear(32, CLASSES)) for _ in range(2))
    expected.load_state_dict(model.state_dict())
    optimizer = in_groups(list(expected.parameters()))
    rates = [group["lr"] for group in optimizer.param_groups]
    for step, (inputs, labels) in enumerate(batches * 2):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * lr_factor(plan.schedule, step, 4)
        optimizer.zero_grad()
        spat_loss(expected, inputs, labels, config).backward()
        optimizer.step()
    rows = engine.fit(model, batches, config, Monitor(plan), optimizer=in_groups)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    last = [lr_factor(plan.schedule, step, 4) for step in (1, 3)]
    assert [row["lr"] for row in rows] == pytest.approx([rates[0] * factor for factor in last])


IGNORED = pytest.mark.parametrize(
    "setting", [{"lr": 0.3}, {"momentum": 0.5}, {"weight_decay": 0.0}, {"bias_decay": False}]
)


@IGNORED
def test_a_setting_that_the_optimizer_would_ignore_is_refused(setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} must be left out of training beside optimizer"):
        spatlib.train(
            network(),
            arrays(),
            config=CONFIG,
            training=training(**setting),
            optimizer=torch.optim.AdamW,
        )


@IGNORED
def test_so_is_one_that_was_changed_in_a_recipe(setting: dict[str, float]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=f"{name} must be left out of training beside optimizer"):
        spatlib.train(recipe=RECIPES["digits"].change(**setting), optimizer=torch.optim.AdamW)


def test_those_of_a_recipe_are_not_meant_for_it() -> None:
    recipe = RECIPES["digits"].change(epochs=1, steps=1, baseline=False, progress=False)
    made: list[torch.optim.Optimizer] = []

    def make(params: Any) -> torch.optim.Optimizer:
        made.append(torch.optim.AdamW(params, lr=1e-3, weight_decay=0.5))
        return made[-1]

    spatlib.train(data=spatlib.load_data("digits", limit=40), recipe=recipe, optimizer=make)
    (group,) = made[0].param_groups
    assert (group["initial_lr"], group["weight_decay"]) == (1e-3, 0.5)


BAD = [torch.optim.SGD([Tensor(2)], lr=0.1), lambda _: None, "adam", lambda: None]


@pytest.mark.parametrize("bad", BAD)
def test_an_optimizer_is_made_by_a_function(bad: Any) -> None:
    with pytest.raises(ConfigError, match="optimizer must be a function from parameters to a"):
        spatlib.train(network(), arrays(), config=CONFIG, training=training(), optimizer=bad)


@pytest.mark.parametrize("data", DATA)
def test_draws_follow_from_the_seed_alone(data: str) -> None:
    first = fit(DATA[data]())
    disturb()
    assert fit(DATA[data]()) == first
    assert fit(DATA[data](), seed=1) != first


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("fails", [False, True])
def test_global_generators_are_as_before(data: str, fails: bool) -> None:
    def stop(*_: Any) -> None:
        raise KeyError("stop")

    before, monitor = generators(), Monitor(training(), on_epoch=stop if fails else None)
    if fails:
        with pytest.raises(KeyError, match="stop"):
            fit(DATA[data](), monitor=monitor)
    else:
        fit(DATA[data](), monitor=monitor)
        spatlib.evaluate(network(), DATA[data](), CONFIG, steps=1)
    assert generators() == before


class Averages(Monitor):
    """Notes the weights, the average, and those of the network that is to be validated."""

    def __init__(self) -> None:
        super().__init__(training(epochs=3))
        self.seen: list[tuple[dict[str, Tensor], ...]] = []

    def epoch(self, history: Any, model: Any, weights: Any, averaged: Any = None) -> None:
        used = {name: value.clone() for name, value in model.state_dict().items()}
        self.seen.append((*(load(b"".join(part())) for part in (weights, averaged)), used))


def test_the_average_of_a_network_with_weight_norm_is_validated_and_returned() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = parametrizations.weight_norm(nn.Linear(32, CLASSES))
        model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(32), layer)
    monitor = Averages()
    fit(arrays(), model, monitor, batch_size=COUNT, epochs=3, ema=0.75, schedule="constant")
    trained = [name for name, _ in model.named_parameters()]
    mean = monitor.seen[0][0]  # it starts at the weights after the first update
    for weights, average, used in monitor.seen:
        for name in trained:
            expected = 0.75 * mean[name] + 0.25 * weights[name]
            torch.testing.assert_close(average[name], expected)
        assert all(torch.equal(average[name], weights[name]) for name, _ in model.named_buffers())
        assert all(torch.equal(average[name], value) for name, value in used.items())
        mean = average
    assert not any(torch.equal(mean[name], monitor.seen[-1][0][name]) for name in trained)
    assert all(torch.equal(value, mean[name]) for name, value in model.state_dict().items())


class Counting(nn.Module):
    """Its outputs depend on a buffer that is no part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.register_buffer("passes", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.passes += 1
        return self.inner(x) * (1 + self.passes / 10)


def test_buffers_that_no_state_dict_has_are_resumed_too() -> None:
    keeper, expected, model = Keeper(training()), Counting(), Counting()
    fit(arrays(), expected, keeper)
    assert "passes" not in expected.state_dict()
    fit(arrays(), model, Keeper(training(), keeper.kept[2]))
    assert state(model) == state(expected)
    assert model.passes == expected.passes > 0


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    others = network()
    with pytest.raises(ConfigError, match="optimizer must be made of the parameters"):
        fit(arrays(), optimizer=lambda _: torch.optim.SGD(others.parameters(), 0.1))
