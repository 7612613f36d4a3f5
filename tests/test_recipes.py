"""Recipes: how they stand in for arguments and change; and models asked for by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib
from spatlib import RECIPES, ConfigError, Mask, NonFiniteError, SPATConfig, Threat, TrainConfig

from .recorder import DATA, OF_DATA, Recorder, own, record
from .test_errors import check

QUICK = TrainConfig(epochs=1, batch_size=8, lr=0.01, schedule="constant", progress=False)
STEP = SPATConfig(eps=0.1, steps=1, mask=Mask(score="rms"))
NETWORK = torch.nn.Identity()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    return record(monkeypatch)


def threat_of(config: SPATConfig) -> Threat:
    return Threat(eps=config.eps, norm=config.norm, bounds=config.bounds)


def settled(training: TrainConfig) -> TrainConfig:
    """As an engine gets it: ``"auto"`` is what the recorder says."""
    precision: Any = "bfloat16" if training.precision == "auto" else training.precision
    return replace(training, precision=precision)


@pytest.mark.parametrize("as_name", [True, False])
@pytest.mark.parametrize("name", OF_DATA)
def test_recipe_decides_all_that_is_left_out(name: str, as_name: bool, recorder: Recorder) -> None:
    recipe = RECIPES[name]
    given = name if as_name else recipe
    result = spatlib.train(recipe=given)
    assert recorder.calls["load"] == [recipe.data]
    shape, classes = DATA[recipe.data]
    expected = (
        recipe.model,
        0,
        {"shape": shape, "classes": classes, "mean": recipe.mean, "std": recipe.std},
    )
    assert recorder.calls["build"] == [expected] * (3 if recipe.training.baseline else 1)
    model, _, config, training, _ = recorder.calls["fit"][-1]
    assert (config, training) == (recipe.config, settled(recipe.training))
    assert (result.model, result.config, result.training) == (model, config, training)
    assert result.report.threat == threat_of(recipe.config)
    report = spatlib.evaluate(NETWORK, recipe=given)
    assert recorder.calls["load"] == [recipe.data] * 2
    assert recorder.calls["evaluate"][-1][0] is NETWORK
    assert report.threat == threat_of(recipe.config)


@pytest.mark.parametrize("name", DATA)
def test_name_of_data_chooses_its_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def summary(*data: Any, **arguments: Any) -> list[Any]:
        calls = record(monkeypatch).calls
        spatlib.train(None, *data, **arguments)
        spatlib.evaluate(NETWORK, *data, **arguments)
        settings = [call[2:4] for call in calls["fit"]] + [call[1:] for call in calls["evaluate"]]
        return [calls["load"], calls["build"], settings]

    expected = summary(recipe=name)
    assert expected[0] == [name, name]
    assert summary(name) == expected
    assert summary(Recorder().load_data(name)) == [[], *expected[1:]]
    assert (summary() == expected) == (name == "digits")


def test_the_baseline_does_not_wait_for_an_attack_to_grow(recorder: Recorder) -> None:
    spatlib.train(recipe=RECIPES["mnist"].change(baseline=True))
    assert [call[3].eps_warmup for call in recorder.calls["fit"]] == [0, 5, 5]


@pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
def test_the_baselines_are_what_spat_is_compared_with(loss: str, recorder: Recorder) -> None:
    names, settings = {"pgd": "PGD-AT", "trades": "TRADES", "mart": "MART"}, {"loss": loss}
    spat = RECIPES["digits"].change(**settings, mask=Mask())
    plain = spat.change(smoothing=0, mask=None)
    result = spatlib.train(recipe=spat)
    *_, (_, _, method, _, label), (_, _, own, _, last) = recorder.calls["fit"]
    assert (label, method, last, own) == (names[loss], plain.config, "SPAT", spat.config)
    assert str(result).splitlines()[0].split() == [*result.baselines, last]
    # A method that is plain itself is called by its name, and compared with ordinary training.
    result = spatlib.train(recipe=plain.change(mask=Mask(keep=1)))
    assert [call[4] for call in recorder.calls["fit"]][3:] == ["standard", names[loss]]
    assert str(result).splitlines()[0].split() == ["standard", names[loss]]


def test_a_recipe_is_changed_setting_by_setting(recorder: Recorder) -> None:
    recipe, data = RECIPES["cifar10"], own((3, 6, 6))
    steps = {"steps": 1, "mask": Mask(score="rms")}
    schedule = {"seed": 3, "validation": 0, "epochs": 5}
    for changes in ({}, steps, schedule, {"model": "wrn34_10", "mean": (0.5,) * 3}):
        changed = recipe.change(**changes)
        spatlib.train(recipe=changed)
        _, _, config, training, _ = recorder.calls["fit"][-1]
        assert config == replace(recipe.config, **(changes if changes is steps else {}))
        planned = changes if changes is schedule else {}
        assert training == replace(settled(recipe.training), **planned)
        name, seed, settings = recorder.calls["build"][-1]
        assert (name, settings["mean"], settings["std"]) == (
            changed.model,
            changed.mean,
            recipe.std,
        )
        assert (name, settings["mean"]) == (
            changes.get("model", "preact_resnet18"),
            changes.get("mean", recipe.mean),
        )
        assert seed == training.seed
    everything = recipe.change(**steps, **schedule, model="wrn34_10")
    spatlib.train(data=data, recipe=everything)
    _, used, config, training, _ = recorder.calls["fit"][-1]
    assert used is data
    assert (config, training) == (everything.config, settled(everything.training))
    assert recorder.calls["build"][-1][:2] == ("wrn34_10", 3)
    assert recorder.calls["build"][-1][2]["shape"] == (3, 6, 6)
    assert recorder.calls["build"][-1][2]["mean"] == recipe.mean
    assert RECIPES["cifar10"] is recipe


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"epoch": 5}, "epoch is no setting of a recipe"),
        ({"epoch": 5}, "perhaps epochs"),
        ({"keep": 0.5}, "keep is no setting"),
        ({"steps": 0}, "steps must be"),
        ({"lr": -1}, "lr must be"),
        ({"eps_warmup": 100}, "eps_warmup must be below epochs"),
    ],
)
def test_a_change_that_means_nothing_is_refused(change: dict[str, Any], word: str) -> None:
    check(ConfigError, word, lambda: RECIPES["mnist"].change(**change))


def test_explicit_arguments_win(recorder: Recorder) -> None:
    recipe, data = RECIPES["cifar10"], own((3, 6, 6))
    spatlib.train(data="cifar10", config=STEP, training=replace(QUICK, seed=3))
    assert recorder.calls["fit"][-1][2:4] == (STEP, replace(QUICK, seed=3))
    assert recorder.calls["build"][-1][:2] == ("preact_resnet18", 3)
    assert recorder.calls["build"][-1][2]["mean"] == recipe.mean
    spatlib.train("wrn34_10", recipe="cifar10")
    assert recorder.calls["build"][-1][:2] == ("wrn34_10", 0)
    assert recorder.calls["build"][-1][2]["mean"] == recipe.mean
    built = len(recorder.calls["build"])
    network = object()
    spatlib.train(network, recipe="cifar10")
    assert recorder.calls["fit"][-1][0] is network
    spatlib.train(network, data, config=STEP)
    assert recorder.calls["fit"][-1][1:4] == (data, STEP, TrainConfig())
    spatlib.train(network, data, config=STEP, training=QUICK)
    assert recorder.calls["fit"][-1][2:4] == (STEP, QUICK)
    assert len(recorder.calls["build"]) == built
    threat = Threat(eps=0.2, norm="L2", bounds=(-1, 1))
    for given in ({"recipe": "cifar10"}, {"data": "cifar10"}):
        assert spatlib.evaluate(NETWORK, threat=threat, **given).threat == threat


def test_the_baseline_of_a_recipe_is_left_out_for_a_network_of_ones_own(recorder: Recorder) -> None:
    network = object()
    with pytest.warns(UserWarning, match="no baseline"):
        result = spatlib.train(network, recipe="digits")
    assert [call[0] for call in recorder.calls["fit"]] == [network]
    assert result.training == replace(RECIPES["digits"].training, baseline=False)
    assert result.baselines == {}
    with pytest.warns(UserWarning, match="no baseline"):
        spatlib.train(network, recipe=RECIPES["digits"].change(epochs=5))
    asked = {"config": STEP, "training": replace(QUICK, baseline=True)}
    for data in (own(), "digits"):
        check(
            ConfigError,
            "baseline must be False",
            lambda data=data: spatlib.train(network, data, **asked),
        )


TRAINED = ["standard", "PGD-AT", "SPAT"]


@pytest.mark.parametrize("label", TRAINED)
def test_the_network_whose_loss_is_not_finite_is_in_the_error(
    label: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*args: Any, **own: Any) -> list[Any]:
        if args[3].label == label:
            raise NonFiniteError(3, [{"epoch": 1}])
        return []

    monkeypatch.setattr(recorder, "fit", fit)
    with pytest.raises(NonFiniteError, match="step 3") as caught:
        spatlib.train(recipe="digits")
    result = caught.value.result
    assert result.model == f"built {1 + TRAINED.index(label)}"
    assert (result.history, result.report) == ([{"epoch": 1}], None)
    assert [*result.baselines] == TRAINED[: TRAINED.index(label)]


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
    spatlib.train("small_cnn", (x, LABELS[form](y)), config=STEP, training=QUICK)
    classes = 6 if form == "one-hot" else 4
    settings = {"shape": (2, 5, 7), "classes": classes, "mean": None, "std": None}
    assert recorder.calls["build"] == [("small_cnn", 0, settings)]


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_a_network_by_name_is_built_and_trained_next_to_its_baseline(framework: str) -> None:
    x, y = own((2, 4, 6) if framework == "torch" else (4, 6, 2))
    plain = {
        "config": replace(STEP, smoothing=0, mask=None),
        "training": replace(QUICK, baseline=True),
    }
    result = spatlib.train("small_cnn", (x, y), backend=framework, **plain)
    logits = result.model(torch.as_tensor(x) if framework == "torch" else x)
    assert tuple(logits.shape) == (16, 4)
    assert isinstance(result.model, torch.nn.Module if framework == "torch" else keras.Model)
    ((name, baseline),) = result.baselines.items()
    assert (name, set(baseline.metrics)) == ("standard", set(result.metrics))
    assert len(result.history) == 1


BATCHES = [tuple(map(torch.as_tensor, own()))]
NAMED: dict[str, Any] = {"model": "small_cnn", "config": STEP}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown recipe": ({"recipe": "cifar"}, "'cifar10-wrn'"),
    "recipe of another type": ({"recipe": STEP}, "recipe"),
    "unknown network": ({"model": "resnet", "data": own(), "config": STEP}, "'small_cnn'"),
    "network by name for batches": ({**NAMED, "data": BATCHES}, "batches"),
    "recipe for batches": ({"recipe": "digits", "data": BATCHES}, "batches"),
    "recipe for grey images": (
        {"recipe": RECIPES["cifar10"].change(validation=0), "data": own((1, 6, 6))},
        "mean",
    ),
    "vectors": ({**NAMED, "data": own((5,))}, "(5,)"),
    "one class": ({**NAMED, "data": own(classes=1)}, "classes"),
    "no threat": ({"model": "small_cnn", "data": own(), "training": QUICK}, "SPATConfig(eps="),
    "a recipe and a config": ({"recipe": "mnist", "config": STEP}, "config would drop"),
    "a recipe and a schedule": ({"recipe": "mnist", "training": QUICK}, "training would drop"),
    "a recipe and both": (
        {"recipe": "mnist", "config": STEP, "training": QUICK},
        "config and training would drop settings of the recipe for 'mnist'",
    ),
    "half of what replaces a recipe": (
        {"data": "mnist", "config": STEP},
        "or pass both config and training",
    ),
    "half for no data": ({"training": QUICK}, "RECIPES[...].change("),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_built_is_refused(case: str) -> None:
    arguments, word = BAD[case]
    check(ConfigError, word, lambda: spatlib.train(**arguments))


def test_unknown_recipe_is_refused_by_evaluate_too() -> None:
    check(ConfigError, "'mnist'", lambda: spatlib.evaluate(torch.nn.Flatten(), recipe="MNIST"))
