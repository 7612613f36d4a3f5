"""What the rate of a step follows, and which weights decay, in both frameworks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from keras.optimizers.schedules import CosineDecay
from torch.optim import SGD, AdamW, lr_scheduler

from spatlib import ConfigError
from spatlib.config import lr_factor

from . import looping, test_tf_loop
from .looping import BATCH, Keeper, arrays, training


def test_the_cosine_is_that_of_both_frameworks() -> None:
    optimizer = SGD([torch.zeros(1)], lr=1.0)
    scheduler, keras_own = lr_scheduler.CosineAnnealingLR(optimizer, 9), CosineDecay(1.0, 9)
    for step in range(9):
        rate = lr_factor("cosine", step, 9)
        assert scheduler.get_last_lr() == pytest.approx([rate])
        assert float(keras_own(step)) == pytest.approx(rate)
        optimizer.step()
        scheduler.step()
    assert lr_factor("cosine", 9, 9) == 0


SCHEDULERS: dict[str, Any] = {
    "steps": lambda made: lr_scheduler.MultiStepLR(made, [2, 5], gamma=0.5),
    "cycle": lambda made: lr_scheduler.OneCycleLR(made, 0.02, total_steps=8),
    "two": lambda made: lr_scheduler.SequentialLR(
        made, [lr_scheduler.LinearLR(made, 0.1, 1, 3), lr_scheduler.ExponentialLR(made, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_ones_own_goes_on_from_every_step_bit_for_bit(name: str) -> None:
    def make(parameters: Any) -> Any:
        made = AdamW(parameters, lr=0.01)
        return made, SCHEDULERS[name](made)

    plan, own = training(schedule="constant"), {"schedule": "constant", "optimizer": make}
    keeper = Keeper(plan)
    expected = looping.fit(arrays(), monitor=keeper, **own)
    for content in keeper.kept:
        assert looping.fit(arrays(), monitor=Keeper(plan, content), **own) == expected
    made, scheduler = make([torch.zeros(1)])
    rates = []
    for _ in keeper.kept:
        rates += scheduler.get_last_lr()
        made.step()
        scheduler.step()
    assert len(set(rates)) > 2
    steps = len(keeper.kept) // 2
    assert [row["lr"] for row in expected[1]] == [rates[steps - 1], rates[-1]]


def test_a_longer_run_has_the_schedule_of_its_epochs() -> None:
    keeper = Keeper(training())
    looping.fit(arrays(), monitor=keeper)
    _, rows = looping.fit(arrays(), monitor=Keeper(training(), keeper.kept[-1]), epochs=4)
    steps = len(keeper.kept)
    rates = [
        0.1 * lr_factor("onecycle", step, 2 * steps) for step in (1.5 * steps - 1, 2 * steps - 1)
    ]
    assert [row["lr"] for row in rows[2:]] == pytest.approx(rates)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (lr_scheduler.ReduceLROnPlateau, "an LRScheduler of it that is stepped after each batch"),
        (lambda made: "cosine", "an LRScheduler of it that is stepped after each batch"),
        (lambda made: SCHEDULERS["steps"](SGD([torch.zeros(1)])), "an LRScheduler of it"),
        (SCHEDULERS["steps"], "schedule must be 'constant' for an optimizer with a scheduler"),
    ],
)
def test_what_is_no_scheduler_is_refused(own: Any, words: str) -> None:
    def make(parameters: Any) -> Any:
        made = SGD(parameters)
        return made, own(made)

    with pytest.raises(ConfigError, match=words):
        looping.fit(arrays(), optimizer=make)


def after_a_step(framework: str, **settings: Any) -> list[np.ndarray]:
    one = {"epochs": 1, "schedule": "constant", "momentum": 0.0} | settings
    if framework == "torch":
        model = looping.network()
        looping.fit(arrays(BATCH), model, **one)
        return [p.numpy(force=True) for p in model.parameters()]
    net = test_tf_loop.network()
    test_tf_loop.fit(net, batch_size=test_tf_loop.COUNT, **one)
    return [weight.numpy() for weight in net.trainable_weights]


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_biases_and_normalisations_can_be_left_out_of_the_decay(framework: str) -> None:
    without, with_all, some = (
        after_a_step(framework, **settings)
        for settings in (
            {"weight_decay": 0},
            {"weight_decay": 1},
            {"weight_decay": 1, "bias_decay": False},
        )
    )
    for plain, decayed, weight in zip(without, with_all, some, strict=True):
        np.testing.assert_array_equal(weight, plain if weight.ndim < 2 else decayed)
    assert any(
        w.ndim < 2 and not np.array_equal(*v) for w, *v in zip(some, without, with_all, strict=True)
    )
    assert any(
        w.ndim > 1 and not np.array_equal(*v) for w, *v in zip(some, without, with_all, strict=True)
    )
