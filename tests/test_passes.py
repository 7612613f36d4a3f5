"""What is decided is attacked no further: how many examples a network is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib
from spatlib import ConfigError, Threat
from spatlib.core.ops import Array, Ops

from .landscapes import BACKENDS, ENGINES, EPS, measure, model, points, ridges, rugged

ALL = ("pgd", "margin", "targeted", "apgd")


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def mixed(ops: Ops, x: Array, array: Any) -> Array:
    """Logits that depend on all examples of the batch."""
    return ridges(ops, x, array) + 0.2 * ops.sum(x, axis=0)[:4]


def mixed_little(ops: Ops, x: Array, array: Any) -> Array:
    """The same between logits that are all small."""
    return 1e-10 * mixed(ops, x, array)


def mixed_some(ops: Ops, x: Array, array: Any) -> Array:
    """The same by less than the logits are."""
    return mixed(ops, x, array) + 100.0


def mixed_without_one(ops: Ops, x: Array, array: Any) -> Array:
    """The same where a class is ruled out."""
    return mixed(ops, x, array) + array([[0.0, 0.0, 0.0, -np.inf]])


def numbered(ops: Ops, x: Array, array: Any) -> Array:
    """Logits that depend on an example's place in the batch."""
    places = np.random.default_rng(0).normal(size=(200, 4))
    return ridges(ops, x, array) + array(places)[: len(x)]


def steep(ops: Ops, x: Array, array: Any) -> Array:
    """Class 0 up to 0.5, else class 1; no gradient says so."""
    return ops.sign(x - 0.5) * array([[-2.0, 2.0]])


class Shown:
    """Counts the examples that a network is shown while functions of TensorFlow run eagerly."""

    def __init__(self, network: Any) -> None:
        self.network, self.sizes = network, list[int]()

    def __enter__(self) -> list[int]:
        tf.config.run_functions_eagerly(True)
        if isinstance(self.network, torch.nn.Module):
            look = lambda _, given: self.sizes.append(len(given[0]))  # noqa: E731
            self.hook: Any = self.network.register_forward_pre_hook(look)
        else:
            self.hook, call = None, self.network.call

            def counted(x: Any, *rest: Any, **how: Any) -> Any:
                self.sizes.append(len(x))
                return call(x, *rest, **how)

            self.network.call = counted
        return self.sizes

    def __exit__(self, *_: Any) -> None:
        tf.config.run_functions_eagerly(False)
        if self.hook:
            self.hook.remove()


@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t", "targeted"])
def test_verdicts_are_those_of_each_example_alone(name: str, attack: str) -> None:
    network, (x, y) = rugged(name), points("torch")
    x, y = x[:40], y[:40]
    settings: dict[str, Any] = {"steps": 12, "restarts": 2, "keep": True}
    together = measure(name, network, x, y, attack, batch_size=40, **settings)
    alone = measure(name, network, x, y, attack, batch_size=1, **settings)
    key = f"{attack}12"
    np.testing.assert_array_equal(together.outcomes[key], alone.outcomes[key])
    assert 0 < together.metrics[key] < together.metrics["clean"]
    moved = np.abs(together.x_adv[key] - alone.x_adv[key]) > 1e-4
    assert moved.mean() < 0.003  # a gradient of rounding noise may have another sign


def test_only_what_is_undecided_is_shown_again(name: str) -> None:
    network, (x, y) = model(name, ridges), points("torch")
    with Shown(network) as sizes:
        report = measure(name, network, x, y, ALL, steps=20, batch_size=len(x))
    n, (looked, clean, some, start, *ways) = len(x), sizes
    assert [looked, clean, some, start] == [n, n, len(range(1, n, 3)), n]
    assert ways[:21] == [ways[0]] * 21  # all of PGD: what is right clean and at the start
    assert ways[0] <= report.metrics["clean"] * n < n
    # Nine ways with three targets each, if all examples went them to the end.
    assert sum(ways) < 0.6 * 9 * 21 * ways[0]
    assert ways[-1] == round(report.metrics["apgd20"] * n)


def test_every_other_class_is_a_target_once(name: str) -> None:
    network, (x, y), counts = model(name, ridges), points(name), list[int]()
    for attack in ("pgd", "targeted"):
        with Shown(network) as sizes:
            settings: dict[str, Any] = {"steps": 5, "batch_size": len(x), "attacks": (attack,)}
            spatlib.evaluate(network, (x, y), Threat(eps=1e-6), **settings)
        counts.append(len(sizes))
    assert counts[1] - counts[0] == 2 * 6  # three targets: 5 steps and a last look each


def test_auto_pgd_drops_what_is_decided_at_its_checkpoints(name: str) -> None:
    network, (x, y) = model(name, ridges), points(name)
    with Shown(network) as sizes:
        measure(name, network, x, y, ("apgd-ce",), steps=20, batch_size=len(x))
    _, _, _, _, first, *ways = sizes
    assert first == ways[0] > ways[-1]
    assert ways == sorted(ways, reverse=True)


@pytest.mark.parametrize("logits", [mixed, mixed_little, mixed_some, mixed_without_one, numbered])
def test_where_a_batch_is_a_whole_it_stays_one(name: str, logits: Any) -> None:
    network, (x, y), array = model(name, logits), points("torch"), BACKENDS[name]().array
    data = [(array(x[k]), array(y[k])) for k in (slice(1), slice(1, None))]  # one says nothing
    with Shown(network) as sizes:
        spatlib.evaluate(network, data, Threat(eps=EPS), attacks=("pgd", "apgd-ce"), steps=12)
    smaller = [size for size in sizes if 1 < size < len(x) - 1]
    assert smaller == [len(range(1, len(x) - 1, 3))]  # only to find out
    assert sizes.count(len(x) - 1) > 24


@pytest.mark.parametrize("size", [1000, 7])
def test_the_worst_alone_is_the_worst_of_all_in_fewer_passes(name: str, size: int) -> None:
    network, (x, y), shown, found = model(name, ridges), points("torch"), [], []
    for worst_only in (False, True):
        with Shown(network) as sizes:
            settings: dict[str, Any] = {"steps": 5, "batch_size": size, "keep": True}
            found.append(measure(name, network, x, y, ALL, worst_only=worst_only, **settings))
            shown.append(sum(sizes))
    every, worst = found
    assert list(worst.metrics) == ["clean", "worst"]
    np.testing.assert_array_equal(worst.outcomes["worst"], every.outcomes["worst"])
    assert 0 < worst.metrics["worst"] < worst.metrics["clean"]
    assert shown[1] < 0.7 * shown[0]
    quick, slow = "PGD-5, then CW margin PGD-5, then APGD-CE-5", "targeted APGD-DLR-5 (3 targets)"
    titles = f"{quick}, then targeted margin PGD-5 (3 targets), then {slow}"
    assert worst.attacks == {"worst": titles}
    wrong = ~worst.outcomes["worst"] & worst.outcomes["clean"]
    read = ENGINES[name].module.logits(network, worst.x_adv["worst"]).argmax(axis=1)
    assert (read != y)[wrong].all()
    assert (read == y)[worst.outcomes["worst"]].all()


def test_callables_get_what_the_named_attacks_left(name: str) -> None:
    ops, seen = BACKENDS[name]().ops, list[int]()

    def shift(network: Any, x: Array, y: Array) -> Array:
        seen.append(len(x))
        assert len(x) == len(y)
        return ops.clip(x + EPS, 0.0, 1.0)

    shift.__name__ = "{shift}"  # as no text to be filled in
    network, x = model(name, steep), np.linspace(0.4, 0.49, 20)[:, None]
    y = np.zeros(len(x))
    settings: dict[str, Any] = {"steps": 3, "batch_size": 1000}
    every = measure(name, network, x, y, ("pgd", shift), **settings)
    worst = measure(name, network, x, y, (shift, "pgd"), worst_only=True, **settings)
    assert seen == [len(x), round(every.metrics["pgd3"] * len(x))]
    assert worst.attacks == {"worst": "PGD-3, then {shift}"}
    assert worst.metrics == {key: every.metrics[key] for key in ("clean", "worst")}
    assert every.metrics["worst"] < every.metrics["pgd3"]
    alone = measure(name, network, x, y, shift, worst_only=True, batch_size=9)
    assert alone.metrics["worst"] == every.metrics["{shift}"]


def test_batches_may_have_other_lengths_of_inputs(name: str) -> None:
    def mean(ops: Ops, x: Array, array: Any) -> Array:
        average = ops.sum(x, axis=1, keepdims=True) / int(x.shape[1])
        return (average - 0.5) * array([[-1.0, 1.0]])

    array, rng = BACKENDS[name]().array, np.random.default_rng(0)
    parts = [rng.uniform(0.3, 0.7, (9, length)).astype(np.float32) for length in (3, 5, 3)]
    data = [(array(x), array((x.mean(axis=1) > 0.5).astype(np.int64))) for x in parts]
    report = spatlib.evaluate(model(name, mean), data, Threat(eps=0.02), steps=2)
    distance = np.concatenate([abs(x.mean(axis=1) - 0.5) for x in parts])
    assert report.outcomes["pgd2"].tolist() == (distance > 0.02).tolist()


def test_worst_only_is_true_or_false() -> None:
    with pytest.raises(ConfigError, match="worst_only must be True or False, got 1"):
        spatlib.evaluate(rugged("torch"), points("torch"), Threat(eps=EPS), worst_only=1)  # type: ignore[arg-type]
