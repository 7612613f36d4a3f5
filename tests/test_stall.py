"""What an attack counts: stalled example-steps, by definition and in the engines, and holes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

import reference
from spatlib import SPATConfig
from spatlib.core.attack import adversarial
from spatlib.core.ops import Array, Ops
from spatlib.core.target import stalled

from .backends import Backend
from .entry import CHANNELS, HEIGHT, WIDTH, initial_weights
from .following import COUNT, batch
from .record import agree
from .test_target import Case, ascended, cases, ulps


@pytest.mark.verifies
@given(case=cases())
def test_stalled_equals_the_oracle_and_the_sign_of_the_label_weight(
    backend: Backend, case: Case
) -> None:
    log_p = case.log_p.astype(case.z.dtype)
    result = backend.call(stalled, case.one_hot, log_p, case.smoothing)
    assert (result.dtype, result.shape) == (case.z.dtype, (len(case.z),))
    p, a = np.exp(case.log_p), case.smoothing
    weight = case.at_label(p) - (1 - a + a / case.classes)
    clear = np.abs(weight) > ulps(case.z)  # not within rounding of the threshold
    expected = [reference.stalled(row, y, a) for row, y in zip(p, case.y, strict=True)]
    np.testing.assert_array_equal(result[clear], np.array(expected, dtype=float)[clear])
    np.testing.assert_array_equal(result[clear], (weight > 0)[clear])
    if case.clean is None and a > 0:  # ascent without the guard then raises the label
        pull = case.at_label(ascended(backend, case, guard=False))
        np.testing.assert_array_equal(pull[clear] > 0, (weight > 0)[clear])


@pytest.mark.verifies
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("offset", "expected"), [(1e-6, 1.0), (-1e-6, 0.0)])
def test_stalled_turns_at_the_smoothed_weight_of_the_label(
    backend: Backend, classes: int, offset: float, expected: float
) -> None:
    p_y = 0.9 + 0.1 / classes + offset
    p = np.full((1, classes), (1 - p_y) / (classes - 1))
    p[0, 1] = p_y
    result = backend.call(stalled, np.eye(classes)[[1]], np.log(p), 0.1)
    np.testing.assert_array_equal(result, [expected])


@pytest.mark.verifies
def test_without_smoothing_nothing_is_stalled_not_even_a_certain_label(backend: Backend) -> None:
    result = backend.call(stalled, np.eye(2), np.array([[0.0, -1e4], [-1e4, 0.0]]), 0.0)
    np.testing.assert_array_equal(result, [0, 0])


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_share_of_stalled_steps_is_the_oracles(engine: Any, smoothing: float) -> None:
    config = SPATConfig(eps=0.1, steps=4, smoothing=smoothing)
    subject, oracle = engine(initial_weights()), reference.TanhMLP(*initial_weights())
    names = ("loss", "eps", "steps", "norm", "bounds", "smoothing", "guard")
    settings = {name: getattr(config, name) for name in names} | {"step_size": config.alpha}
    rates = []
    for number in range(5):
        x, y, start = batch(number)
        y = oracle_labels(oracle, x)
        start = 0.1 * start
        stalls = [
            reference.attack(
                oracle,
                x[n].ravel(),
                int(y[n]),
                mask=np.ones(HEIGHT * WIDTH),
                channels=CHANNELS,
                start=start[n].ravel(),
                **settings,
            )[1]
            for n in range(COUNT)
        ]
        rates.append(subject.stall_rate(x, y, start, config))
        assert rates[-1] == pytest.approx(np.mean(stalls))
    assert len(set(rates)) > 1 or smoothing == 0


def oracle_labels(oracle: Any, x: np.ndarray) -> np.ndarray:
    """The most likely classes: of those some are beyond the smoothed weight."""
    return np.array([int(np.argmax(oracle.logits(example.ravel()))) for example in x])


@pytest.mark.verifies
def test_gradients_with_holes_are_counted_by_example_and_move_the_rest(backend: Backend) -> None:
    """z = (x_1 + x_2, 0) and label 1, but at every second step a NaN or an infinity."""
    config = SPATConfig(eps=0.3, step_size=0.1, steps=4, smoothing=0)
    slope = np.array([[1.0, 1.0]] * 3)
    holes = np.array([[0.0, 0.0], [np.nan, 0.0], [0.0, -np.inf]])

    def run(ops: Ops, x: Array, label: Array, slope: Array, holes: Array) -> tuple[Array, ...]:
        steps: list[int] = []

        def vjp(x: Array, *, many: bool = False) -> tuple[Array, Any]:
            steps.append(len(steps))
            broken = slope + holes if steps[-1] % 2 else slope
            logits = ops.sum(x, axis=1, keepdims=True) * (1 - label)
            return logits, lambda cotangent: ops.sum(cotangent[:, :1], axis=1)[:, None] * broken

        found = adversarial(ops, vjp, lambda _: label, x, config, (0 * x, None), None)
        return found.x, found.holes, found.stalls

    label = np.eye(2)[[1, 1, 1]]
    inputs = np.array([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0]])
    x, share, stalls = backend.call(run, inputs, label, slope, holes)
    np.testing.assert_array_equal(share, [0, 0.5, 0.5])
    np.testing.assert_array_equal(stalls, 0)
    agree(x, [[0.8, 0.8], [0.7, 0.8], [0.2, 0.0]], atol=1e-12)
