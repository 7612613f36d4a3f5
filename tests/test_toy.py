"""A backend of another package: one entry point, and `spatlib.train` finds it."""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spatlib
from spatlib import RECIPES, BackendError, ConfigError, DataError, Mask, SPATConfig, load_data
from spatlib.data import as_dataset
from spatlib.engines import BACKENDS, ENTRY_POINTS, Engine, engine_of, load_engine
from spatlib.evaluate import Evaluation, attacked_examples, measure
from spatlib.monitor import Monitor
from spatlib.runs import load_model

CONFIG = SPATConfig(eps=0.1, steps=5, mask=Mask())
TRAINING = {"epochs": 20, "lr": 0.5, "progress": False, "baseline": False}
RECIPE = RECIPES["digits"].change(eps=0.1, steps=5, mask=Mask(), **TRAINING)


def linear(classes: int = 10) -> Any:
    shape = (1, 8, 8)
    return load_engine("toy").build_model("", 0, shape=shape, classes=classes, mean=None, std=None)


def test_an_entry_point_is_enough_to_be_found() -> None:
    assert load_engine("toy").__name__ == "spatlib_toy.engine"
    with pytest.raises(BackendError, match=r"backend must be one of .*'toy'"):
        load_engine("toyish")


@pytest.mark.parametrize("name", [*BACKENDS, *entry_points(group=ENTRY_POINTS).names])
def test_an_engine_has_all_of_the_protocol_with_its_arguments(name: str) -> None:
    engine = load_engine(name)
    assert isinstance(engine.CHANNELS_FIRST, bool)
    functions = {part: f for part, f in vars(Engine).items() if not part.startswith("_")}
    assert {"build_model", "fit", "load_weights", "survivors", "vjp"} < set(functions)
    for part, function in functions.items():
        _, *asked = inspect.signature(function).parameters.values()
        ours = inspect.signature(getattr(engine, part)).parameters.values()
        assert [(p.name, p.kind, p.default) for p in ours] == [
            (p.name, p.kind, p.default) for p in asked
        ]


def test_the_toy_trains_evaluates_and_gains_robustness() -> None:
    result = spatlib.train(backend="toy", recipe=RECIPE)
    assert len(result.history) == 20
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    engine, ordinary = load_engine("toy"), linear()
    digits = as_dataset("digits", channels_first=True)
    engine.fit(ordinary, digits.train, CONFIG, Monitor(RECIPE.training, ordinary=True))
    standard = measure(engine, ordinary, digits.test, Evaluation(CONFIG)).metrics
    assert min(standard["clean"], result.metrics["clean"]) > 0.9
    assert result.metrics["pgd20"] > standard["pgd20"] + 0.02
    again = spatlib.evaluate(result.model, threat=CONFIG)
    np.testing.assert_equal(again.metrics, result.metrics)
    assert engine_of(result.model) is engine


def test_autoattack_needs_one_of_the_two_frameworks_and_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"attacks must be names .*got \['autoattack'\]"):
        spatlib.evaluate(linear(), load_data("digits"), CONFIG, attacks="autoattack")


@pytest.mark.usefixtures("without_pictures")
def test_the_toys_runs_are_validated_written_loaded_and_audited(tmp_path: Path) -> None:
    recipe = RECIPE.change(epochs=3, validation=200)
    result = spatlib.train(backend="toy", recipe=recipe, run_dir=tmp_path)
    assert all("val_pgd10" in row for row in result.history)
    assert {"best.safetensors", "last.safetensors", "sheet.png"} <= {
        p.name for p in tmp_path.iterdir()
    }
    model, _ = load_model(tmp_path)
    np.testing.assert_array_equal(model.weights, result.model.weights)
    engine, digits = load_engine("toy"), as_dataset("digits", channels_first=True)
    shown = attacked_examples(engine, model, digits.test, CONFIG, count=5)
    assert {name: value.shape for name, value in shown.items()} == {
        "x": (5, 8, 8, 1),
        "mask": (5, 8, 8, 1),
        "x_adv": (5, 8, 8, 1),
        "y": (5,),
        "clean": (5,),
        "adversarial": (5,),
    }
    assert set(np.unique(shown["mask"])) == {CONFIG.mask.floor, 1.0}
    assert (abs(shown["x_adv"] - shown["x"]) <= CONFIG.eps * shown["mask"] + 1e-12).all()
    x, x_adv = (np.moveaxis(shown[name], -1, 1) for name in ("x", "x_adv"))
    report = spatlib.audit(model, x, x_adv, shown["y"])
    assert report.count == 5
    other = linear(classes=3)
    with pytest.raises(DataError, match=r"weights must .*\(64, 3\), got \(64, 10\)"):
        engine.load_weights(other, engine.weights(model))
