"""Any optimizer of Keras under spatlib.train: resumed, scheduled, averaged, clipped, refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from keras import optimizers

from spatlib import ConfigError, DataError
from spatlib.config import lr_factor
from spatlib.runs import EMA, LAST

from .entry_tf import eagerly
from .test_tf_loop import COUNT, FORMS, STEPS, fit, network, same

# Each is called for what is passed as ``optimizer``.
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "instance": lambda: optimizers.Adam(0.01),
    "class": lambda: optimizers.Adam,
    "factory": lambda: lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.Adam(0.01)),
}
CASES = dict(zip(OPTIMIZERS, ("tf.data", "arrays", "list", "PyDataset"), strict=True))


@pytest.mark.parametrize("optimizer", CASES)
def test_a_run_goes_on_bit_for_bit_from_its_last_whole_epoch(
    optimizer: str, tmp_path: Path
) -> None:
    settings = {"epochs": 3, "schedule": "onecycle", "augment": "crop", "ema": 0.5}

    def run(name: str, on_epoch: Any = None) -> tuple[Any, Any]:
        model, data, given = network(), FORMS[CASES[optimizer]](), OPTIMIZERS[optimizer]()
        return model, fit(model, data, tmp_path / name, on_epoch, given, **settings)

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == 2:  # before it is saved
            raise KeyboardInterrupt

    expected, rows = run("straight")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", interrupt)
    resumed, again = run("stopped")
    assert again == rows
    assert same(resumed, expected)
    assert not same(resumed, network())
    for name in (LAST, EMA):
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "straight" / name
        ).read_bytes()
    finished, once_more = run("stopped")  # nothing is left to train
    assert once_more == rows
    assert same(finished, expected)


def test_another_optimizer_cannot_go_on(tmp_path: Path) -> None:
    fit(network(), run_dir=tmp_path / "run", optimizer=optimizers.Adam())
    with pytest.raises(DataError, match=r"checkpoint\.safetensors must hold .* its optimizer"):
        fit(network(), run_dir=tmp_path / "run", epochs=2)


def test_the_schedule_multiplies_the_rate_of_the_optimizer() -> None:
    mine = optimizers.Adam(0.25)
    rows = fit(network(), optimizer=mine, epochs=2, schedule="onecycle")
    factors = [lr_factor("onecycle", step, 2 * STEPS) for step in (STEPS - 1, 2 * STEPS - 1)]
    assert [row["lr"] for row in rows] == pytest.approx([0.25 * factor for factor in factors])
    assert mine.iterations == 2 * STEPS
    own = optimizers.Adam(optimizers.schedules.PiecewiseConstantDecay([STEPS], [0.5, 0.125]))
    rows = fit(network(), optimizer=own, epochs=2)
    assert [row["lr"] for row in rows] == [0.5, 0.125]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_average_of_weights_that_adam_trains_is_returned(scaled: bool) -> None:
    def trained(epochs: int, ema: float = 0.0) -> list[np.ndarray]:
        model, optimizer = network(), optimizers.Adam(0.01)
        optimizer = optimizers.LossScaleOptimizer(optimizer, 2.0) if scaled else optimizer
        with eagerly(scaled):
            fit(model, optimizer=optimizer, epochs=epochs, ema=ema, batch_size=COUNT)
        return [variable.numpy() for variable in model.trainable_variables]

    for first, second, mean in zip(trained(1), trained(2), trained(2, 0.75), strict=True):
        np.testing.assert_allclose(mean, 0.75 * first + 0.25 * second, rtol=1e-5, atol=1e-7)
        assert np.abs(second - first).max() > 1e-4


def test_long_gradients_of_any_optimizer_are_shortened() -> None:
    model = network()
    before = [variable.numpy() for variable in model.trainable_variables]
    fit(model, optimizer=optimizers.SGD(2.0), clip_grad_norm=1e-3, batch_size=COUNT)
    after = [variable.numpy() for variable in model.trainable_variables]
    moved = sum(np.sum((a - b).astype(float) ** 2) for a, b in zip(after, before, strict=True))
    assert math.sqrt(moved) == pytest.approx(2.0 * 1e-3, rel=1e-3)


def used() -> optimizers.Optimizer:
    optimizer = optimizers.Adam()
    optimizer.build(network().trainable_variables)
    return optimizer


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "no optimizer": (lambda: "adam", {}, "optimizer must be a new keras.optimizers.Optimizer"),
    "nothing": (lambda: lambda: None, {}, "a function without arguments that returns one"),
    "a class of torch": (lambda: torch.optim.Adam, {}, "got TypeError: Adam.__init__() missing 1"),
    "a used one": (used, {}, "optimizer must be a new keras.optimizers.Optimizer"),
    "its own average": (lambda: optimizers.Adam(use_ema=True), {}, "set ema in TrainConfig"),
    "another average": (
        lambda: optimizers.Adam(use_ema=True),
        {"ema": 0.5},
        "whose average is validated and saved), got 0.99",
    ),
    "clipping twice": (lambda: optimizers.Adam(clipnorm=1), {"clip_grad_norm": 1}, "leave one out"),
    "two schedules": (
        lambda: optimizers.Adam(optimizers.schedules.CosineDecay(0.1, 9)),
        {"schedule": "onecycle"},
        "schedule must be 'constant'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_optimizer_of_another_kind_is_refused(case: str) -> None:
    make, settings, words = REFUSED[case]
    model = network()
    with pytest.raises(ConfigError) as refused:
        fit(model, optimizer=make(), **settings)
    assert words in str(refused.value)
    assert same(model, network())
