"""Subnormal numbers: kept by the backends that keep them, zero in the one that flushes them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from spatlib import Threat
from spatlib.core import mask as core
from spatlib.core.feasible import FeasibleSet, direction, project
from spatlib.core.ops import Array, Ops

from .backends import Backend
from .record import agree, at_most
from .strategies import DTYPES
from .test_step import length, over_norms, ulps

pytestmark = pytest.mark.verifies
SHAPE = (2, 2, 3)  # examples, channels, pixels


def multiples(dtype: str, most: int = 2**20) -> st.SearchStrategy[np.ndarray]:
    """Whole multiples of the smallest positive number, all of them subnormal."""
    smallest = np.finfo(dtype).smallest_subnormal
    whole = npst.arrays(np.int64, SHAPE, elements=st.integers(-most, most))
    return whole.map(lambda k: k.astype(dtype) * smallest)


tiny = DTYPES.flatmap(multiples)


def kept(backend: Backend, x: np.ndarray) -> np.ndarray:
    """What is left of subnormal numbers there."""
    return 0 * x if backend.flushes_subnormals else x


@given(grad=tiny)
def test_sign_of_a_subnormal_gradient_counts_unless_it_is_flushed(
    backend: Backend, grad: np.ndarray
) -> None:
    u = backend.call(direction, grad, "Linf")
    if backend.flushes_subnormals:
        assert np.all(np.abs(u) < np.finfo(u.dtype).tiny)
    else:
        np.testing.assert_array_equal(u, np.sign(grad))


@given(grad=tiny)
@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_direction_of_a_subnormal_gradient_is_of_unit_length_unless_it_is_flushed(
    backend: Backend, norm: str, grad: np.ndarray
) -> None:
    u = backend.call(direction, grad, norm)
    alive = np.any(kept(backend, grad) != 0, axis=(1, 2))
    agree(length(u, norm), alive, rtol=ulps(u), like=u)


@over_norms
@given(d=tiny, data=st.data())
def test_projection_onto_a_subnormal_box_is_exact(
    backend: Backend, norm: str, d: np.ndarray, data: st.DataObject
) -> None:
    """The ball holds the whole box, so that clipping is the projection."""
    wall = np.abs(data.draw(multiples(d.dtype.name)))
    v = backend.call(project, d, -wall, wall, 0.5, norm)
    np.testing.assert_array_equal(kept(backend, v), kept(backend, np.clip(d, -wall, wall)))
    assert np.all(np.abs(v) <= wall)


@over_norms
@given(d=tiny, data=st.data())
def test_steps_from_subnormal_perturbations_stay_in_the_set(
    backend: Backend, norm: str, d: np.ndarray, data: st.DataObject
) -> None:
    grad = data.draw(multiples(d.dtype.name))
    threat, wall = Threat(eps=0.5, norm=norm, bounds=(-0.3, 0.3)), np.full_like(d, 0.3)
    v = backend.call(
        lambda ops, x, *at: FeasibleSet(ops, x, threat).step(*at, 0.25), 0 * wall, d, grad
    )
    assert np.all(np.abs(v) <= wall)
    at_most(length(v, norm), 0.5, 0.5 * ulps(v), like=v)
    moves = np.any(kept(backend, grad) != 0, axis=(1, 2))
    np.testing.assert_array_equal(np.max(np.abs(v), axis=(1, 2)) > 1e-3, moves)


@given(data=st.data(), dtype=DTYPES)
def test_mask_ranks_subnormal_saliencies_unless_they_are_flushed(
    backend: Backend, data: st.DataObject, dtype: str
) -> None:
    """Two classes whose saliency rises from the first pixel to the last keep the last two."""
    smallest = np.finfo(dtype).smallest_subnormal
    steps = data.draw(npst.arrays(np.int64, SHAPE, elements=st.integers(2**10, 2**18)))
    grad = np.cumsum(steps, axis=2).astype(dtype) * smallest

    def masked(ops: Ops, x: Array, first: Array, second: Array) -> Array:
        state = core.begin(ops, x, "min", 1)
        for each in (first, second):
            state = core.fold(ops, state, each, "min", 1)
        return core.finish(ops, state, 2 / 3, 0.25)

    mask = backend.call(masked, np.zeros(SHAPE, dtype), grad, grad)
    all_tie = backend.flushes_subnormals
    np.testing.assert_array_equal(mask, [[[1.0 if all_tie else 0.25, 1, 1]]] * SHAPE[0])
