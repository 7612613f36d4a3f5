"""Gradients that are NaN or infinite: the attack goes on without them, and says so."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import Mask, SPATConfig, TrainConfig
from spatlib.core.survivors import judge
from spatlib_tf import SPATModel

from .backends import BACKENDS, Backend
from .engines import ENGINES

CALLS = {"torch": spatlib_torch, "tf": spatlib_tf}
COUNT = 8
TOLD = r"gradients are not finite at (\d+\.\d+)% of the (?:attack's )?steps.*: look for a root"


class Trap(nn.Module):
    """where(z > 0.5, log(max(z - 0.5, 0)), 0), whose gradient below is 0 / 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        above = z > 0.5
        f = torch.where(above, (above * (z - 0.5)).log(), 0 * z)
        return self.weight * torch.stack([f[:, 0] + z[:, 1], f[:, 1] + z[:, 0]], dim=1)


class KerasTrap(keras.Model):
    """The same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.add_weight(shape=(), initializer="ones")

    def call(self, z: Any) -> Any:
        above = z > 0.5
        f = tf.where(above, tf.math.log(tf.cast(above, z.dtype) * (z - 0.5)), 0 * z)
        return self.weight * tf.stack([f[:, 0] + z[:, 1], f[:, 1] + z[:, 0]], axis=1)


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def batch(name: str, broken: int) -> tuple[Any, ...]:
    """The network, x (COUNT, 2), of which so many lie where it has holes, and labels 0."""
    x = np.full((COUNT, 2), 0.8, np.float32)
    x[:broken, 0] = 0.2
    array = BACKENDS[name]().array
    model = {"torch": Trap, "tf": KerasTrap}[name]()
    return model, array(x), array(np.zeros(COUNT, np.int64))


@pytest.mark.parametrize(("place", "value"), [(0, np.inf), (2, -np.inf), (2, np.nan)])
def test_an_example_whose_logits_are_not_all_finite_is_not_right(
    backend: Backend, place: int, value: float
) -> None:
    logits, label = np.array([[3.0, 1, 0], [3, 1, 0], [1, 3, 0]]), np.array([[1.0, 0, 0]] * 3)
    logits[1, place] = value
    right, sound = backend.call(judge, logits, label)
    np.testing.assert_array_equal(right, [True, False, False])
    np.testing.assert_array_equal(sound, [True, False, True])


STILL = SPATConfig(eps=0.1, steps=4, random_start="none", smoothing=0)
MASKED = SPATConfig(eps=0.1, steps=1, random_start="none", smoothing=0, mask=Mask())
USES: dict[str, tuple[SPATConfig, Callable[[Any, tuple[Any, ...]], Any]]] = {
    "perturb": (STILL, lambda call, batch: call.perturb(*batch, STILL)),
    "spat_loss": (STILL, lambda call, batch: call.spat_loss(*batch, STILL)),
    "shared_mask": (MASKED, lambda call, batch: call.shared_mask(*batch, MASKED)),
    "perturb with a mask": (MASKED, lambda call, batch: call.perturb(*batch, MASKED)),
}


@pytest.mark.parametrize("use", USES)
def test_holes_are_warned_of_with_their_share(name: str, use: str) -> None:
    with pytest.warns(RuntimeWarning, match=TOLD) as told:
        result = USES[use][1](CALLS[name], batch(name, 2))
    assert len(told) == 1
    assert "25.00%" in str(told[0].message)
    assert np.isfinite(BACKENDS[name]().numpy(result)).all()


@pytest.mark.parametrize("use", USES)
def test_nothing_is_said_where_there_are_none(name: str, use: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        USES[use][1](CALLS[name], batch(name, 0))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_other_entries_are_moved_as_far_as_they_may(name: str, norm: str) -> None:
    """The gradient in x_1 is NaN, but log(x_2 - 0.5) - x_2 is known to rise with x_2."""
    model, x, y = batch(name, COUNT)
    config = SPATConfig(eps=0.1, norm=norm, steps=4, random_start="none", smoothing=0)
    found = CALLS[name].perturb(model, x, y, config, validate=False)
    d = BACKENDS[name]().numpy(found) - BACKENDS[name]().numpy(x)
    np.testing.assert_array_equal(d[:, 0], 0)
    assert d[:, 1] == pytest.approx(0.1, rel=1e-5)


PLAN = TrainConfig(epochs=2, batch_size=4, lr=1e-3, schedule="constant", progress=False)


def test_training_reports_the_share_and_warns_once_an_epoch(name: str) -> None:
    model, *arrays = batch(name, 2)
    config, data = SPATConfig(eps=0.01, steps=2), tuple(map(BACKENDS[name]().numpy, arrays))
    with pytest.warns(RuntimeWarning, match=TOLD) as told:
        result = spatlib.train(model, (data, data), backend=name, config=config, training=PLAN)
    assert [row["hole_rate"] for row in result.history] == [0.25, 0.25]
    said = [str(one.message) for one in told if "of epoch" in str(one.message)]
    assert ["25.00%" in text for text in said] == [True, True]
    assert ["of epoch 1" in said[0], "of epoch 2" in said[1]] == [True, True]


def test_keras_fit_reports_it_in_its_logs() -> None:
    model, x, y = batch("tf", 2)
    wrapped = SPATModel(model, SPATConfig(eps=0.01, steps=2), seed=0)
    wrapped.compile(optimizer=keras.optimizers.SGD(1e-3))
    history = wrapped.fit(x, y, batch_size=COUNT, epochs=1, verbose=0, validation_data=(x, y))
    assert history.history["hole_rate"] == [0.25]
    assert "val_hole_rate" not in history.history
    with pytest.warns(RuntimeWarning, match=TOLD):
        wrapped.fit(x, y, batch_size=COUNT, verbose=0)
    with pytest.warns(RuntimeWarning, match=r"not finite at 25.00% of the examples"):
        wrapped.evaluate(x, y, verbose=0)
