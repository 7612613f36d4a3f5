"""Runs of recipes and of named data: what decides them is kept, and compared when they go on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import spatlib
from spatlib import RECIPES, ConfigError, Recipe, load_data

from .test_resume import cut, interrupt, rows, values

pytestmark = pytest.mark.usefixtures("without_pictures")


def quick(name: str, **settings: Any) -> Recipe:
    """A recipe that is done at once."""
    small = {"model": "small_cnn", "epochs": 2, "steps": 1, "validation": 0, "batch_size": 16}
    return RECIPES[name].change(**small, progress=False, checkpoint_minutes=0, **settings)


@pytest.mark.parametrize("again", [{}, {"recipe": quick("cifar10")}], ids=["left out", "given"])
def test_a_network_of_a_recipe_is_built_again_as_it_was(
    again: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    data = rng.uniform(size=(40, 3, 8, 8)).astype(np.float32), rng.integers(3, size=40)
    given = {"data": data, "recipe": quick("cifar10")}  # it normalises, by colour
    expected = spatlib.train(run_dir=tmp_path / "whole", **given)
    with monkeypatch.context() as patch:
        cut(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            spatlib.train(run_dir=tmp_path / "cut", **given)
    result = spatlib.train(data=data, run_dir=tmp_path / "cut", resume=True, **again)
    assert rows(result.history) == rows(expected.history)
    for mine, its in zip(values(result.model), values(expected.model), strict=True):
        np.testing.assert_array_equal(mine, its)


def test_a_run_of_named_data_is_read_again_and_takes_no_other(tmp_path: Path) -> None:
    settings = {"run_dir": tmp_path, "recipe": quick("digits", baseline=False)}
    data = load_data("digits", limit=60)
    first = spatlib.train(data=data, **settings)
    for same in (None, data, load_data("digits", limit=60)):
        assert spatlib.train(data=same, **settings, resume=True).metrics == first.metrics
    x, y = load_data("digits").train
    for other, words in (
        ("digits", r"data\.limit = None instead of 60"),
        (load_data("digits", limit=61), r"data\.limit = 61 instead of 60"),
        ((np.moveaxis(x, -1, 1), y), r"data = your own instead of \{'name': 'digits'"),
    ):
        with pytest.raises(ConfigError, match=f"got {words}.*: leave them out"):
            spatlib.train(data=other, run_dir=tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"architecture = your own instead of .*'small_cnn'"):
        spatlib.train(nn.Sequential(nn.Flatten()), run_dir=tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"config\.eps = .* instead of 0\.15"):
        spatlib.train(recipe=quick("cifar10"), run_dir=tmp_path, resume=True)


def test_a_network_of_ones_own_in_the_place_of_a_recipes_is_resumed(tmp_path: Path) -> None:
    settings = {"run_dir": tmp_path, "recipe": quick("digits")}
    data = load_data("digits", limit=60)

    def run(**arguments: Any) -> Any:
        return spatlib.train(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), **arguments)

    with pytest.warns(UserWarning, match="no baseline"):
        first = run(data=data, **settings)
    with pytest.warns(UserWarning, match="no baseline"):
        assert run(**settings, resume=True).metrics == first.metrics
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(run_dir=tmp_path, resume=True).metrics == first.metrics
