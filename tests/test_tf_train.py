"""spatlib.train(backend="tf"): the API, the results and the safety of the PyTorch engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers

import spatlib
import spatlib_tf
from spatlib import RECIPES, Mask, Result, SPATConfig, TrainConfig
from spatlib_tf.attack import attacked
from spatlib_tf.models import MODELS

from .test_tf_model import BATCH, COUNT, Batches, arrays, fit, network, same, spat
from .test_training import HISTORY

pytestmark = pytest.mark.usefixtures("one_attack")
METRICS = {"clean", "pgd20", "worst"}


def training(**settings: Any) -> TrainConfig:
    quick = {
        "epochs": 2,
        "batch_size": BATCH,
        "lr": 0.05,
        "schedule": "constant",
        "progress": False,
    }
    return TrainConfig(**quick | settings)


def train(data: Any, model: keras.Model | None = None, **settings: Any) -> Result:
    config = settings.pop("config", SPATConfig(eps=0.1, steps=1, mask=Mask(score="rms")))
    return spatlib.train(
        network() if model is None else model,
        data,
        backend="tf",
        config=config,
        training=training(**settings),
    )


@cache
def expected(kind: str) -> Result:
    return train(arrays() if kind == "arrays" else list(Batches()))


ARRAYS: dict[str, Callable[[], Any]] = {
    "float64": lambda: (arrays()[0].astype(np.float64), arrays()[1].astype(np.int32)),
    "with test data": lambda: (arrays(), arrays(1)),
    "torch tensors": lambda: tuple(map(torch.as_tensor, arrays())),
    "one-hot": lambda: (arrays()[0], np.eye(3, dtype=np.float32)[arrays()[1]]),
}
BATCHES: dict[str, Callable[[], Any]] = {
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(arrays()).batch(BATCH),
    "dataset of dicts": lambda: tf.data.Dataset.from_tensor_slices(
        dict(zip("xy", arrays(), strict=True))
    ).batch(BATCH),
    "PyDataset": Batches,
    "float64 batches": lambda: [(x.astype(np.float64), y) for x, y in Batches()],
}


@pytest.mark.parametrize(
    ("kind", "form"),
    [*(("arrays", form) for form in ARRAYS), *(("batches", form) for form in BATCHES)],
)
def test_data_of_every_form_train_alike(kind: str, form: str) -> None:
    result = train((ARRAYS | BATCHES)[form]())
    assert same(result.model, expected(kind).model, 1e-6)
    assert result.measured_on == ("test" if form == "with test data" else "training")
    assert result.report.count == COUNT


def test_result_and_history_are_those_of_the_twin() -> None:
    result = expected("arrays")
    assert [entry["epoch"] for entry in result.history] == [1, 2]
    for entry in result.history:
        assert set(entry) == HISTORY
        assert all(math.isfinite(value) for value in entry.values())
    assert set(result.metrics) == METRICS
    assert result.metrics == result.report.metrics
    assert max(result.metrics.values()) == result.metrics["clean"]
    assert isinstance(result.model, keras.Sequential)
    assert not same(result.model, network())


def test_one_seed_gives_one_run_and_leaves_the_global_generators_alone() -> None:
    model = network()
    random.seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    result = train(arrays(), model)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002
    assert same(result.model, expected("arrays").model)
    assert result.metrics == expected("arrays").metrics
    assert not same(train(arrays(), seed=1).model, result.model)


def test_training_learns() -> None:
    result = train((arrays(), arrays(1, 40)), epochs=40, lr=0.1)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.metrics["clean"] > 0.9


class Endless:
    """Batches again and again, how many nobody knows."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(Batches()))


def test_an_unknown_length_is_fine_for_a_constant_rate() -> None:
    assert same(train(Endless()).model, expected("batches").model)


def test_inputs_keep_their_precision_under_a_mixed_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y), seen = network(), arrays(), []
    model.dtype_policy = keras.DTypePolicy("mixed_bfloat16")

    def look(model: keras.Model, x: Any, *rest: Any, **settings: Any) -> Any:
        seen.append(x.dtype)
        return attacked(model, x, *rest, **settings)

    monkeypatch.setattr("spatlib_tf.model.attacked", look)
    for inputs in (x, np.uint8(255 * x)):
        train((inputs, y), model, epochs=1)
    assert model.compute_dtype == "bfloat16"
    assert len(seen) >= 2
    assert set(seen) == {tf.float32}


def test_recipe_trains_the_baseline_and_prints_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def linear(*_: Any, **settings: Any) -> keras.Model:
        return keras.Sequential([layers.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])

    monkeypatch.setitem(MODELS, "small_cnn", linear)  # the real one takes long to evaluate
    result = spatlib.train(
        backend="tf",
        recipe=RECIPES["digits"].change(steps=1, epochs=1, batch_size=256),
    )
    head, clean, pgd, *_, note = str(result).splitlines()
    assert head.split() == ["standard", "PGD-AT", "SPAT"]
    assert (clean.split()[0], pgd.split()[0]) == ("clean", "PGD-20")
    assert "450 examples" in note
    assert set(result.baselines["standard"].metrics) == set(result.metrics) == METRICS
    assert str(result) in capsys.readouterr().out


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[str]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize(
    ("policy", "loss"),
    [("mixed_bfloat16", "pgd"), ("mixed_float16", "trades")],
    indirect=["policy"],
)
def test_mixed_precision_trains(policy: str, loss: str) -> None:
    model = spat(
        config=SPATConfig(loss=loss, eps=0.1, steps=2, mask=Mask()),
        optimizer=keras.optimizers.SGD(0.5),
    )
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    assert model.base.compute_dtype == policy.removeprefix("mixed_")
    history = fit(model, epochs=8)
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert all(np.isfinite(values).all() for values in history.values())
    assert {v.dtype for v in model.base.trainable_variables} == {"float32"}


def test_without_a_seed_two_models_draw_different_starts() -> None:
    bases = [network(), network()]
    models = [spat(base, seed=None) for base in bases]
    for model in models:
        model.train_on_batch(*arrays())
    assert not same(*models)


@pytest.mark.parametrize("function", [spatlib_tf.perturb, spatlib_tf.spat_loss])
def test_a_generator_decides_the_draws_and_moves_on(function: Callable[..., Any]) -> None:
    (x, y), config = arrays(), SPATConfig(eps=0.1, steps=2, mask=Mask())
    first, second = keras.random.SeedGenerator(3), keras.random.SeedGenerator(3)
    draws = [
        function(network(), x, y, config, generator=source).numpy()
        for source in (first, first, second)
    ]
    assert np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[1])
