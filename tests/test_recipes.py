"""Recipes: their values, how they stand in for arguments, and models asked for by name."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib
from benchmarks.evidence import SETTINGS
from benchmarks.evidence_arms import ARMS
from spatlib import ConfigError, Report, SPATConfig, TrainConfig
from spatlib.data import Dataset
from spatlib.recipes import RECIPES
from spatlib_tf import engine as tf_engine
from spatlib_torch import engine as torch_engine

from .test_errors import check

DATA = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}
QUICK = TrainConfig(epochs=1, batch_size=8, lr=0.01, schedule="constant", progress=False)
STEP = SPATConfig(eps=0.1, steps=1, share="rms")


def own(shape: tuple[int, ...] = (2, 5, 7), classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(16) % classes
    return rng.uniform(size=(16, *shape)).astype(np.float32), y


class Recorder:
    """An engine that keeps what it is called with."""

    CHANNELS_FIRST = True

    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = {"load": [], "build": [], "fit": [], "evaluate": []}

    def load(self, data: Any, **settings: Any) -> Dataset:
        self.calls["load"].append(data)
        if not isinstance(data, str):
            return Dataset(train=data)
        shape, classes = DATA[data]
        return Dataset(train=(np.zeros((classes, *shape), np.float32), np.arange(classes)))

    def build_model(self, name: str, seed: int, **settings: Any) -> str:
        self.calls["build"].append((name, seed, settings))
        return f"built {len(self.calls['build'])}"

    def check(self, data: Any, config: SPATConfig) -> None:
        pass

    def fit(self, *args: Any, ordinary: bool) -> list[Any]:
        self.calls["fit"].append(args[:5])
        return []

    def evaluate(self, *args: Any, **settings: Any) -> Report:
        self.calls["evaluate"].append(args)
        return Report(metrics={"clean": 1.0}, count=1, config=args[2])


def record(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    engine = Recorder()
    for name in ("spatlib.train", "spatlib.evaluate"):  # the functions hide the modules
        monkeypatch.setattr(sys.modules[name], "load_engine", lambda _: engine)
        monkeypatch.setattr(sys.modules[name], "load", engine.load)
    return engine


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(monkeypatch)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_decides_all_that_is_left_out(name: str, recorder: Recorder) -> None:
    recipe = RECIPES[name]
    result = spatlib.train(recipe=name)
    assert recorder.calls["load"] == [recipe.data]
    shape, classes = DATA[recipe.data]
    expected = (
        recipe.model,
        0,
        {"shape": shape, "classes": classes, "mean": recipe.mean, "std": recipe.std},
    )
    assert recorder.calls["build"] == [expected] * (1 + recipe.training.baseline)
    model, _, config, training, _ = recorder.calls["fit"][-1]
    assert (config, training) == (recipe.config, recipe.training)
    assert (result.model, result.config, result.training) == (model, config, training)
    spatlib.evaluate("a model", recipe=name)
    assert recorder.calls["load"] == [recipe.data] * 2
    assert recorder.calls["evaluate"][-1][0] == "a model"
    assert recorder.calls["evaluate"][-1][2] == recipe.config


@pytest.mark.parametrize("name", DATA)
def test_name_of_data_chooses_its_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def summary(*data: str, **arguments: Any) -> list[Any]:
        calls = record(monkeypatch).calls
        spatlib.train(None, *data, **arguments)
        spatlib.evaluate("a model", *data, **arguments)
        settings = [call[2:4] for call in calls["fit"]] + [call[2:] for call in calls["evaluate"]]
        return [calls["load"], calls["build"], settings]

    expected = summary(recipe=name)
    assert expected[0] == [name, name]
    assert summary(name) == expected
    assert (summary() == expected) == (name == "digits")


def test_the_baseline_does_not_wait_for_an_attack_to_grow(recorder: Recorder) -> None:
    training = dataclasses.replace(RECIPES["mnist"].training, baseline=True)
    spatlib.train(recipe="mnist", training=training)
    assert [call[3].eps_warmup for call in recorder.calls["fit"]] == [0, 5]


def test_explicit_arguments_win(recorder: Recorder) -> None:
    recipe, data = RECIPES["cifar10"], own((3, 6, 6))
    given = {"config": STEP, "training": dataclasses.replace(QUICK, seed=3), "data": data}
    for name, value in given.items():
        spatlib.train(recipe="cifar10", **{name: value})
        expected = {"config": recipe.config, "training": recipe.training} | {name: value}
        _, used, config, training, _ = recorder.calls["fit"][-1]
        assert (config, training) == (expected["config"], expected["training"])
        assert (used is data) == (name == "data")
        assert recorder.calls["build"][-1][:2] == ("preact_resnet18", training.seed)
        assert recorder.calls["build"][-1][2]["mean"] == recipe.mean
    assert recorder.calls["build"][-1][2]["shape"] == (3, 6, 6)
    spatlib.train("wrn34_10", recipe="cifar10")
    assert recorder.calls["build"].pop() == ("wrn34_10", *recorder.calls["build"][0][1:])
    built = len(recorder.calls["build"])
    network = object()
    spatlib.train(network, recipe="cifar10")
    assert recorder.calls["fit"][-1][0] is network
    spatlib.train(network, data, training=QUICK)
    assert recorder.calls["fit"][-1][2] == SPATConfig()
    assert len(recorder.calls["build"]) == built


LABELS: dict[str, Any] = {
    "integers": lambda y: y,
    "one column": lambda y: y[:, None],
    "one-hot": lambda y: np.eye(6, dtype=np.float32)[y],
    "torch": torch.as_tensor,
    "tf": tf.convert_to_tensor,
}


@pytest.mark.parametrize("form", LABELS)
def test_data_decide_shape_and_classes(form: str, recorder: Recorder) -> None:
    x, y = own()
    spatlib.train("small_cnn", (x, LABELS[form](y)), training=QUICK)
    classes = 6 if form == "one-hot" else 4
    settings = {"shape": (2, 5, 7), "classes": classes, "mean": None, "std": None}
    assert recorder.calls["build"] == [("small_cnn", 0, settings)]


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_a_network_by_name_is_built_and_trained_next_to_its_baseline(framework: str) -> None:
    x, y = own((2, 4, 6) if framework == "torch" else (4, 6, 2))
    training = dataclasses.replace(QUICK, baseline=True)
    result = spatlib.train("small_cnn", (x, y), backend=framework, config=STEP, training=training)
    logits = result.model(torch.as_tensor(x) if framework == "torch" else x)
    assert tuple(logits.shape) == (16, 4)
    assert isinstance(result.model, torch.nn.Module if framework == "torch" else keras.Model)
    assert set(result.baseline.metrics) == set(result.metrics)
    assert len(result.history) == 1


BATCHES = [tuple(map(torch.as_tensor, own()))]
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown recipe": ({"recipe": "cifar"}, "'cifar10-wrn'"),
    "recipe of another type": ({"recipe": RECIPES["mnist"]}, "recipe"),
    "unknown network": ({"model": "resnet", "data": own()}, "'small_cnn'"),
    "network by name for batches": ({"model": "small_cnn", "data": BATCHES}, "batches"),
    "recipe for batches": ({"recipe": "digits", "data": BATCHES}, "batches"),
    "recipe for grey images": (
        {"recipe": "cifar10", "data": own((1, 6, 6)), "training": QUICK},
        "mean",
    ),
    "vectors": ({"model": "small_cnn", "data": own((5,))}, "(5,)"),
    "one class": ({"model": "small_cnn", "data": own(classes=1)}, "classes"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_built_is_refused(case: str) -> None:
    arguments, word = BAD[case]
    check(ConfigError, word, lambda: spatlib.train(**arguments))


def test_unknown_recipe_is_refused_by_evaluate_too() -> None:
    check(ConfigError, "'mnist'", lambda: spatlib.evaluate(torch.nn.Flatten(), recipe="MNIST"))


@pytest.mark.parametrize("name", RECIPES)
def test_network_of_a_recipe_fits_its_data_in_both_frameworks(name: str) -> None:
    recipe = RECIPES[name]
    shape, classes = DATA[recipe.data]
    settings = {"classes": classes, "mean": recipe.mean, "std": recipe.std}
    with torch.device("meta"):  # shapes without values
        theirs = torch_engine.build_model(recipe.model, 0, shape=shape, **settings)
        assert theirs(torch.empty(2, *shape)).shape == (2, classes)
    last = (*shape[1:], shape[0])
    ours = tf_engine.build_model(recipe.model, 0, shape=last, **settings)
    assert (ours.input_shape, ours.output_shape) == ((None, *last), (None, classes))
    count = sum(p.numel() for p in theirs.parameters())
    assert count == sum(int(np.prod(w.shape)) for w in ours.trainable_weights)


def test_recipes_hold_the_published_settings() -> None:
    assert RECIPES["digits"].config == SPATConfig(eps=0.15)
    assert {name for name, recipe in RECIPES.items() if recipe.config.masked} == {"mnist"}
    assert RECIPES["mnist"].config.smoothing == 0
    assert RECIPES["digits"].training == TrainConfig(
        epochs=30, batch_size=64, lr=0.05, baseline=True
    )
    mnist = RECIPES["mnist"].config
    assert (mnist.eps, mnist.step_size, mnist.steps) == (0.3, 0.01, 40)
    assert {
        name: recipe.training.eps_warmup
        for name, recipe in RECIPES.items()
        if recipe.training.eps_warmup
    } == {"mnist": 5}
    for name, recipe in RECIPES.items():
        assert name.partition("-")[0] == recipe.data
        if recipe.data.startswith("cifar"):
            config, training = recipe.config, recipe.training
            assert (config.eps, config.step_size, config.steps) == (8 / 255, 2 / 255, 10)
            assert (training.batch_size, training.momentum) == (128, 0.9)
            assert training.weight_decay == 5e-4
            assert recipe.model == ("wrn34_10" if "wrn" in name else "preact_resnet18")
            peak = ("onecycle", 0.2) if "onecycle" in name else ("piecewise", 0.1)
            assert (training.schedule, training.lr) == peak


def test_plans_of_the_experiments_can_be_carried_out() -> None:
    for setting in SETTINGS.values():
        for arm in ARMS.values():
            eps, length = (
                arm.stretch * getattr(setting.config, name) for name in ("eps", "step_size")
            )
            config = dataclasses.replace(setting.config, eps=eps, step_size=length, **arm.config)
            assert config.eps == pytest.approx(arm.stretch * setting.config.eps)
        if setting.warm_up is not None:
            eps, epochs = setting.warm_up
            assert eps < setting.config.eps
            assert dataclasses.replace(setting.training, epochs=epochs).epochs == epochs
        assert setting.training.eps_warmup == 0  # all arms begin with the same attack
