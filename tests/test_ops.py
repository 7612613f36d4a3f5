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
