"""Primitives that no formula pins down to the digit."""

from __future__ import annotations

import numpy as np
import pytest

from .backends import Backend
from .record import saw

pytestmark = pytest.mark.verifies


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 24), ("float64", 53)])
def test_mantissa_bits_count_the_hidden_one(backend: Backend, dtype: str, bits: int) -> None:
    saw(dtype)
    assert backend.ops.mantissa_bits(backend.array(np.zeros(1, dtype))) == bits
    assert np.finfo(dtype).eps == 2.0 ** (1 - bits)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("x", [[[0, 2, 2, 1]], [[3, 3, 3]], [[-1, -2], [-2, -1]]], ids=str)
def test_argmax_one_hot_marks_one_of_the_largest_in_the_dtype_of_its_input(
    backend: Backend, x: list[list[int]], dtype: str
) -> None:
    logits = np.array(x, dtype)
    marked = backend.call(lambda ops, z: ops.argmax_one_hot(z), logits)
    assert marked.dtype == logits.dtype
    np.testing.assert_array_equal(np.sort(marked, axis=1)[:, :-1], 0)
    np.testing.assert_array_equal(marked.sum(axis=1), 1)
    np.testing.assert_array_equal((marked * logits).sum(axis=1), logits.max(axis=1))
