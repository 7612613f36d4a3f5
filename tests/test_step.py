"""The ascent direction, a step, and the start, against their definition and the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from spatlib import Threat
from spatlib.core.feasible import FeasibleSet, direction
from spatlib.core.ops import Array, Ops

from .backends import Backend
from .record import agree, at_most
from .strategies import DTYPES, SHAPES, Problem, gradients, in_box, problems, rows

pytestmark = pytest.mark.verifies
ULPS = 8
ORDERS = {"Linf": np.inf, "L2": 2, "L1": 1}

over_norms = pytest.mark.parametrize("norm", ORDERS)


def length(v: np.ndarray, norm: str) -> np.ndarray:
    return np.linalg.norm(rows(v), ord=ORDERS[norm], axis=1)


def ulps(v: np.ndarray, count: float = ULPS) -> float:
    return count * float(np.finfo(v.dtype).eps)


any_gradients = st.tuples(DTYPES, st.sampled_from(SHAPES)).flatmap(lambda a: gradients(*a))


@st.composite
def steps(draw: st.DrawFn) -> tuple[Problem, np.ndarray, float]:
    """A problem, a gradient of its shape, and a step from far below eps to far beyond it."""
    p = draw(problems())
    grad = draw(gradients(p.d.dtype.name, p.d.shape))
    return p, grad, p.eps * draw(st.sampled_from((1e-3, 0.25, 1.0, 2.5, 50.0)))


def within(p: Problem, norm: str) -> Problem:
    """With d moved into the set, its norm a few ulp below eps at most."""
    examples = zip(rows(p.d), rows(p.lower), rows(p.upper), strict=True)
    d = np.reshape([reference.project(*e, p.eps, norm) for e in examples], p.d.shape)
    most = p.eps * (1 - ulps(p.d)) / np.maximum(length(d, norm), 1e-30)
    d = d * np.minimum(1, most).reshape(-1, *(1,) * (d.ndim - 1))
    return replace(p, d=np.clip(d.astype(p.d.dtype), p.lower, p.upper))


def stepped(
    backend: Backend, p: Problem, grad: np.ndarray, mask: np.ndarray | None, size: float, norm: str
) -> np.ndarray:
    def step(ops: Ops, x: Array, mask: Array | None, low: Array, high: Array, *at: Array) -> Array:
        return in_box(ops, x, p.threat(norm), mask, low, high).step(*at, size)

    return backend.call(step, p.x, mask, *p.box(norm), p.d, grad)


def begun(
    backend: Backend, p: Problem, noise: np.ndarray, mask: np.ndarray | None, norm: str
) -> np.ndarray:
    def begin(ops: Ops, x: Array, mask: Array | None, low: Array, high: Array, at: Array) -> Array:
        return in_box(ops, x, p.threat(norm), mask, low, high).begin(at)

    return backend.call(begin, p.x, mask, *p.box(norm), noise)


@over_norms
@given(case=steps())
def test_step_stays_in_the_set(
    backend: Backend, norm: str, case: tuple[Problem, np.ndarray, float]
) -> None:
    p, grad, size = case
    moved = stepped(backend, p, grad, p.mask, size, norm)
    assert (moved.dtype, moved.shape) == (p.d.dtype, p.d.shape)
    assert np.all(p.lower <= moved)
    assert np.all(moved <= p.upper)
    at_most(length(moved, norm), p.eps, p.eps * ulps(moved), like=moved)
    assert np.all(moved[np.broadcast_to(p.mask == 0, moved.shape)] == 0)


@over_norms
@given(case=steps())
def test_step_never_lowers_the_linear_objective_of_the_masked_gradient(
    backend: Backend, norm: str, case: tuple[Problem, np.ndarray, float]
) -> None:
    p, grad, size = case
    p = within(p, norm)
    moved = stepped(backend, p, grad, p.mask, size, norm)
    slope = rows(p.mask * grad)
    gain = np.sum(slope * (rows(moved) - rows(p.d)), axis=1)
    # d + step is rounded to an ulp of itself, in every coordinate.
    natural = (p.eps + size) * np.abs(slope).sum(axis=1)
    at_most(-gain / np.where(natural > 0, natural, 1), 0, ulps(moved), like=moved, scale=1)


@over_norms
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
def test_step_equals_the_oracle(
    backend: Backend, norm: str, dtype: str, tolerance: float, seed: int
) -> None:
    """float32: some ulp (1.2e-7), amplified where the walls nearly fill the ball."""
    rng = np.random.default_rng(seed)
    shape, eps, bounds = (10, 3, 4, 4), float(rng.uniform(0.1, 3)), (-1.0, 1.0)
    threat = Threat(eps=min(eps, 2) if norm == "Linf" else eps, norm=norm, bounds=bounds)
    x = rng.uniform(*bounds, size=shape).astype(dtype)
    mask = rng.choice([0, 0.5, 1], size=(10, 1, 4, 4)).astype(dtype)
    grad, share = rng.normal(size=shape).astype(dtype), rng.uniform(size=shape)
    for budget in (mask, None):
        pixels = np.ones_like(mask) if budget is None else budget
        boxes = [
            reference.feasible_box(*e, threat.eps, bounds)
            for e in zip(rows(x), rows(pixels), strict=True)
        ]
        lower, upper = (np.reshape(side, shape) for side in zip(*boxes, strict=True))
        d = (lower + share * (upper - lower)).astype(dtype)
        examples = zip(*map(rows, (d, grad, pixels, lower, upper)), strict=True)
        exact = [reference.step(*e, threat.eps, threat.eps / 2, norm) for e in examples]
        moved = backend.call(
            lambda ops, x, mask, *at: FeasibleSet(ops, x, threat, mask).step(*at, threat.eps / 2),
            *(x, budget, d, grad),
        )
        agree(moved, np.reshape(exact, shape), rtol=0, atol=tolerance)
        assert np.all(length(moved - d, "Linf") > 1e-3)


@over_norms
@pytest.mark.parametrize("masked", [True, False])
def test_step_and_start_write_to_none_of_their_arguments(
    backend: Backend, norm: str, masked: bool
) -> None:
    """The step itself is in place, on what the direction made for it."""
    rng = np.random.default_rng(0)
    d, grad = rng.uniform(-0.5, 0.5, size=(2, 3, 2, 4, 4))
    lower, upper = -np.ones_like(d), np.ones_like(d)
    mask = rng.choice([0.0, 0.5, 1.0], size=(3, 1, 4, 4)) if masked else None
    x, threat = np.zeros_like(d), Threat(eps=1, norm=norm, bounds=(-1, 1))
    given_arrays = [x, d, grad, lower, upper, *([mask] if mask is not None else [])]
    before = [part.copy() for part in given_arrays]

    def all_three(
        ops: Ops, x: Array, d: Array, grad: Array, low: Array, high: Array, mask: Array = None
    ) -> tuple[Array, ...]:
        allowed = in_box(ops, x, threat, mask, low, high)
        return allowed.step(d, grad, 0.5), allowed.begin(d), allowed.at(d)

    moved, start, point = backend.call(all_three, *given_arrays)
    assert np.abs(moved - d).max() > 0.01
    assert start.shape == point.shape == d.shape
    for now, then in zip(given_arrays, before, strict=True):
        np.testing.assert_array_equal(now, then)


@over_norms
@given(case=steps(), flat=st.booleans())
def test_step_without_a_masked_gradient_stays_where_it_is(
    backend: Backend, norm: str, case: tuple[Problem, np.ndarray, float], flat: bool
) -> None:
    p, grad, size = case
    p = within(p, norm)
    mask, grad = (p.mask, 0 * grad) if flat else (0 * p.mask, grad)
    np.testing.assert_array_equal(stepped(backend, p, grad, mask, size, norm), p.d)


@over_norms
@given(grad=any_gradients)
def test_direction_equals_the_oracle_and_has_unit_length(
    backend: Backend, norm: str, grad: np.ndarray
) -> None:
    u = backend.call(direction, grad, norm)
    assert (u.dtype, u.shape) == (grad.dtype, grad.shape)
    exact = [reference.direction(g, norm) for g in rows(grad)]
    agree(rows(u), exact, rtol=ulps(u), atol=1e-30, like=u)
    alive = np.any(rows(grad) != 0, axis=1)
    agree(length(u, norm), alive, rtol=ulps(u), like=u)


@over_norms
@given(grad=any_gradients, exponent=st.sampled_from((-20, -3, 1, 20)))
def test_direction_ignores_the_scale_of_the_gradient(
    backend: Backend, norm: str, grad: np.ndarray, exponent: int
) -> None:
    grad = np.where(np.abs(grad) < 1e-10, 0, grad).astype(grad.dtype)  # scaled, still normal
    scaled = grad * grad.dtype.type(2.0**exponent)
    expected = backend.call(direction, grad, norm)
    np.testing.assert_array_equal(backend.call(direction, scaled, norm), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize(
    ("norm", "expected"),
    [("Linf", [1, 0, -1, 1]), ("L2", [3 / 13, 0, -4 / 13, 12 / 13]), ("L1", [0, 0, 0, 1])],
)
def test_direction_keeps_where_squares_underflow_or_overflow(
    backend: Backend, norm: str, expected: list[float], scale: float, dtype: str
) -> None:
    grad = scale * np.array([[3, 0, -4, 12]], dtype=dtype)
    u = backend.call(direction, grad.astype(dtype), norm)
    agree(u, [expected], rtol=ulps(u))


@pytest.mark.parametrize(
    ("size", "chosen"), [(1, 1), (9, 1), (20, 1), (29, 1), (30, 2), (49, 2), (50, 3), (70, 4)]
)
def test_l1_direction_moves_every_20th_coordinate(backend: Backend, size: int, chosen: int) -> None:
    grad = np.random.default_rng(size).normal(size=(1, size))
    u = backend.call(direction, grad, "L1")
    largest = np.argsort(np.abs(grad[0]))[size - chosen :]
    expected = np.zeros((1, size))
    expected[0, largest] = np.sign(grad[0, largest]) / chosen
    agree(u, expected, rtol=ulps(u))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_l1_direction_moves_all_coordinates_that_tie_for_the_last_place(
    backend: Backend, dtype: str
) -> None:
    grad = np.array([[2, -2, 1, 2, 0], [0, 0, 0, 0, 0], [1, -1, 1, -1, 1]], dtype=dtype)
    expected = [[1 / 3, -1 / 3, 0, 1 / 3, 0], [0] * 5, [0.2, -0.2, 0.2, -0.2, 0.2]]
    u = backend.call(direction, grad, "L1")
    agree(u, expected, rtol=ulps(u))


@over_norms
@given(p=problems())
def test_start_is_the_noise_off_the_mask_brought_into_the_set(
    backend: Backend, norm: str, p: Problem
) -> None:
    start = begun(backend, p, p.d, p.mask, norm)
    off = np.broadcast_to(p.mask == 0, p.d.shape)
    assert start.dtype == p.d.dtype
    assert np.all(start[off] == 0)
    assert np.all((p.lower <= start) & (start <= p.upper))
    at_most(length(start, norm), p.eps, p.eps * ulps(start), like=start)
    feasible = within(p, norm).d
    kept = begun(backend, p, feasible, p.mask, norm)
    np.testing.assert_array_equal(kept, feasible)


@over_norms
@pytest.mark.parametrize("masked", [True, False])
def test_start_equals_the_oracle_and_off_pixels_take_no_share_of_the_norm(
    backend: Backend, norm: str, masked: bool
) -> None:
    """The box here is open where m = 0, so that only the zeroing itself can empty a pixel."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(6, 2, 3, 3))
    mask = rng.choice([0.0, 0.5, 1.0], size=(6, 1, 3, 3)) if masked else None
    lower, upper = -np.ones_like(noise), np.ones_like(noise)
    cut = 0.5 if norm == "Linf" else 1.0  # to the ball, as its own box is
    pixels = np.ones((6, 1, 3, 3)) if mask is None else mask
    examples = zip(*map(rows, (noise, pixels, lower, upper)), strict=True)
    exact = np.reshape([reference.initial(*e, 0.5, norm) for e in examples], noise.shape)
    p = Problem(np.zeros_like(noise), pixels, cut * lower, cut * upper, noise, 0.5, (-1, 1))
    start = begun(backend, p, noise, mask, norm)
    agree(start, exact, rtol=0, atol=1e-12)
    assert np.all((start == 0) == np.broadcast_to(pixels == 0, noise.shape)) or norm == "L1"


@given(p=problems())
def test_points_are_the_input_plus_the_perturbation_inside_the_bounds(
    backend: Backend, p: Problem
) -> None:
    point = backend.call(lambda ops, x, d: FeasibleSet(ops, x, p.threat("L2")).at(d), p.x, p.d)
    assert (point.dtype, point.shape) == (p.x.dtype, p.x.shape)
    np.testing.assert_array_equal(point, np.clip(p.x + p.d, *np.asarray(p.bounds, p.x.dtype)))
