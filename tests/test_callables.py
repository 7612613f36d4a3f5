"""Attacks of one's own in all engines: how they are called, counted, checked and cleaned up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import Tensor, nn

import spatlib
from spatlib import ConfigError, DataError, Threat
from spatlib.core.ops import Array, Ops

from .landscapes import ENGINES, EPS, measure, model, noise, points, rugged
from .test_torch_state import batch as torch_batch
from .test_torch_state import network, state


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def sign_of_first(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
    """Class 0 where the first pixel is below 0.5, else class 1."""
    return (x[:, :1] - 0.5) * array([[-1.0, 1.0]])


def test_callables_count_where_clean_and_moved_are_right(name: str) -> None:
    x = np.array([[0.45, 0.5], [0.2, 0.5], [0.55, 0.5], [0.45, 0.5]])
    seen = []

    def shift(network: Any, x: Any, y: Any) -> Any:
        seen.append((network, tuple(x.shape), np.asarray(y).tolist()))
        return x + 0.09

    landscape = model(name, sign_of_first)
    # Right and moved over the line, right and not, wrong, wrong but right after the move.
    report = measure(name, landscape, x, [0, 0, 0, 1], (shift, "pgd"), batch_size=3)
    assert report.metrics == {"clean": 0.5, "shift": 0.25, "pgd20": 0.25, "worst": 0.25}
    assert seen == [(landscape, (3, 2), [0, 0, 0]), (landscape, (1, 2), [1])]


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_callables_may_go_to_the_edge_and_no_further(name: str, norm: str) -> None:
    x, y = np.random.default_rng(0).uniform(0.3, 0.7, size=(5, 20)), np.zeros(5)
    length = EPS / {"Linf": 1, "L2": 20**0.5, "L1": 20}[norm]

    def edge(network: Any, x: Any, y: Any) -> Any:
        return x - length

    def beyond(network: Any, x: Any, y: Any) -> Any:
        return x - (length + 1e-6)

    landscape = model(name, sign_of_first)
    assert measure(name, landscape, x, y, edge, norm=norm).metrics["edge"] >= 0
    with pytest.raises(DataError, match=f"x_adv of beyond.*{norm} distances up to 0.1.*more"):
        measure(name, landscape, x, y, beyond, norm=norm)


BAD: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda x: None,
    "a list": lambda x: ["x"],
    "another shape": lambda x: x[:1],
    "below the bounds": lambda x: x - 0.51,
    "not a number": lambda x: x * float("nan"),
    "infinite": lambda x: x + float("inf"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_no_callable_may_return(name: str, kind: str) -> None:
    def bad(network: Any, x: Any, y: Any) -> Any:
        return BAD[kind](x)

    with pytest.raises(DataError, match="x_adv of bad"):
        measure(name, model(name, sign_of_first), np.full((4, 2), 0.5), np.zeros(4), bad)


@pytest.mark.parametrize("form", ["column", "one-hot"])
def test_labels_of_keras_forms_give_the_same_report(form: str) -> None:
    x, y = points("tf")
    labels = np.eye(4)[y] if form == "one-hot" else y[:, None]
    seen = []

    def still(network: Any, x: Any, y: Any) -> Any:
        seen.append((y.dtype.name, tf.executing_eagerly(), y.numpy().tolist()))
        return x

    threat = Threat(eps=EPS)
    settings = {"attacks": ("pgd", "targeted", still), "steps": 2, "batch_size": len(x)}
    report = spatlib.evaluate(rugged("tf"), (x, labels), threat, **settings)
    assert report == spatlib.evaluate(rugged("tf"), (x, y), threat, **settings)
    assert seen == [("int64", True, y.tolist())] * 2


class Meddler:
    """An attack that leaves behind all that it can."""

    def __init__(self) -> None:
        self.found: list[tuple[bool, ...]] = []

    def __call__(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        modes = any(module.training for module in network.modules())
        weights = any(p.requires_grad for p in network.parameters())
        self.found.append((torch.is_grad_enabled(), modes, weights, x.requires_grad))
        network.train()
        network(torch.rand_like(x))  # moves the statistics and both generators
        leaf = x.clone().requires_grad_()
        nn.functional.cross_entropy(network(leaf), y).backward()
        moved = (leaf + EPS * leaf.grad.sign()).clamp(0, 1)
        torch.set_grad_enabled(False)
        x.zero_()
        y.zero_()
        return moved


def test_a_callable_finds_the_model_ready_and_leaves_no_trace_in_torch() -> None:
    (x, y), meddler = torch_batch(), Meddler()
    network_, threat = network(), Threat(eps=EPS)
    before, rng, inputs = state(network_), torch.get_rng_state(), (x.tolist(), y.tolist())
    settings: dict[str, Any] = {"steps": 2, "batch_size": 2}
    with torch.no_grad():
        report = spatlib.evaluate(network_, (x, y), threat, attacks=(meddler, "pgd"), **settings)
        assert not torch.is_grad_enabled()
    assert meddler.found
    assert set(meddler.found) == {(True, False, False, False)}
    assert state(network_) == before
    assert torch.equal(torch.get_rng_state(), rng)
    assert (x.tolist(), y.tolist()) == inputs
    alone = spatlib.evaluate(network_, (x, y), threat, attacks=("pgd",), **settings)
    assert report.metrics["pgd2"] == alone.metrics["pgd2"]
    assert list(report.metrics) == ["clean", "Meddler", "pgd2", "worst"]
    np.testing.assert_equal(report.per_class["clean"], alone.per_class["clean"])


def test_a_failing_callable_leaves_no_trace_in_torch() -> None:
    def fail(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        network.train()
        raise KeyError("boom")

    network_, (x, y) = network(), torch_batch()
    before = state(network_)
    with pytest.raises(KeyError, match="boom"):
        spatlib.evaluate(network_, (x, y), Threat(eps=EPS), attacks=(fail,))
    assert state(network_) == before


def test_attacks_and_steps_are_passed_on(name: str) -> None:
    x, y = points(name)
    attacks = ("targeted", noise(name))
    report = spatlib.evaluate(rugged(name), (x, y), Threat(eps=EPS), attacks=attacks, steps=3)
    assert list(report.metrics) == ["clean", "targeted3", "noise", "worst"]


class Holder:
    """Holds a model, and yet wants to be given one."""

    model = None

    def __call__(self, network: Any, x: Any, y: Any) -> Any:
        return x


def test_attacks_that_cannot_be_called_as_they_will_be_are_refused(name: str) -> None:
    x, y = points(name)
    for attack in (Holder(), lambda x, y: x, lambda network, x, y, more: x, 3):
        with pytest.raises(
            ConfigError, match=r"attack\(model, x, y\), attack\(x, y\) if they hold"
        ):
            measure(name, rugged(name), x, y, attack)
