"""Hypothesis strategies that seek trouble: signed zeros, values on the bounds, ties, extremes.

No value is subnormal and no non-zero one is below 1e-30: test_subnormals.py has those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from spatlib import Threat
from spatlib.core.feasible import FeasibleSet
from spatlib.core.ops import Array, Ops

SHAPES = ((1, 1), (1, 7), (3, 5), (2, 40), (1, 1, 1, 1), (2, 1, 2, 3), (2, 3, 2, 2), (3, 2, 1, 4))
BOUNDS = ((0.0, 1.0), (-1.0, 1.0), (0.1, 0.7), (-2.5, 3.0))
RADII = (1e-6, 8 / 255, 0.5, 1.0, 12.0, 1e3)  # from next to nothing to beyond the whole box
DTYPES = st.sampled_from(("float32", "float64"))
SPECIAL = (0.0, -0.0, 0.25, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, 1e3, -1e3)


@dataclass(frozen=True)
class Problem:
    """A batch of projections: x (N, ...), its mask with one channel, its box, and a point d."""

    x: np.ndarray
    mask: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    d: np.ndarray
    eps: float
    bounds: tuple[float, float]

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(range(1, self.x.ndim))

    def box(self, norm: str, eps: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The box that the projection takes: for Linf cut to the ball, which is a box too."""
        if norm != "Linf":
            return self.lower, self.upper
        radius = self.d.dtype.type(eps or self.eps)
        return np.maximum(self.lower, -radius), np.minimum(self.upper, radius)

    def threat(self, norm: str) -> Threat:
        """For Linf with an eps of at most the range, beyond which there is nothing to gain."""
        lower, upper = self.bounds
        eps = min(self.eps, upper - lower) if norm == "Linf" else self.eps
        return Threat(eps=eps, norm=norm, bounds=self.bounds)


def in_box(
    ops: Ops, x: Array, threat: Threat, mask: Array | None, lower: Array, upper: Array
) -> FeasibleSet:
    """The feasible set of x with another box than its own."""
    allowed = FeasibleSet(ops, x, threat, mask)
    allowed.lower, allowed.upper = lower, upper
    return allowed


def examples(quick: float = 1, deep: float = 1) -> settings:
    """So many times the examples of the profile, another number of times in the deep one."""
    count = settings.default.max_examples
    return settings(max_examples=round(count * (deep if count >= 500 else quick)))


def rows(x: np.ndarray) -> np.ndarray:
    """Each example as a vector, in float64: what the oracle takes."""
    return np.asarray(x, dtype=np.float64).reshape(len(x), -1)


def without_subnormals(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1e-30, np.zeros_like(x), x)


def values(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Entries of order 1: mostly special and tied ones, sparse ones, or dense random ones."""
    width = 8 * np.dtype(dtype).itemsize
    element = st.sampled_from(SPECIAL) | st.floats(-2, 2, width=width, allow_subnormal=False)
    chosen = npst.arrays(dtype, shape, elements=element)
    seeds = st.integers(0, 2**32 - 1)
    dense = seeds.map(lambda seed: np.random.default_rng(seed).normal(size=shape).astype(dtype))
    return (chosen | dense).map(without_subnormals)


def gradients(dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Like :func:`values`, on scales from 1e-25 to 1e6, often with examples that are all zero."""
    alive = npst.arrays(np.bool_, (shape[0],) + (1,) * (len(shape) - 1))
    scales = st.sampled_from((1.0, 1.0, 1e-25, 1e-8, 1e6)).map(np.dtype(dtype).type)
    return st.builds(
        lambda x, live, scale: without_subnormals(scale * np.where(live, x, np.zeros_like(x))),
        values(dtype, shape),
        alive | st.just(np.ones((1,) * len(shape), np.bool_)),
        scales,
    )


def logits(dtype: str, shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """Rows of logits, up to +-1e4, with ties and classes of no probability at all."""
    scales = st.sampled_from((1.0, 1.0, 10.0, 1e2, 1e4)).map(np.dtype(dtype).type)
    return st.builds(lambda z, scale: np.clip(scale * z, -1e4, 1e4), values(dtype, shape), scales)


def box(
    x: np.ndarray, mask: np.ndarray, eps: float, bounds: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The feasible box in the dtype of x, for the projection's own tests."""
    budget = np.broadcast_to(mask * x.dtype.type(eps), x.shape)
    return np.maximum(bounds[0] - x, -budget), np.minimum(bounds[1] - x, budget)


def lone(dtype: str, pixels: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
    """Masks of zeros but for one pixel of each example."""
    size = math.prod(pixels[1:])
    chosen = st.tuples(*[st.integers(0, size - 1)] * pixels[0])
    return chosen.map(lambda places: np.eye(size, dtype=dtype)[list(places)].reshape(pixels))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """x often on the bounds (lower = 0 or upper = 0), masks of few pixels or one, any d."""
    dtype = draw(DTYPES)
    shape = draw(st.sampled_from(SHAPES))
    lo, hi = bounds = draw(st.sampled_from(BOUNDS))
    eps = draw(st.sampled_from(RADII) | st.floats(2**-10, 10, width=32))
    share = draw(npst.arrays(np.float64, shape, elements=st.sampled_from((0.0, 1.0, 0.3, 0.5))))
    lo_typed, hi_typed = np.asarray(bounds, dtype=dtype)
    x = np.clip((lo + share * (hi - lo)).astype(dtype), lo_typed, hi_typed)
    pixels = shape if len(shape) == 2 else (shape[0], 1, *shape[2:])
    floor = draw(st.sampled_from((0.0, 0.25, 0.5, 1.0)))
    few = npst.arrays(dtype, pixels, elements=st.sampled_from((floor, 1.0)))
    mask = draw(few | few | few | lone(dtype, pixels))
    wide = draw(st.sampled_from((1.0, 1.0, 4.0)))  # a box may also reach beyond the ball
    lower, upper = box(x, mask, wide * eps, bounds)
    d = without_subnormals((eps * draw(values(dtype, shape))).astype(dtype))
    on_wall = draw(npst.arrays(np.int8, shape, elements=st.sampled_from((0, 0, 1, 2))))
    d = np.choose(on_wall, (d, lower, upper))
    return Problem(x, mask, lower, upper, d, float(eps), bounds)
