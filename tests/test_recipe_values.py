"""What the recipes and the plans of the experiments hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.evidence import SETTINGS
from benchmarks.evidence_arms import ARMS
from spatlib import RECIPES, Mask, Recipe, SPATConfig, TrainConfig
from spatlib_tf import engine as tf_engine
from spatlib_torch import engine as torch_engine

from .recorder import DATA, OF_DATA


@pytest.mark.parametrize("name", OF_DATA)
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


def test_the_evidence_on_processors_is_of_one_precision() -> None:
    assert SETTINGS["cifar10-narrow"].training.precision == "float32"


def test_recipes_hold_the_published_settings() -> None:
    assert RECIPES["digits"].config == SPATConfig(eps=0.15)
    assert {name for name, recipe in RECIPES.items() if recipe.config.masked} == {"mnist"}
    assert RECIPES["mnist"].config.mask == Mask(score="min", keep=0.5, floor=0.5)
    assert RECIPES["mnist"].config.smoothing == 0
    assert RECIPES["digits"].training == TrainConfig(
        epochs=30, batch_size=64, lr=0.05, baseline=True
    )
    mnist = RECIPES["mnist"].config
    assert (mnist.eps, mnist.alpha, mnist.steps) == (0.3, 0.01, 40)
    assert {
        name: recipe.training.eps_warmup
        for name, recipe in RECIPES.items()
        if recipe.training.eps_warmup
    } == {"mnist": 5}
    for name, recipe in RECIPES.items():
        assert isinstance(recipe, Recipe)
        assert name.partition("-")[0] == (recipe.data or "imagenet")
        if name.startswith("cifar"):
            config, training = recipe.config, recipe.training
            assert (config.eps, config.alpha, config.steps) == (8 / 255, 2 / 255, 10)
            assert (training.batch_size, training.momentum) == (128, 0.9)
            assert training.weight_decay == 5e-4
            assert training.precision == "auto"
            assert recipe.model == ("wrn34_10" if "wrn" in name else "preact_resnet18")
            peak = ("onecycle", 0.2) if "onecycle" in name else ("piecewise", 0.1)
            assert (training.schedule, training.lr) == peak


def test_the_recipe_of_imagenet_is_for_a_network_and_data_of_ones_own() -> None:
    recipe = RECIPES["imagenet"]
    config, training = recipe.config, recipe.training
    assert (recipe.data, recipe.model) == (None, None)
    assert (config.eps, config.norm, config.steps) == (4 / 255, "Linf", 3)
    assert config.alpha == pytest.approx(2 / 3 * config.eps)
    assert (training.epochs, training.batch_size, training.schedule) == (90, 256, "cosine")
    assert (training.lr, training.momentum, training.weight_decay) == (0.1, 0.9, 1e-4)


def test_plans_of_the_experiments_can_be_carried_out() -> None:
    for setting in SETTINGS.values():
        for arm in ARMS.values():
            config = arm.attack(setting.config)
            assert config.eps == pytest.approx(arm.stretch * setting.config.eps)
            assert config.alpha == pytest.approx(arm.stretch * setting.config.alpha)
        if setting.warm_up is not None:
            eps, epochs = setting.warm_up
            assert eps < setting.config.eps
            assert replace(setting.training, epochs=epochs).epochs == epochs
        assert setting.training.eps_warmup == 0  # all arms begin with the same attack


def test_a_shorter_training_has_a_shorter_warm_up_and_a_longer_one_the_recipes_own() -> None:
    recipe = RECIPES["mnist"]
    assert recipe.change(epochs=5).training.eps_warmup == 4
    assert recipe.change(epochs=1).training.eps_warmup == 0
    assert recipe.change(epochs=6).training.eps_warmup == recipe.training.eps_warmup == 5
    assert recipe.change(steps=20).training == recipe.training
