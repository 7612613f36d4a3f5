"""Recipes: what may be changed of them, and calls that have half of one or no threat."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

import spatlib
from spatlib import RECIPES, ConfigError, Mask, Recipe, SPATConfig, Threat, TrainConfig

from .test_errors import ATTACK, X, Y, check, network


@pytest.mark.parametrize("name", RECIPES)
def test_a_changed_recipe_keeps_everything_else(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.change() == recipe
    changed = recipe.change(steps=3, mask=Mask(keep=0.2), lr=0.7, model="other")
    assert isinstance(changed, Recipe)
    assert changed.config == dataclasses.replace(recipe.config, steps=3, mask=Mask(keep=0.2))
    assert changed.training == dataclasses.replace(recipe.training, lr=0.7)
    own = {"config", "training", "model"}
    for field in dataclasses.fields(Recipe):
        kept = getattr(changed, field.name) == getattr(recipe, field.name)
        assert kept == (field.name not in own)
    assert changed.model == "other"
    short = recipe.change(epochs=2).training
    warmup = min(recipe.training.eps_warmup, 1)  # the last epoch is at full eps
    assert short == dataclasses.replace(recipe.training, epochs=2, eps_warmup=warmup)
    whole = recipe.change(config=SPATConfig(eps=0.1), training=TrainConfig(epochs=2), mean=None)
    assert (whole.config, whole.training) == (SPATConfig(eps=0.1), TrainConfig(epochs=2))
    assert whole.data == recipe.data


BAD_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"epoch": 5}, "epoch is no setting of a recipe"),
    ({"epoch": 5}, "perhaps epochs"),
    ({"step": 5}, "perhaps steps"),
    ({"smoothin": 0.1}, "perhaps smoothing"),
    ({"share": "min"}, "share is no setting of a recipe"),
    ({"steps": 5, "base": "trades"}, "base is no setting of a recipe"),
    ({"qqqq": 5}, "SPATConfig, TrainConfig or Recipe"),
    ({"steps": 0}, "steps"),
    ({"eps": 8}, "8/255"),
    ({"mask": "min"}, "spatlib.Mask"),
    ({"epochs": 3, "eps_warmup": 3}, "eps_warmup"),
    ({"eps_warmup": 100}, "eps_warmup"),
    ({"epochs": True}, "epochs"),
    ({"seed": -1}, "seed"),
    ({"loss": "trades", "random_start": "none"}, "random_start"),
]


@pytest.mark.parametrize(("changes", "word"), BAD_CHANGES, ids=str)
def test_a_change_that_names_no_setting_or_no_value_is_refused(
    changes: dict[str, Any], word: str
) -> None:
    check(ConfigError, word, lambda: RECIPES["mnist"].change(**changes))


BATCH = (X.numpy(), Y.numpy())
SCHEDULE = TrainConfig(epochs=1)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"recipe": "mnist", "config": ATTACK}, "config would drop settings"),
    ({"recipe": RECIPES["mnist"], "training": SCHEDULE}, "training would drop settings"),
    ({"recipe": "mnist", "config": ATTACK, "training": SCHEDULE}, "config and training would"),
    ({"data": "mnist", "config": ATTACK}, "config would drop settings of the recipe for 'mnist'"),
    ({"training": SCHEDULE}, "training would drop settings of the recipe for 'digits'"),
]


@pytest.mark.parametrize(("given", "word"), REFUSED, ids=str)
def test_half_of_a_recipe_is_refused_by_a_sentence_that_shows_how_to_change_one(
    given: dict[str, Any], word: str
) -> None:
    error = check(ConfigError, word, lambda: spatlib.train(**given))
    change = re.search(r"RECIPES\[\.\.\.\](\.change\(.*?\))", str(error))
    changed = eval(f"recipe{change[1]}", {"recipe": RECIPES["mnist"]})
    assert (changed.config.steps, changed.training.epochs) == (20, 5)
    both = "pass both config and training" in str(error)
    assert both == ("recipe" not in given)  # without recipe= there is another way out


@pytest.mark.parametrize(
    ("word", "act"),
    [
        ("config", lambda: spatlib.train(network(), BATCH)),
        ("config", lambda: spatlib.train(network(), BATCH, training=SCHEDULE)),
        ("threat", lambda: spatlib.evaluate(network(), BATCH)),
    ],
)
def test_own_data_without_a_threat_is_refused_by_a_sentence_that_states_one(
    word: str, act: Callable[[], Any]
) -> None:
    error = check(ConfigError, "state what an attack may do", act)
    assert str(error).startswith(f"{word} must ")
    stated = eval(re.search(r"spatlib\.SPATConfig\(.*?\)", str(error))[0], {"spatlib": spatlib})
    assert isinstance(stated, Threat)
    assert (stated.eps, stated.norm) == (8 / 255, "Linf")


@pytest.mark.parametrize("data", [BATCH, "digits"])
def test_a_baseline_of_a_network_of_ones_own_is_refused(data: Any) -> None:
    model, schedule = network(), TrainConfig(epochs=1, baseline=True)
    before = [p.tolist() for p in model.parameters()]
    error = check(
        ConfigError,
        "pass the name of a network",
        lambda: spatlib.train(model, data, config=ATTACK, training=schedule),
    )
    assert str(error).startswith("baseline must be False")
    assert [p.tolist() for p in model.parameters()] == before


@pytest.mark.parametrize("name", ["config", "training", "recipe", "threat"])
@pytest.mark.parametrize("value", [{"eps": 0.1}, 0.1, "linf", SPATConfig])
def test_settings_of_another_type_are_refused(name: str, value: Any) -> None:
    given = {"config": ATTACK, "training": SCHEDULE} | {name: value}
    word = "cifar10" if name == "recipe" else "spatlib."
    if name == "threat":
        error = check(ConfigError, word, lambda: spatlib.evaluate(network(), BATCH, value))
    else:
        error = check(ConfigError, word, lambda: spatlib.train(network(), BATCH, **given))
    assert str(error).startswith(f"{name} must be ")
