"""What a report says of each example, what it does not depend on, and what it warns of."""

from __future__ import annotations

import io
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import spatlib
from spatlib import ConfigError, Threat
from spatlib.core.ops import Array, Ops
from spatlib.evaluate import Evaluation

from .landscapes import ENGINES, EPS, measure, model, points, ridges, rugged

RADII = {"Linf": 0.1, "L2": 0.4, "L1": 1.5}


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def report(name: str, norm: str = "Linf", **settings: Any) -> Any:
    attacks = ("pgd", "apgd-ce") if norm != "L1" else ("pgd", "margin")
    threat = Threat(eps=RADII[norm], norm=norm)
    settings = {"attacks": attacks, "steps": 2, "restarts": 2, "keep": True} | settings
    return spatlib.evaluate(rugged(name), points("torch"), threat, **settings)


@pytest.mark.parametrize("norm", RADII)
def test_no_size_of_batches_and_no_engine_changes_an_outcome(norm: str) -> None:
    whole = report("torch", norm, batch_size=1000)
    for each in ENGINES:
        for size in (7, 1000) if each != "torch" else (1, 64):
            found = report(each, norm, batch_size=size)
            assert list(found.outcomes) == list(whole.outcomes)
            for key, right in whole.outcomes.items():
                np.testing.assert_array_equal(found.outcomes[key], right)
                if key in whole.x_adv:  # a gradient of rounding noise may have another sign
                    moved = np.abs(found.x_adv[key] - whole.x_adv[key]) > 1e-4
                    assert moved.mean() < 0.003


@pytest.mark.parametrize("norm", RADII)
def test_a_start_follows_from_seed_restart_and_place_whatever_the_layout(norm: str) -> None:
    def starts(first: int, count: int, axis: int = -1, restarts: int = 2, seed: int = 5) -> Any:
        evaluation = Evaluation(Threat(eps=0.5, norm=norm), "pgd", 1, restarts, seed)
        shape = (count, 4, 5, 3) if axis == -1 else (count, 3, 4, 5)
        return np.stack([*evaluation.starts(first, shape, axis)])

    whole = starts(0, 9)
    np.testing.assert_array_equal(np.concatenate([starts(0, 2), starts(2, 7)], axis=1), whole)
    np.testing.assert_array_equal(np.moveaxis(starts(0, 9, axis=1), 2, -1), whole)
    np.testing.assert_array_equal(starts(0, 9, restarts=1), whole[:1])
    rows = whole.reshape(18, -1)
    assert len(np.unique(rows, axis=0)) == 18
    assert (starts(0, 9, seed=6) != whole).all()
    lengths = np.linalg.norm(rows, {"Linf": np.inf, "L2": 2, "L1": 1}[norm], axis=1)
    assert 0.4 < lengths.min() <= lengths.max() <= 0.5 + 1e-12


def test_outcomes_are_those_of_the_perturbed_inputs(name: str) -> None:
    found, y = report(name), points("torch")[1]
    assert {"pgd2", "apgd-ce2"} == set(found.x_adv) == set(found.outcomes) - {"clean", "worst"}
    x = points(name)[0]
    for key, x_adv in found.x_adv.items():
        right = ENGINES[name].module.logits(rugged(name), x_adv).argmax(axis=1) == y
        np.testing.assert_array_equal(found.outcomes[key], right)
        assert found.metrics[key] == right.mean() > 0
        assert np.abs(x_adv - x).max() <= EPS + 1e-6
        wrong = ~found.outcomes["clean"]
        np.testing.assert_array_equal(x_adv[wrong], x[wrong])
    assert report(name, keep=False).x_adv == {}


def test_the_worst_is_what_is_right_under_all_attacks(name: str) -> None:
    found = report(name, attacks=("pgd", "margin"), steps=1, restarts=1)
    both = found.outcomes["pgd1"] & found.outcomes["margin1"]
    np.testing.assert_array_equal(found.outcomes["worst"], both)
    assert found.metrics["worst"] == both.mean()
    assert found.metrics["worst"] <= found.metrics["margin1"] != found.metrics["pgd1"]
    assert list(found.per_class) == list(found.metrics)


def test_several_radii_give_a_report_each() -> None:
    radii = [0.02, 0.05, 0.1]
    found = report("torch", eps=radii)
    assert [each.threat for each in found] == [Threat(eps=eps) for eps in radii]
    assert found[-1].metrics == report("torch").metrics
    falling = [each.metrics["worst"] for each in found]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] > falling[-1]
    for bad in (0.1, [], "0.1"):
        with pytest.raises(ConfigError, match="eps must be a list of radii"):
            report("torch", eps=bad)
    with pytest.raises(ConfigError, match="eps must be a number"):
        report("torch", eps=[-1])


def test_arrays_stay_out_of_json() -> None:
    found = report("torch")
    values = json.loads(json.dumps(found.as_json()))
    assert not {"outcomes", "x_adv"} & set(values)
    assert values["metrics"] == found.metrics
    assert values["broken"] == found.broken
    with np.load(io.BytesIO(found.as_npz()), allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["outcomes_worst"], found.outcomes["worst"])
        np.testing.assert_array_equal(arrays["x_adv_pgd2"], found.x_adv["pgd2"])


@pytest.mark.parametrize("norm", RADII)
def test_pgd_does_not_stand_alone_in_l2(norm: str) -> None:
    metrics = set(report("torch", norm, attacks=None).metrics)
    assert metrics == {"clean", "pgd2", "margin2", "worst"} | ({"apgd2"} if norm == "L2" else set())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("file", [Terminal, io.StringIO])
def test_progress_is_shown_in_terminals(
    progress: bool, file: Callable[[], io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", seen := file())
    report("torch", batch_size=32, progress=progress)
    assert ("Linf eps 0.1: " in seen.getvalue()) == (progress and file is Terminal)


def broken(ops: Ops, x: Array, array: Callable[[Any], Array], value: float) -> Array:
    """The label's logit is ``value`` where the first pixel is above a half."""
    up = ops.where(x[:, :1] > 0.5, 0 * x[:, :1] + value, 1 + 0 * x[:, :1])
    return up * array([[1.0, 0.0]]) + array([[0.0, -1.0]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_count_as_wrong_and_are_warned_of(
    name: str, value: float
) -> None:
    x = np.array([[0.2], [0.3], [0.9], [0.45]])
    network = model(name, lambda ops, x, array: broken(ops, x, array, value))
    still = lambda network, x, y: x  # noqa: E731
    still.__name__ = "still"
    with pytest.warns(RuntimeWarning, match="not finite at 25.00%"):
        found = measure(name, network, x, np.zeros(4), still)
    assert found.outcomes["still"].tolist() == [True, True, False, True]
    assert found.broken == 0.25
    with pytest.warns(RuntimeWarning, match="not finite"):
        found = measure(name, network, x, np.zeros(4), ("pgd", "apgd-ce"))
    assert found.outcomes["clean"].tolist() == [True, True, False, True]
    assert not found.outcomes["worst"][2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(name, network, x[:2], np.zeros(2), ("pgd", "apgd-ce")).broken == 0


@pytest.mark.parametrize("attack", ["pgd", "margin", "apgd-t"])
def test_gradients_that_are_not_finite_are_warned_of(name: str, attack: str) -> None:
    def trapped(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
        return ridges(ops, ops.where(x < 2, x, ops.exp(999 * (x + 1))), array)

    x, y = points("torch")
    with pytest.warns(RuntimeWarning, match="gradients are not finite at 77.78%"):
        found = measure(name, model(name, trapped), x[:9], y[:9], attack, steps=2)
    assert found.broken == pytest.approx(7 / 9)  # all but one wrong clean, one wrong at the start


def weights(network: Any) -> list[Any]:
    return [w.detach().numpy().copy() if hasattr(w, "detach") else w.numpy() for w in network]


def test_what_a_callable_does_to_the_weights_is_undone() -> None:
    import keras

    x, y = points("torch")
    layers = torch.nn.Sequential(torch.nn.Linear(16, 4), torch.nn.BatchNorm1d(4))
    dense = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])

    def spoil(network: Any, x: Any, y: Any) -> Any:
        if isinstance(network, torch.nn.Module):
            network[0].weight.data.mul_(-1)
            network[0].bias = torch.nn.Parameter(torch.ones(4))
        else:
            network.layers[0].kernel.assign(-network.layers[0].kernel)
        return x

    for network in (layers.eval(), dense):
        held = network.parameters() if network is layers else [v.value for v in network.variables]
        before, threat = weights(held), Threat(eps=EPS)
        alone = spatlib.evaluate(network, (x, y), threat, attacks="pgd", steps=2, batch_size=40)
        attacks = (spoil, "pgd")
        found = spatlib.evaluate(network, (x, y), threat, attacks=attacks, steps=2, batch_size=40)
        held = network.parameters() if network is layers else [v.value for v in network.variables]
        assert all(map(np.array_equal, weights(held), before))
        assert found.metrics["pgd2"] == alone.metrics["pgd2"]
        assert found.metrics["spoil"] == found.metrics["clean"] == alone.metrics["clean"]


class Foreign:
    """An attack as torchattacks has them: it holds its model, and is called with a batch."""

    def __init__(self, network: Any) -> None:
        self.model, self.sizes = network, list[int]()

    def __call__(self, inputs: Any, labels: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.sizes.append(len(labels))
        return inputs


def test_objects_that_hold_their_model_are_called_with_a_batch(name: str) -> None:
    attack, (x, y) = Foreign(rugged(name)), points("torch")
    found = measure(name, rugged(name), x, y, attack, batch_size=50)
    assert found.metrics["Foreign"] == found.metrics["clean"]
    assert attack.sizes == [50, len(y) - 50]
