"""What is seldom asked for: options left out, files that are missing, packages too."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import RECIPES, BackendError, ConfigError, Mask, SPATConfig, TrainConfig, audit
from spatlib.__main__ import main as command
from spatlib.cli import main
from spatlib.data import as_dataset
from spatlib.engines import load_engine

from .test_tf_model import arrays as keras_arrays
from .test_tf_model import network as keras_network


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def digits(count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    x, y = as_dataset("digits", channels_first=True).train
    return x[:count], y[:count]


def test_similarity_is_measured_if_asked_for() -> None:
    x, y = digits()
    moved = np.clip(x + 0.3, 0, 1)
    y = linear()(torch.as_tensor(x)).argmax(dim=1)  # what the judge reads
    assert audit(linear(), x, moved, y).ssim is None
    assert audit(linear(), x, moved, y, ssim=True).ssim < 0.99


def test_a_network_of_ones_own_gets_no_baseline_of_a_recipe_and_is_told_so() -> None:
    recipe = RECIPES["digits"].change(epochs=1, steps=1, progress=False, mask=Mask())
    assert recipe.training.baseline
    with pytest.warns(UserWarning, match="no baseline: the recipe's is for networks built by name"):
        result = spatlib.train(linear(), digits(), recipe=recipe)
    assert result.baselines == {}
    assert not result.training.baseline


def test_patience_needs_validation() -> None:
    with pytest.raises(ConfigError, match=r"patience must be .*\(set validation"):
        TrainConfig(patience=3)


class Loader:
    def __iter__(self) -> Iterator[Any]:
        return iter([digits()])


def test_two_loaders_are_for_training_and_testing() -> None:
    train, test = Loader(), Loader()
    dataset = as_dataset((train, test), channels_first=True)
    assert dataset.train is train
    assert dataset.test is test


def test_masks_need_no_check_of_values() -> None:
    x, y = map(torch.as_tensor, digits(4))
    config = SPATConfig(eps=0.1, mask=Mask(score="mean"))
    checked = spatlib_torch.shared_mask(linear(), x, y, config)
    assert torch.equal(spatlib_torch.shared_mask(linear(), x, y, config, validate=False), checked)
    model, (images, labels) = keras_network(), map(tf.constant, keras_arrays())
    found = spatlib_tf.shared_mask(model, images, labels, config, validate=False)
    assert np.array_equal(found, spatlib_tf.shared_mask(model, images, labels, config))


def test_the_eps_of_a_recipe_is_not_that_of_another_norm(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "digits", "--norm", "L2"]) == 2
    assert "pass --eps" in capsys.readouterr().err


def test_a_missing_framework_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'torch'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=r"spatlib_torch\.engine cannot be imported") as told:
        load_engine("torch")
    assert "No module named 'torch'): run pip install torch" in str(told.value)


def test_the_command_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "spatlib.cli")
    monkeypatch.setitem(sys.modules, "tyro", None)
    assert command() == 2
    assert "run pip install tyro" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "spatlib.cli", None)  # something else is missing
    with pytest.raises(ModuleNotFoundError, match=r"spatlib\.cli"):
        command()
