"""What the engines differentiate for the mask: centred logits."""

from __future__ import annotations

import numpy as np
import pytest

import reference
from spatlib.core.mask import class_cotangent, probe_cotangent

from .backends import Backend
from .record import agree

pytestmark = pytest.mark.verifies


@pytest.mark.parametrize("classes", [2, 5])
def test_cotangents_give_the_centred_gradients_of_a_linear_map(
    backend: Backend, classes: int
) -> None:
    """z = x W^T: dz_k / dx = W_k, and shifting all logits alike changes nothing."""
    rng = np.random.default_rng(classes)
    weights = rng.normal(size=(classes, 7))
    centred = reference.centred(weights)
    rows_of = np.tile(np.arange(classes), 2)  # another number of examples than of classes
    signs = rng.choice([-1.0, 1.0], size=(4, classes))
    by_class = backend.call(lambda ops, k: class_cotangent(k), np.eye(classes)[rows_of])
    by_probe = backend.call(probe_cotangent, signs)
    agree(by_class @ weights, centred[rows_of], atol=1e-14)
    agree(by_probe @ weights, signs @ centred, atol=1e-14)
    for cotangent in (by_class, by_probe):
        agree(cotangent @ (weights + rng.normal(size=7)), cotangent @ weights, atol=1e-13)
    single = backend.call(probe_cotangent, signs.astype(np.float32))
    assert single.dtype == np.float32
