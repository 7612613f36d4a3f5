"""train: repeatable, from any form of data, and safe when the loss stops being finite."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spatlib
from spatlib import ConfigError, Mask, NonFiniteError, Result, SPATConfig, TrainConfig
from spatlib.config import lr_factor, warmed_up
from spatlib.monitor import Monitor
from spatlib_torch import engine

from .looping import Explode

COUNT, CLASSES, BATCH = 24, 3, 8
CONFIG = SPATConfig(eps=0.1, steps=2, mask=Mask())
METRICS = {"clean", "pgd20", "margin20", "worst"}
HISTORY = {"epoch", "loss", "adv_accuracy", "stall_rate", "hole_rate", "lr", "seconds"}


def training(**settings: Any) -> TrainConfig:
    quick = {"epochs": 2, "batch_size": BATCH, "lr": 0.05, "progress": False}
    return TrainConfig(**quick | settings)


def arrays(seed: int = 0, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 1, 4, 4) in [0, 1] with a bright column per class, and y."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=count)
    x = 0.5 * rng.uniform(size=(count, 1, 4, 4)).astype(np.float32)
    x[np.arange(count), 0, :, y] += 0.4
    return x, y


def tensors(seed: int = 0, count: int = COUNT) -> tuple[Tensor, Tensor]:
    x, y = arrays(seed, count)
    return torch.as_tensor(x), torch.as_tensor(y)


def batches(count: int = COUNT) -> list[tuple[Tensor, Tensor]]:
    x, y = tensors(count=count)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


def loader(count: int = COUNT, **settings: Any) -> Any:
    return DataLoader(TensorDataset(*tensors(count=count)), batch_size=BATCH, **settings)


def network(dropout: float = 0.0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )


def weights(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def fit(data: Any, model: nn.Module | None = None, **settings: Any) -> Result:
    config = settings.pop("config", CONFIG)
    return spatlib.train(
        network() if model is None else model, data, config=config, training=training(**settings)
    )


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, mask=Mask(score="rms")),
        dataclasses.replace(CONFIG, mask=Mask(score="random"), random_start="none"),
        dataclasses.replace(CONFIG, loss="trades", mask=Mask(classes=2)),
        dataclasses.replace(CONFIG, mask=None, random_start="none"),
    ],
    ids=["min", "rms", "random mask only", "trades, two classes", "order only"],
)
def test_the_seed_decides_everything(config: SPATConfig, dropout: float) -> None:
    def run(seed: int) -> dict[str, Any]:
        torch.rand(1)  # the global generator is somewhere else each time
        return weights(fit(arrays(), network(dropout), config=config, seed=seed).model)

    first = run(0)
    assert first == run(0)
    assert first != run(1)
    assert first != weights(network(dropout))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("schedule", ["constant", "onecycle", "piecewise"])
def test_history_has_one_finite_entry_per_epoch(schedule: str, epochs: int) -> None:
    result = fit(arrays(), epochs=epochs, schedule=schedule)
    steps = COUNT // BATCH
    assert [entry["epoch"] for entry in result.history] == list(range(1, epochs + 1))
    for entry in result.history:
        assert set(entry) == HISTORY
        assert all(math.isfinite(value) for value in entry.values())
        assert 0 <= entry["adv_accuracy"] <= 1
        assert 0 <= entry["stall_rate"] <= 1
        last = lr_factor(schedule, int(entry["epoch"]) * steps - 1, epochs * steps)
        assert entry["lr"] == pytest.approx(0.05 * last)
    assert result.config == CONFIG
    assert result.training == training(epochs=epochs, schedule=schedule)


def test_training_learns_and_measures_the_test_part() -> None:
    result = fit((arrays(), arrays(1, 40)), epochs=25)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert set(result.metrics) == METRICS
    assert result.metrics == result.report.metrics
    assert result.measured_on == "test"
    assert result.report.count == 40
    assert max(result.metrics["pgd20"], result.metrics["margin20"]) <= result.metrics["clean"] <= 1
    assert result.metrics["clean"] > 0.9
    assert min(result.metrics.values()) > 0.5
    assert result.metrics == spatlib.evaluate(result.model, arrays(1, 40), CONFIG).metrics


def test_arrays_of_any_kind_train_alike() -> None:
    x, y = arrays()
    forms = [
        (x, y),
        tensors(),
        (x.astype(np.float64), y.astype(np.int32)),
        ((x, y), arrays(1)),
        (np.asfortranarray(x), y),
        (torch.as_tensor(x), y),
    ]
    results = [fit(form) for form in forms]
    assert all(weights(r.model) == weights(results[0].model) for r in results)
    assert [r.measured_on for r in results] == [*["training"] * 3, "test", *["training"] * 2]
    assert next(results[2].model.parameters()).dtype == torch.float32


def test_batches_of_any_kind_train_alike() -> None:
    pairs = [(x.numpy(), y.numpy()) for x, y in batches()]
    forms = [batches(), list(map(list, batches())), loader(), pairs]
    results = [fit(form, batch_size=1) for form in forms]
    assert all(weights(r.model) == weights(results[0].model) for r in results)
    assert all(r.report.count == COUNT and r.measured_on == "training" for r in results)


@pytest.mark.parametrize(
    "data", [arrays, batches, lambda: loader(shuffle=True)], ids=["arrays", "batches", "loader"]
)
def test_generator_and_modes_are_as_before(data: Any) -> None:
    model = network(0.5).eval()
    model[1].train()
    modes, before = [m.training for m in model.modules()], torch.get_rng_state()
    source = data()
    fit(source, model)
    assert torch.equal(torch.get_rng_state(), before)
    spatlib.evaluate(model, source, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    assert [m.training for m in model.modules()] == modes


class Failing(nn.Module):
    """Fails from the given forward pass in training mode on; attacks run in the other mode."""

    def __init__(self, at: int, how: str) -> None:
        super().__init__()
        self.inner, self.at, self.how, self.passes = network(), at, how, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        self.passes += self.training
        if not self.training or self.passes < self.at:
            return logits
        return logits * math.nan if self.how == "loss" else Explode.apply(logits)


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("epoch", [3, 120])  # steps in one: below and above the 50
@pytest.mark.parametrize("at", [1, 7, 50, 51, 64])
def test_training_stops_with_the_weights_of_the_last_whole_epoch(
    at: int, epoch: int, how: str
) -> None:
    data = batches(3 * BATCH) * (epoch // 3)
    settings: dict[str, Any] = {"schedule": "constant"}
    model = Failing(at, how)
    model.eval()
    before = torch.get_rng_state()
    # A gradient that is not finite shows at the next look, every 50 steps and at the end of the
    # epoch, or in the loss of the next step.
    late = how == "gradient" and at % epoch > 0 and at % 50 > 0
    with pytest.raises(NonFiniteError, match=rf"step {at + late}\b") as caught:
        fit(data, model, **settings, epochs=120 // epoch)
    assert model.passes <= at + 50
    assert not any(m.training for m in model.modules())
    assert torch.equal(torch.get_rng_state(), before)
    assert caught.value.result.model is model
    assert caught.value.result.history == caught.value.history
    whole = (at - 1) // epoch
    assert len(caught.value.history) == whole
    expected = Failing(10**6, how)
    if whole:
        engine.fit(expected, data, CONFIG, Monitor(training(**settings, epochs=whole)))
    assert weights(model) == weights(expected)


def test_schedules_have_their_shapes() -> None:
    steps = 1000
    rates = {
        name: np.array([lr_factor(name, step, steps) for step in range(steps)])
        for name in ("constant", "onecycle", "piecewise")
    }
    assert (rates["constant"] == 1).all()
    peak = int(rates["onecycle"].argmax())
    assert peak == pytest.approx(0.3 * steps, abs=2)
    assert rates["onecycle"].max() == pytest.approx(1, abs=0.005)
    assert 0 < rates["onecycle"].min() < 0.005
    assert (np.diff(rates["onecycle"][:peak]) > 0).all()
    assert (np.diff(rates["onecycle"][peak:]) < 0).all()
    for at, rate in ((0, 1), (749, 1), (750, 0.1), (899, 0.1), (900, 0.01), (999, 0.01)):
        assert rates["piecewise"][at] == pytest.approx(rate)
    assert all(
        0 < lr_factor("onecycle", step, count) <= 1 for count in (1, 2, 3) for step in range(count)
    )


def test_eps_and_steps_rise_together_to_the_settings() -> None:
    config = SPATConfig(eps=0.3, step_size=0.01, mask=Mask(score="mean"))
    rising = [warmed_up(config, 3, epoch) for epoch in range(5)]
    assert [attack.eps for attack in rising] == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.3])
    for attack in rising:
        assert attack.step_size == pytest.approx(attack.eps / 30)
        assert dataclasses.replace(attack, eps=0.3, step_size=0.01) == config
    assert rising[3] is rising[4] is warmed_up(config, 0, 0) is config
    following = warmed_up(SPATConfig(eps=0.3, steps=5), 3, 0)  # a step that follows eps
    assert following.alpha == pytest.approx(2.5 * 0.075 / 5)
    assert dataclasses.replace(following, eps=0.3) == SPATConfig(eps=0.3, steps=5)


def test_a_run_that_would_end_before_full_eps_is_refused() -> None:
    assert training(epochs=4, eps_warmup=3).eps_warmup == 3
    word = r"eps_warmup must be below epochs \(3\) .*\(lower it or train longer\), got 3$"
    with pytest.raises(ConfigError, match=word):
        training(epochs=3, eps_warmup=3)
