"""Random starts: draws of any kind become points of the ball, by the formulas of the docstring."""

from __future__ import annotations

import numpy as np
import pytest

from spatlib import SPATConfig, Threat
from spatlib.core import numpy_ops
from spatlib.core.feasible import FeasibleSet, random_start
from spatlib.core.ops import Array, Ops

from .backends import Backend
from .record import agree
from .strategies import rows

pytestmark = pytest.mark.verifies
EPS = 0.7
SHAPES = ((5, 6), (4, 2, 3, 3))

over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def radii(shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    one_each = (shape[0], *(1,) * (len(shape) - 1))
    return np.random.default_rng(1).uniform(size=one_each).astype(dtype)


def uniform(shape: tuple[int, ...], dtype: str = "float64") -> np.ndarray:
    return np.random.default_rng(0).uniform(size=shape).astype(dtype)


class Drawn(dict[str, Array]):
    """Draws made before, by their kind and, if uniform, by their purpose."""

    def uniform(self, like: Array, purpose: str) -> Array:
        assert tuple(like.shape) == tuple(self[purpose].shape)
        return self[purpose]

    def normal(self, like: Array, purpose: str) -> Array:
        assert (tuple(like.shape), purpose) == (tuple(self["normal"].shape), "start")
        return self["normal"]


def started(backend: Backend, x: np.ndarray, config: SPATConfig, *draws: np.ndarray) -> np.ndarray:
    def run(ops: Ops, x: Array, *draws: Array) -> Array:
        drawn = Drawn(zip(("start", "normal", "radius"), draws, strict=True))
        return random_start(ops, x, config, drawn)

    start: np.ndarray = backend.call(run, x, *draws)
    return start


def in_ball(backend: Backend, draws: np.ndarray, radius: np.ndarray, norm: str) -> np.ndarray:
    return started(backend, 0 * draws, SPATConfig(eps=EPS, norm=norm), draws, draws, radius)


@over_shapes
def test_a_start_is_made_of_the_draws_that_its_kind_asks_for(
    backend: Backend, shape: tuple[int, ...]
) -> None:
    x, draws, radius = np.round(uniform(shape)), uniform(shape), radii(shape)
    normal = np.random.default_rng(2).normal(size=shape)
    for norm in ("Linf", "L2", "L1"):
        ball = in_ball(backend, normal if norm == "L2" else draws, radius, norm)
        config = SPATConfig(eps=EPS, norm=norm)
        np.testing.assert_array_equal(started(backend, x, config, draws, normal, radius), ball)
    near = SPATConfig(eps=EPS, random_start="gaussian")
    agree(started(backend, x, near, draws, normal, radius), 0.001 * normal, atol=1e-18)
    none = SPATConfig(eps=EPS, random_start="none")
    np.testing.assert_array_equal(started(backend, x, none, draws, normal, radius), 0 * x)


@over_shapes
def test_linf_start_is_the_draw_stretched_over_the_box(
    backend: Backend, shape: tuple[int, ...]
) -> None:
    draws = uniform(shape)
    start = in_ball(backend, draws, radii(shape), "Linf")
    agree(start, np.interp(draws, [0, 1], [-EPS, EPS]), atol=1e-15)


@over_shapes
@over_dtypes
def test_l2_start_has_the_draws_direction_and_a_share_of_the_volume(
    backend: Backend, shape: tuple[int, ...], dtype: str
) -> None:
    draws = np.random.default_rng(0).normal(size=shape).astype(dtype)
    radius = radii(shape, dtype)
    start = in_ball(backend, draws, radius, "L2")
    assert start.dtype == dtype
    length = np.linalg.norm(rows(start), axis=1)
    near = 20 * float(np.finfo(dtype).eps)
    agree((length / EPS) ** rows(draws).shape[1], radius.ravel(), rtol=20 * near, like=start)
    direction = rows(draws) / np.linalg.norm(rows(draws), axis=1, keepdims=True)
    agree(rows(start) / length[:, None], direction, atol=near, like=start)


@over_shapes
@over_dtypes
def test_l1_start_is_exponentials_with_signs_over_the_sum_of_one_more(
    backend: Backend, shape: tuple[int, ...], dtype: str
) -> None:
    draws, radius = uniform(shape, dtype), radii(shape, dtype)
    start = in_ball(backend, draws, radius, "L1")
    assert start.dtype == dtype
    signed = 2 * rows(draws) - 1
    waits, more = -np.log1p(-np.abs(signed)), -np.log1p(-rows(radius))
    exact = EPS * np.sign(signed) * waits / (waits.sum(axis=1, keepdims=True) + more)
    agree(rows(start), exact, atol=100 * float(np.finfo(dtype).eps), like=start)


@over_dtypes
def test_l1_start_is_finite_for_the_extreme_draws(backend: Backend, dtype: str) -> None:
    """-1 has probability 2^-24 in float32; its exponential would be infinite."""
    draws = np.array([[0, 0.5, 0.25], [0.5, 0.5, 0.5], [0, 0, 0]], dtype=dtype)
    radius = np.array([[0.5], [0.5], [0]], dtype=dtype)
    start = in_ball(backend, draws, radius, "L1")
    longest = 24 * np.log(2)
    first = np.array([-longest, 0, -np.log(2)]) / (longest + 2 * np.log(2))
    agree(start, EPS * np.array([first, [0, 0, 0], [-1 / 3] * 3]), atol=1e-6)


def test_a_mask_that_rounding_made_negative_is_0() -> None:
    x = np.full((1, 2), 0.5)
    allowed = FeasibleSet(numpy_ops, x, Threat(eps=0.1), np.array([[-1e-7, 1.0]]))
    np.testing.assert_array_equal(allowed.at(allowed.begin(0 * x + 1)), [[0.5, 0.6]])
