"""Projections that are hard to get right: chains of walls, and points barely or far outside."""

from __future__ import annotations

import numpy as np
import pytest

from spatlib.core.feasible import project

from .backends import Backend
from .record import agree
from .strategies import Problem
from .test_projection import length, nearly, onto, over_balls, over_norms, ulps

pytestmark = pytest.mark.verifies
over_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@pytest.mark.parametrize(
    ("count", "growth"),
    [
        (16, 1.5),
        (16, 2.0),
        (16, 4.0),
        (16, 10.0),
        (24, 1.2),
        (24, 4.0),
        (36, 1.1),
        (48, 1.5),
        (64, 2.0),
    ],
)
@over_dtypes
def test_l2_projection_is_exact_where_each_wall_that_is_met_frees_room_to_meet_the_next(
    backend: Backend, dtype: str, count: int, growth: float
) -> None:
    """Scaling what is free up to the room that is left meets one wall, then the next."""
    k = np.arange(count)
    share = growth / (1 + growth) ** (k + 1)  # of ||d||^2, in coordinate k
    sizes = np.append(np.sqrt(share), (1 + growth) ** (-count / 2))
    walls = np.append(np.sqrt(1.001 * growth ** (k - 1.0) * share), 1)[None].astype(dtype)
    d = (4 * growth ** (count / 2) * sizes)[None].astype(dtype)
    p = Problem(d, d, -walls, walls, d, 1.0, (0, 1))
    v = onto(backend, p, "L2")
    agree(length(v, "L2"), 1, rtol=ulps(v), like=v)
    low, high = nearly(p, "L2")
    assert np.all((low <= v) & (v <= high))


@over_dtypes
def test_l2_projection_is_exact_for_points_up_to_2_to_the_60_times_as_far(
    backend: Backend, dtype: str
) -> None:
    d = np.array([[2.0**59.9, 1.0]], dtype=dtype)
    walls = np.array([[0.6, 2.0]], dtype=dtype)
    agree(backend.call(project, d, -walls, walls, 1.0, "L2"), [[0.6, 0.8]], rtol=ulps(d), like=d)


@over_balls
@pytest.mark.parametrize(("dtype", "excess"), [("float32", 1e-5), ("float64", 1e-12)])
def test_projection_brings_back_what_is_barely_outside(
    backend: Backend, norm: str, dtype: str, excess: float
) -> None:
    d = np.random.default_rng(0).normal(size=(4, 30)) * np.array([[1e-3], [1], [30], [1e3]])
    d = (d / length(d, norm)[:, None] * (1 + excess)).astype(dtype)
    v = backend.call(project, d, -np.ones_like(d) * 2, np.ones_like(d) * 2, 1.0, norm)
    agree(length(v, norm), 1, rtol=excess / 2, like=v)


@over_balls
@over_dtypes
def test_projection_from_far_outside_lands_on_the_sphere(
    backend: Backend, norm: str, dtype: str
) -> None:
    d = np.random.default_rng(0).normal(size=(4, 30)) * np.array([[1e3], [1e5], [1e7], [1e9]])
    d = d.astype(dtype)
    v = backend.call(project, d, -np.ones_like(d), np.ones_like(d), 1.0, norm)
    agree(length(v, norm), 1, rtol=ulps(v), like=v)


@over_norms
@over_dtypes
def test_projection_of_what_clipping_brings_into_the_ball_is_the_clipped_to_the_bit(
    backend: Backend, norm: str, dtype: str
) -> None:
    d = np.random.default_rng(0).normal(size=(1000, 6)).astype(dtype)
    wall = 0.3 * np.abs(d[::-1])
    clipped = np.clip(d, -wall, wall)
    eps = float(1.001 * length(clipped, norm).max())
    np.testing.assert_array_equal(backend.call(project, d, -wall, wall, eps, norm), clipped)


def test_projection_pushes_nothing_out_where_walls_fill_the_ball(backend: Backend) -> None:
    walls = np.random.default_rng(0).uniform(size=(1000, 6)).astype(np.float32)
    walls[:, :4] /= length(walls[:, :4], "L2")[:, None]
    d = (walls * [3, 3, 3, 3, 2e-4, 1e-7]).astype(np.float32)
    v = backend.call(project, d, -walls, walls, 1.0, "L2")
    assert np.all(v <= d)
