"""The named attacks in all engines: what they find, and that none changes another's figures."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest

import spatlib
from spatlib import Report, Threat
from spatlib.core.ops import Array, Ops
from spatlib.evaluate import Evaluation

from .landscapes import ENGINES, EPS, Landscape, measure, model, noise, points, ridges, rugged


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def hidden(classes: int, reachable: int) -> Landscape:
    """Label 0 with logit 0; the rivals' logits fall by rank and with the pixel, and never win.

    But one rises with it, and wins in the last thousandth of the ball: an attack goes there only
    if it ascends that class alone.
    """
    rank = np.arange(classes)
    floor = np.where(rank == 0, 0.0, -0.1 * rank)
    slope = np.where(rank == 0, 0.0, np.where(rank == reachable, 0.05, -0.5))
    knee = np.where(rank == reachable, 5e4, 0.0)

    def logits(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
        u = x - 0.5
        above = ops.maximum(u - 0.999 * EPS, 0.0)
        return array(floor) + array(slope) * u + array(knee) * above

    return logits


def test_targeted_finds_what_the_untargeted_miss(name: str) -> None:
    x, y = np.full((8, 1), 0.5), np.zeros(8)
    report = measure(name, model(name, hidden(3, 2)), x, y, ("pgd", "margin", "targeted"))
    assert report.metrics == {"clean": 1, "pgd20": 1, "margin20": 1, "targeted20": 0, "worst": 0}


@pytest.mark.parametrize(("reachable", "robust"), [(1, 0), (9, 0), (10, 1)])
def test_targets_are_the_nine_best_of_the_other_classes(
    name: str, reachable: int, robust: int
) -> None:
    x, y = np.full((2, 1), 0.5), np.zeros(2)
    report = measure(name, model(name, hidden(12, reachable)), x, y, ("targeted",))
    assert report.metrics == {"clean": 1, "targeted20": robust, "worst": robust}
    assert report.attacks == {"targeted20": "targeted margin PGD-20 (9 targets)"}


@cache
def rugged_report(name: str, attacks: tuple[Any, ...], restarts: int = 1) -> Report:
    return measure(
        name, rugged(name), *points(name), attacks, steps=2, restarts=restarts, batch_size=32
    )


def full(name: str) -> tuple[Any, ...]:
    return ("pgd", "margin", "targeted", noise(name))


@pytest.mark.parametrize("alone", ["pgd", "margin", "targeted"])
def test_no_attack_changes_the_figures_of_another(name: str, alone: str) -> None:
    one, key = rugged_report(name, (alone,), 2), f"{alone}2"
    for attacks in (full(name), full(name)[::-1]):
        more = rugged_report(name, attacks, 2)
        assert len(more.metrics) == 6
        assert more.metrics[key] == one.metrics[key]
        np.testing.assert_equal(more.per_class[key], one.per_class[key])


def test_robust_accuracy_is_at_most_clean_and_falls_with_restarts_and_targets(name: str) -> None:
    one, more = rugged_report(name, full(name)), rugged_report(name, full(name), 4)
    assert 0.85 < one.metrics["clean"] == more.metrics["clean"] < 0.92
    for key in ("pgd2", "margin2", "targeted2"):
        assert more.metrics[key] < one.metrics[key] < one.metrics["clean"]
    assert one.metrics["targeted2"] < min(one.metrics["pgd2"], one.metrics["margin2"])
    assert one.metrics["noise"] <= one.metrics["clean"]


def test_classes_are_counted_by_label_and_add_up(name: str) -> None:
    report, (x, y) = rugged_report(name, full(name)), points(name)
    assert report.count == len(x)
    sizes = np.bincount(y, minlength=4)
    assert sizes[3] == 0
    assert min(sizes[:3]) > 0
    for key, shares in report.per_class.items():
        assert np.isnan(shares[3])
        assert np.dot(shares[:3], sizes[:3]) == pytest.approx(report.metrics[key] * len(x))


def test_steps_and_attacks_are_those_asked_for(name: str) -> None:
    x, y = points(name)
    report = measure(name, rugged(name), x, y, ("pgd",), steps=10)
    assert set(report.metrics) == {"clean", "pgd10", "worst"}
    default = spatlib.evaluate(rugged(name), (x[:4], y[:4]), Threat(eps=EPS))
    assert set(default.metrics) == {"clean", "pgd20", "margin20", "worst"}


def test_an_example_whose_logits_are_not_numbers_is_not_robust(name: str) -> None:
    def logits(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
        broken = ops.sqrt(array(1e-12) - (x - 0.5) * (x - 0.5))  # NaN but at x = 0.5
        return array([[2.0, 0.0]]) + 0 * broken

    with pytest.warns(RuntimeWarning, match="not finite at 100.00% of the examples"):
        report = measure(name, model(name, logits), np.full((6, 1), 0.5), np.zeros(6), ("pgd",))
    assert report.metrics == {"clean": 1, "pgd20": 0, "worst": 0}


def test_keras_evaluation_is_traced_once_whatever_its_length() -> None:
    x, y = points("tf")
    counts = []
    for batches, restarts in ((1, 1), (3, 1), (1, 2), (1, 4)):
        network = model("tf", ridges)
        part, how = slice(20 * batches), {"batch_size": 20, "steps": 2, "restarts": restarts}
        measure("tf", network, x[part], y[part], ("pgd", "targeted"), **how)
        counts.append(network.calls)
    assert counts[1] == counts[0]
    assert counts[3] == counts[2]  # all restarts after the first have one graph


def test_no_start_is_drawn_before_its_turn() -> None:
    tracemalloc.start()
    try:
        evaluation = Evaluation(Threat(eps=0.1), "pgd", 1, 10**9)
        starts = evaluation.starts(0, (2, 3), -1)
        assert next(starts).shape == next(starts).shape == (2, 3)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()
