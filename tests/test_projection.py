"""The feasible box and the projection onto it, against their definition and the oracle."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from spatlib import Threat
from spatlib.core.feasible import FeasibleSet, project
from spatlib.core.ops import Array, Ops

from .backends import Backend
from .record import agree, at_most, note
from .strategies import Problem, box, problems, rows

pytestmark = pytest.mark.verifies
ULPS = 8  # of eps: sums of up to 40 squares, and the last multiplication

over_norms = pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
over_balls = pytest.mark.parametrize("norm", ["L2", "L1"])


def length(v: np.ndarray, norm: str) -> np.ndarray:
    """The norm of each example, in float64."""
    order = {"Linf": np.inf, "L2": 2, "L1": 1}[norm]
    return np.linalg.norm(rows(v), ord=order, axis=1)


def ulps(v: np.ndarray, count: float = ULPS) -> float:
    return count * float(np.finfo(v.dtype).eps)


def onto(backend: Backend, p: Problem, norm: str, eps: float | None = None) -> np.ndarray:
    return backend.call(project, p.d, *p.box(norm, eps), eps or p.eps, norm)


def oracle(p: Problem, norm: str, eps: float) -> np.ndarray:
    examples = zip(rows(p.d), rows(p.lower), rows(p.upper), strict=True)
    return np.reshape([reference.project(*example, eps, norm) for example in examples], p.d.shape)


def nearly(p: Problem, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest |v_i| of the exact projections for eps within ULPS ulp.

    |v_i| grows with eps. Where the walls all but fill an L2 ball, rounding eps by one ulp moves
    the coordinates that are left over by up to sqrt(ulp) eps: no algorithm can do better than
    to land between the exact answers for neighbouring eps.
    """
    low, high = (np.abs(oracle(p, norm, p.eps * (1 + s * ulps(p.d)))) for s in (-1, 1))
    if norm == "L1":  # D times |d_i| - t is rounded to an ulp of the largest |d_i|
        slack = ulps(p.d, p.d[0].size) * np.abs(p.d).max(axis=p.axes, keepdims=True)
        return low - slack, high + slack
    return low, high


def room(p: Problem, norm: str) -> np.ndarray:
    """How far rounding may move the projection of each example, in L2: (N,)."""
    low, high = nearly(p, norm)
    return length(high - low, "L2") + ulps(p.d, 1) * length(high, "L2")


def multipliers(p: Problem, v: np.ndarray, norm: str, tol: np.ndarray) -> np.ndarray:
    """The least and the largest multiplier t >= 0 for which v meets the KKT conditions: (2, N).

    Stationarity in coordinate i, with a = |d_i| and the wall c on the side of d_i, is
        L2: |v_i| = min(a / (1 + t), c)        L1: |v_i| = min(max(a - t, 0), c).
    Up to tol, this bounds t from below unless v_i is at its wall, which may hold back any
    excess, and from above unless v_i is 0, which (in L1) any larger t explains as well.
    """
    a, size, tol = np.abs(rows(p.d)), np.abs(rows(v)), tol[:, None]
    wall = np.where(rows(p.d) < 0, -rows(p.lower), rows(p.upper))
    free, moved = size + tol < np.minimum(wall, a), size > tol
    if norm == "L2":
        least, most = a / (size + tol) - 1, a / np.where(moved, size - tol, 1) - 1
    else:
        least, most = a - size - tol, a - size + tol
    return np.stack(
        [np.where(free, least, 0).max(axis=1, initial=0), np.where(moved, most, np.inf).min(axis=1)]
    )


@over_norms
@given(p=problems())
def test_projection_lands_in_the_box_exactly_and_in_the_ball_to_a_few_ulp(
    backend: Backend, norm: str, p: Problem
) -> None:
    v = onto(backend, p, norm)
    assert (v.dtype, v.shape) == (p.d.dtype, p.d.shape)
    assert np.all(p.lower <= v)
    assert np.all(v <= p.upper)
    at_most(length(v, norm), p.eps, p.eps * ulps(v), like=v)
    outside = length(np.clip(p.d, p.lower, p.upper), norm) > p.eps * (1 + ulps(v))
    agree(length(v, norm)[outside], p.eps, rtol=ulps(v), like=v)


@over_norms
@given(p=problems())
def test_projection_equals_the_oracle_for_an_eps_within_a_few_ulp(
    backend: Backend, norm: str, p: Problem
) -> None:
    v = onto(backend, p, norm)
    low, high = nearly(p, norm)
    note(v, oracle(p, norm, p.eps))
    assert np.all(v * p.d >= 0)
    assert np.all(low <= np.abs(v))
    assert np.all(np.abs(v) <= high)


@over_norms
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-6)])
@pytest.mark.parametrize("seed", range(5))
def test_projection_of_random_points_equals_the_oracle(
    backend: Backend, norm: str, dtype: str, tolerance: float, seed: int
) -> None:
    """float32: some ulp (1.2e-7), amplified where the walls nearly fill the ball."""
    rng = np.random.default_rng(seed)
    shape = (20, 3, 4, 4)
    x = rng.uniform(size=shape).astype(dtype)
    mask = rng.choice([0, 0.5, 1], size=(20, 1, 4, 4)).astype(dtype)
    eps = float(rng.uniform(0.1, 4))
    d = (rng.normal(size=shape) * 10 ** rng.uniform(-2, 2, (20, 1, 1, 1))).astype(dtype)
    p = Problem(x, mask, *box(x, mask, eps, (0, 1)), d, eps, (0, 1))
    near = tolerance * np.maximum(1, length(d, "L2")).reshape(-1, 1, 1, 1)
    agree(onto(backend, p, norm), oracle(p, norm, eps), atol=near)


@over_balls
@given(p=problems())
def test_projection_meets_the_kkt_conditions(backend: Backend, norm: str, p: Problem) -> None:
    v = onto(backend, p, norm)
    tol = ulps(v) * p.eps
    if norm == "L1":
        tol = tol + ulps(v, v[0].size) * length(p.d, "Linf")
    least, most = multipliers(p, v, norm, tol * np.ones(len(v)))
    assert np.all(np.abs(v) <= np.abs(p.d))
    assert np.all(least <= most)
    # What the table shows: how far v is from what the multiplier half way asks for.
    t = np.where(np.isfinite(most), (least + most) / 2, least)[:, None]
    a, wall = np.abs(rows(p.d)), np.where(rows(p.d) < 0, -rows(p.lower), rows(p.upper))
    asked = np.minimum(a / (1 + t) if norm == "L2" else np.maximum(a - t, 0), wall)
    largest = a.max() if norm == "L1" else 0  # from which t is taken off
    note(np.abs(rows(v)), asked, like=v, scale=max(p.eps, largest))
    inside = length(v, norm) < p.eps * (1 - ulps(v))
    assert np.all(least[inside] == 0)  # complementary slackness


@over_norms
@given(p=problems())
def test_projection_leaves_points_of_the_set_as_they_are(
    backend: Backend, norm: str, p: Problem
) -> None:
    v = onto(backend, p, norm)
    wider = p.eps * (1 + 2 * ulps(v))  # v is in this ball whatever rounding did
    np.testing.assert_array_equal(onto(backend, replace(p, d=v), norm, wider), v)
    halved = v / 2
    np.testing.assert_array_equal(onto(backend, replace(p, d=halved), norm), halved)
    again = replace(p, d=v)
    moved = length(rows(onto(backend, again, norm)) - rows(v), "L2")
    at_most(moved, 0, room(again, norm), like=v, scale=p.eps)


@over_norms
@given(p=problems(), factor=st.sampled_from((-1, -0.5, 0, 0.5, 3)))
def test_projection_brings_no_two_points_further_apart(
    backend: Backend, norm: str, p: Problem, factor: float
) -> None:
    other = replace(p, d=(factor * np.flip(p.d, 0)).astype(p.d.dtype))
    moved = rows(onto(backend, p, norm)) - rows(onto(backend, other, norm))
    apart = length(rows(p.d) - rows(other.d), "L2")
    slack = room(p, norm) + room(other, norm)
    at_most(length(moved, "L2"), apart, slack, like=p.d, scale=p.eps)


@over_norms
@given(p=problems(), factor=st.sampled_from((1 + 1e-6, 1.5, 100)))
def test_a_larger_ball_pulls_no_coordinate_further_in(
    backend: Backend, norm: str, p: Problem, factor: float
) -> None:
    small, large = onto(backend, p, norm), onto(backend, p, norm, factor * p.eps)
    low, high = nearly(p, norm)
    at_most(np.abs(small), np.abs(large), high - low, like=p.d, scale=p.eps)


@st.composite
def turned(draw: st.DrawFn) -> tuple[Problem, list[int], list[int], np.ndarray]:
    """A problem, an order of its examples, one of its coordinates, and a sign for each of them."""
    p = draw(problems())
    size = p.d[0].size
    examples, places = (draw(st.permutations(range(n))) for n in (len(p.d), size))
    signs = draw(npst.arrays(np.int8, size, elements=st.sampled_from((-1, 1))))
    return p, examples, places, signs.reshape(p.d.shape[1:]).astype(p.d.dtype)


@over_norms
@given(case=turned())
def test_projection_commutes_with_permutations_and_reflections(
    backend: Backend, norm: str, case: tuple[Problem, list[int], list[int], np.ndarray]
) -> None:
    p, examples, places, signs = case
    v = onto(backend, p, norm)
    lower, upper = np.where(signs < 0, (-p.upper, -p.lower), (p.lower, p.upper))
    mirrored = onto(backend, replace(p, d=signs * p.d, lower=lower, upper=upper), norm)
    np.testing.assert_array_equal(mirrored, signs * v)

    def permuted(a: np.ndarray) -> np.ndarray:
        return a.reshape(len(a), -1)[np.ix_(examples, places)].reshape(a.shape)

    moved = replace(p, lower=permuted(p.lower), upper=permuted(p.upper), d=permuted(p.d))
    apart = length(rows(onto(backend, moved, norm)) - rows(permuted(v)), "L2")
    at_most(apart, 0, room(p, norm)[examples], like=v, scale=p.eps)


def own_box(
    backend: Backend, p: Problem, mask: np.ndarray | None, norm: str = "L2"
) -> tuple[np.ndarray, np.ndarray]:
    """That of the feasible set, which is the same for every norm."""
    threat = Threat(eps=p.eps, norm=norm, bounds=p.bounds)

    def box(ops: Ops, x: Array, mask: Array | None) -> tuple[Array, Array]:
        allowed = FeasibleSet(ops, x, threat, mask)
        return allowed.lower, allowed.upper

    return backend.call(box, p.x, mask)


@given(p=problems())
def test_feasible_box_holds_0_and_equals_the_oracle(backend: Backend, p: Problem) -> None:
    lower, upper = own_box(backend, p, p.mask)
    assert (lower.dtype, lower.shape) == (p.x.dtype, p.x.shape)
    assert np.all(lower <= 0)
    assert np.all(upper >= 0)
    examples = zip(rows(p.x), rows(p.mask), strict=True)
    exact = [reference.feasible_box(x, mask, p.eps, p.bounds) for x, mask in examples]
    near = ulps(p.x, 2) * (1 + max(map(abs, p.bounds)))
    for k, side in enumerate((lower, upper)):  # differences of numbers as large as the bounds
        agree(
            rows(side),
            [sides[k] for sides in exact],
            rtol=ulps(p.x),
            atol=near,
            like=side,
            scale=max(map(abs, p.bounds)),
        )
    full = own_box(backend, p, np.ones_like(p.mask))
    none = own_box(backend, p, None)
    above = own_box(backend, p, 1.3 + p.mask)
    np.testing.assert_array_equal(none, full)
    np.testing.assert_array_equal(above, full)
    for norm in ("L1", "Linf")[: 1 + (p.eps <= p.bounds[1] - p.bounds[0])]:
        np.testing.assert_array_equal(own_box(backend, p, p.mask, norm), (lower, upper))


@over_norms
@given(p=problems())
def test_pixels_of_mask_0_project_to_exactly_0(backend: Backend, norm: str, p: Problem) -> None:
    lower, upper = own_box(backend, p, p.mask)
    v = onto(backend, replace(p, lower=lower, upper=upper), norm)
    off = np.broadcast_to(p.mask == 0, v.shape)
    assert np.all(v[off] == 0)
