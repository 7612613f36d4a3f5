"""Auto-PGD: the path of the oracle in every framework, inside the ball, and what it finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import reference
from spatlib import ConfigError, Threat
from spatlib.core.apgd import stretches
from spatlib.core.feasible import FeasibleSet
from spatlib.core.ops import Array, Ops
from spatlib.core.target import objective
from spatlib.evaluate import Evaluation

from .backends import Backend
from .entry import CHANNELS, CLASSES, HEIGHT, WIDTH, initial_weights
from .landscapes import ENGINES, auto_ascend, measure, points, rugged
from .record import agree, at_most
from .strategies import examples, in_box

AUTO = ("apgd-ce", "apgd-t", "apgd")
ORDERS = {"Linf": np.inf, "L2": 2}


@pytest.mark.verifies
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 20, 50, 99, 100, 1000])
def test_checkpoints_are_the_papers(steps: int) -> None:
    ends = np.cumsum(stretches(steps)).tolist()
    assert ends == sorted({*reference.checkpoints(steps), steps} - {0})
    assert stretches(100) == [22, 19, 16, 13, 10, 7, 6, 6, 1]


def hills(a: Array, b: Array, d: Array, folds: int) -> tuple[Array, Array]:
    """The terms of a T(d) - b d^2 / 2 - d^4 and their slopes; T is Chebyshev's of 2^folds."""
    t, slope = d, 1 + 0 * d
    for _ in range(folds):
        t, slope = 2 * t * t - 1, 4 * t * slope
    return a * t - b * d * d / 2 - d * d * d * d, a * slope - b * d - 4 * d * d * d


@pytest.mark.verifies
@pytest.mark.parametrize(("norm", "folds"), [("Linf", 0), ("Linf", 4), ("L2", 0)])
@given(seed=st.integers(0, 2**32 - 1), steps=st.sampled_from((1, 3, 7, 12)))
def test_path_and_best_point_equal_the_oracle(
    backend: Backend, norm: str, folds: int, seed: int, steps: int
) -> None:
    rng, eps, count = np.random.default_rng(seed), 0.5, 3
    steps *= 1 + 3 * (folds > 0)  # where many hills keep it busy
    shape = (count, 2, 3)
    widest = eps if norm == "Linf" else 0.6
    lower, upper = (rng.uniform(0.1, widest, shape) * sign for sign in (-1, 1))
    start, slope = np.clip(rng.uniform(-0.2, 0.2, shape), lower, upper), rng.normal(size=shape)
    bend = rng.choice((0.1, 3.0, 30.0), size=(count, 1, 1)) * rng.uniform(0.5, 1, shape)
    seen: list[np.ndarray] = []

    def ascend(ops: Ops, d: Array, a: Array, b: Array, low: Array, high: Array) -> Any:
        def look(d: Array) -> tuple[Array, ...]:
            seen.append(backend.numpy(d))
            terms, grad = hills(a, b, d, folds)
            value = ops.sum(terms, axis=(1, 2))
            return value, grad, value < 0.05, value < 0.06

        allowed = in_box(ops, 0 * d, Threat(eps=eps, norm=norm, bounds=(-1, 1)), None, low, high)
        return auto_ascend(ops, look, d, allowed, steps)

    found, stands, low = backend.call(ascend, start, slope, bend, lower, upper)
    assert len(seen) == steps + 1
    for n in range(count):
        a, b = slope[n].ravel(), bend[n].ravel()
        exact = reference.auto_ascend(
            lambda d, a=a, b=b: float(np.sum(hills(a, b, d, folds)[0])),
            lambda d, a=a, b=b: hills(a, b, d, folds)[1],
            start[n].ravel(),
            lower[n].ravel(),
            upper[n].ravel(),
            eps,
            steps,
            norm,
        )
        clear = exact.clear
        assert clear >= 1
        path = np.array([d[n].ravel() for d in seen])
        agree(path[:clear], np.array(exact.points)[:clear], atol=1e-7)
        if clear == steps + 1:
            ways = zip(exact.points, exact.values, strict=True)
            first = next((d for d, value in ways if value >= 0.05), exact.best)
            agree(found[n].ravel(), first, atol=1e-7)
            assert stands[n] == all(value < 0.05 for value in exact.values)
            assert low[n] == all(value < 0.06 for value in exact.values)
        at_most(np.linalg.norm(path, ORDERS[norm], axis=1), eps, 1e-14 * eps)
        assert np.all((path >= lower[n].ravel()) & (path <= upper[n].ravel()))


class Script:
    """An f that mostly rises from one new point to the next, from a first value that may be high.

    So it can rise all the time and yet not be better than it was: what condition 2 is about.
    """

    def __init__(self, seed: int) -> None:
        self.rng, self.seen = np.random.default_rng(seed), dict[bytes, Any]()
        self.first = self.rng.choice((0.0, 0.6, 1.2, 9.0))
        self.level = self.rng.choice((1, 1, 3))  # so many new points in a row may be alike

    def at(self, d: np.ndarray) -> tuple[float, np.ndarray]:
        key = (np.round(d.ravel(), 9) + 0.0).tobytes()
        if key not in self.seen:
            count = len(self.seen) // self.level * self.level
            value = 0.05 * count + self.rng.choice((0, -0.3, 2), p=(0.85, 0.1, 0.05))
            value = value if self.seen else self.first
            self.seen[key] = (value, self.rng.normal(size=d.shape))
        return self.seen[key]


@pytest.mark.verifies
@examples(quick=0.2, deep=1)  # of sixty steps each
@given(seed=st.integers(0, 2**32 - 1))
def test_step_sizes_are_the_oracles_whatever_the_values(backend: Backend, seed: int) -> None:
    steps, shape = 60, (2, 3)
    start = np.random.default_rng(seed).uniform(-0.1, 0.1, shape)
    threat, scripts = Threat(eps=0.1, bounds=(-1, 1)), [Script(seed), Script(seed + 1)]
    seen: list[np.ndarray] = []

    def ascend(ops: Ops, d: Array) -> Any:
        def look(d: Array) -> tuple[Array, ...]:
            seen.append(backend.numpy(d))
            found = [script.at(row) for script, row in zip(scripts, seen[-1], strict=True)]
            value, grad = (backend.array(np.array(part)) for part in zip(*found, strict=True))
            return value, grad, value > 0.1, value > 0.1

        return auto_ascend(ops, look, d, FeasibleSet(ops, 0 * d, threat), steps)

    found, stands, _ = backend.call(ascend, start)
    for n in range(len(start)):
        script = Script(seed + n)
        exact = reference.auto_ascend(
            lambda d, script=script: float(script.at(d)[0]),
            lambda d, script=script: script.at(d)[1],
            start[n],
            np.full(3, -0.1),
            np.full(3, 0.1),
            0.1,
            steps,
            "Linf",
        )
        agree(np.array([d[n] for d in seen]), np.array(exact.points), atol=1e-12)
        ways = zip(exact.points, exact.values, strict=True)
        first = next((d for d, value in ways if value <= 0.1), exact.best)
        agree(found[n], first, atol=1e-12)
        assert stands[n] == all(value > 0.1 for value in exact.values)


@pytest.mark.verifies
@given(seed=st.integers(0, 2**32 - 1), classes=st.sampled_from((2, 3, 4, 10)), flat=st.booleans())
@example(seed=0, classes=4, flat=False)
@example(seed=0, classes=10, flat=False)
def test_targeted_ratio_and_its_gradient_equal_the_oracle(
    backend: Backend, seed: int, classes: int, flat: bool
) -> None:
    rng, count = np.random.default_rng(seed), 4
    z = 5 * rng.normal(size=(count, classes))
    if flat:  # the best four are one
        z = np.minimum(z, np.sort(z, axis=1)[:, -4:][:, :1])
    y = rng.integers(classes, size=count)
    goals = (y + rng.integers(1, classes, size=count)) % classes
    label, goal = np.eye(classes)[y], np.eye(classes)[goals]
    ratio, cotangent = backend.call(objective, "apgd-t", z, label, goal)
    exact, slopes = zip(
        *(reference.targeted_ratio(*case) for case in zip(z, y, goals, strict=True)), strict=True
    )
    agree(ratio, exact, rtol=1e-12, atol=1e-13)
    largest = np.abs(slopes).max(axis=1, keepdims=True)
    agree(cotangent, np.array(slopes) / largest, rtol=1e-12, atol=1e-12)
    if classes > 3 and not flat:  # then it is z_t - z_y
        shifted, turned = backend.call(objective, "apgd-t", 3 * z + 7, label, goal)
        agree(shifted, ratio, rtol=1e-9, atol=1e-13)
        agree(turned, cotangent, rtol=1e-9, atol=1e-12)


@pytest.mark.verifies
@pytest.mark.parametrize("attack", ["apgd-ce", "apgd-t"])
@pytest.mark.parametrize("norm", ORDERS)
def test_engines_go_where_the_oracle_goes(engine: Any, norm: str, attack: str) -> None:
    steps, model, seen = 12, reference.TanhMLP(*initial_weights()), []
    rng = np.random.default_rng(7)
    x, eps = rng.uniform(size=(5, CHANNELS, HEIGHT, WIDTH)), {"Linf": 0.2, "L2": 0.8}[norm]
    y = np.array([np.argmax(model.logits(image.ravel())) for image in x])  # some stay undecided
    config = Threat(eps=eps, norm=norm)
    metrics = engine(initial_weights()).evaluate(
        x, y, config, attacks=(attack,), steps=steps, seen=seen
    )
    # A look at the outputs, the clean logits, a smaller batch, the start, and the way.
    looked, clean, some, start, *way = seen
    for shown, expected in ((looked, x), (clean, x), (some, x[1::3])):
        np.testing.assert_array_equal(shown, expected)
    runs = 1 if attack == "apgd-ce" else CLASSES - 1
    everywhere = [[image.ravel(), first.ravel()] for image, first in zip(x, start, strict=True)]
    paths, halvings, ends = [], 0, {0, *reference.checkpoints(steps), steps}
    for run in range(runs):
        for n, (flat, label) in enumerate(zip(x.reshape(len(x), -1), y.tolist(), strict=True)):
            ranked = [int(k) for k in np.argsort(-model.logits(flat)) if k != label]
            exact = reference.auto_attack(
                model,
                flat,
                label,
                None if attack == "apgd-ce" else ranked[run],
                eps=eps,
                steps=steps,
                norm=norm,
                bounds=(0, 1),
                start=start[n].ravel() - flat,
            )
            assert exact.clear == steps + 1  # nothing here is decided by rounding
            paths.append(np.clip(flat + np.array(exact.points), 0, 1))
            halvings += len(exact.halvings)
    robust = [reference.robust(model, x[n].ravel(), y[n], everywhere[n]) for n in range(len(x))]
    dropped = 0
    for run in range(runs):
        rows = np.flatnonzero(robust)
        for step in range((steps + 1) if len(rows) else 0):
            expected = np.array([paths[run * len(x) + n][step] for n in rows])
            shown = way.pop(0).reshape(len(rows), -1)
            agree(shown, expected, atol=1e-10)
            away = shown - x[rows].reshape(len(rows), -1)
            at_most(np.linalg.norm(away, ORDERS[norm], axis=1), eps, 1e-14)
            for n, point in zip(rows, expected, strict=True):
                robust[n] &= reference.robust(model, x[n].ravel(), y[n], [point])
            if step > 0 and step in ends:
                rows, before = np.array([n for n in rows if robust[n]]), rows
                dropped += len(before) - len(rows)
                if not len(rows):
                    break
    assert not way
    assert min(halvings, dropped) > 0
    for n in range(len(x)):
        each = [point for run in range(runs) for point in paths[run * len(x) + n]]
        assert robust[n] == reference.robust(model, x[n].ravel(), y[n], everywhere[n] + each)
    assert metrics[f"{attack}{steps}"] == np.mean(robust)


@pytest.mark.parametrize("name", ENGINES)
def test_auto_pgd_is_stronger_than_pgd_and_both_parts_count(name: str) -> None:
    attacks = ("pgd", *AUTO, "targeted")
    settings: dict[str, Any] = {"steps": 10, "batch_size": 64}
    report = measure(name, rugged(name), *points(name), attacks, **settings)
    found = report.metrics
    assert found["apgd10"] <= min(found["apgd-ce10"], found["apgd-t10"])
    assert found["apgd-ce10"] < found["pgd10"] < found["clean"]
    assert found["apgd-t10"] < found["clean"]
    assert report.attacks["apgd10"] == "APGD-10 (CE, T)"
    assert report.attacks["apgd-t10"] == "targeted APGD-DLR-10 (3 targets)"


@pytest.mark.parametrize("attack", AUTO)
def test_there_is_no_auto_pgd_for_l1(attack: str) -> None:
    with pytest.raises(ConfigError, match=f"'pgd', 'margin', 'targeted' in L1 .*got '{attack}'"):
        Evaluation(Threat(eps=12, norm="L1"), ("pgd", attack), 10, 1, 0)
