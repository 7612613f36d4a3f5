"""How soon the L2 projection ends: what makes it cheap where images are projected."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from spatlib import Threat
from spatlib.core import numpy_ops
from spatlib.core.feasible import CHORD_ROUNDS, FeasibleSet, project

from .record import agree, saw_dtypes
from .test_projection import length

pytestmark = pytest.mark.verifies("numpy")


def rounds_of(d: np.ndarray, lower: np.ndarray, upper: np.ndarray, eps: float) -> tuple[Any, Any]:
    """The projection, and how many rounds each of its two searches took."""
    counts = []

    def repeat(body: Callable[..., Any], times: int, state: Any, done: Any) -> Any:
        counts.append(0)

        def counted(*state: Any) -> Any:
            counts[-1] += 1
            return body(*state)

        return numpy_ops.repeat(counted, times, state, done)

    ops: Any = SimpleNamespace(**{**vars(numpy_ops), "repeat": repeat})
    return project(ops, d, lower, upper, eps, "L2"), counts


def images(dtype: str, eps: float, outside: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Perturbations ``outside`` times as long as eps, in the box of images and a mask."""
    rng = np.random.default_rng(0)
    x, mask = (
        rng.uniform(size=(16, 3, 16, 16)),
        np.where(rng.uniform(size=(16, 1, 16, 16)) < 0.5, 1, 0.5),
    )
    d = rng.normal(size=x.shape)
    d *= outside * eps / length(d, "L2")[:, None, None, None]
    allowed = FeasibleSet(numpy_ops, x, Threat(eps=eps, norm="L2"), mask)
    return d.astype(dtype), allowed.lower.astype(dtype), allowed.upper.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("eps", "outside", "most"),
    [(0.5, 1.05, 2), (0.5, 1.25, 2), (0.5, 3.0, 3), (3.0, 1.25, 3), (8.0, 2.0, 4)],
)
def test_chords_alone_project_images(dtype: str, eps: float, outside: float, most: int) -> None:
    d, lower, upper = images(dtype, eps, outside)
    v, (chords, newton) = rounds_of(d, lower, upper, eps)
    assert 1 <= chords <= most + (dtype == "float64")
    assert newton == 0
    agree(length(v, "L2"), eps, rtol=4 * np.finfo(dtype).eps, like=v)


def test_what_clipping_brings_into_the_ball_takes_no_round() -> None:
    d, lower, upper = images("float32", 0.5, 0.9)
    saw_dtypes((d,))
    assert rounds_of(d, lower, upper, 0.5)[1] == [0, 0]


def test_newton_takes_over_where_walls_follow_each_other() -> None:
    k = np.arange(36)
    share = 1.1 / 2.1 ** (k + 1)
    walls = np.append(np.sqrt(1.001 * 1.1 ** (k - 1.0) * share), 1)[None]
    d = 4 * 1.1**18 * np.append(np.sqrt(share), 2.1**-18)[None]
    v, (chords, newton) = rounds_of(d, -walls, walls, 1.0)
    assert chords == CHORD_ROUNDS
    assert 1 < newton < 16
    agree(length(v, "L2"), 1, rtol=8 * np.finfo(np.float64).eps)
