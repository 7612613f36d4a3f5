"""Logits of -inf, classes ruled out: everything is as with -1e9 in their place."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import Mask, SPATConfig, Threat
from spatlib.core.ops import Array, Ops

from .backends import BACKENDS
from .engines import ENGINES
from .landscapes import model

CALLS = {"torch": spatlib_torch, "tf": spatlib_tf}
CLASSES, SIZE = 5, 6
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(SIZE, CLASSES))
X = RNG.uniform(0.2, 0.8, size=(40, SIZE)).astype(np.float32)
ALLOWED = np.array([1, 1, 0, 1, 0])
Y = np.where(ALLOWED > 0, X @ WEIGHTS, -np.inf).argmax(axis=1)
Y[::7] = (Y[::7] == 0).astype(int)  # not all are right


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> Any:
    return request.param


def network(name: str, value: float) -> Any:
    """Logits of which two are ``value``, whatever x is."""

    def logits(ops: Ops, x: Array, array: Any) -> Array:
        return ops.where(array(ALLOWED) * (0 * x[:, :1] + 1) > 0, x @ array(WEIGHTS), value)

    return model(name, logits)


@pytest.mark.parametrize("mask", [None, Mask(), Mask(score="rms"), Mask(classes=3)], ids=str)
@pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
def test_perturbations_and_losses_are_those_of_a_large_number(
    name: str, loss: str, mask: Mask | None
) -> None:
    array, numpy, call = BACKENDS[name]().array, BACKENDS[name]().numpy, CALLS[name]
    x, y, start = array(X), array(Y), array(0.01 * np.sign(X - 0.5))
    config, found = SPATConfig(eps=0.1, steps=2, loss=loss, mask=mask), []
    for value in (-math.inf, -1e9):
        batch = network(name, value), x, y, config
        x_adv = call.perturb(*batch, start=start)
        found.append((numpy(x_adv), float(call.spat_loss(*batch, x_adv=x_adv))))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert np.abs(found[0][0] - X).max() > 0.05
    assert found[0][1] == found[1][1]
    assert 0 < found[0][1] < 20


def test_reports_are_those_of_a_large_number(name: str) -> None:
    data, threat = (BACKENDS[name]().array(X), BACKENDS[name]().array(Y)), Threat(eps=0.1)
    attacks = ("pgd", "margin", "targeted", "apgd")
    found, exact = (
        spatlib.evaluate(network(name, value), data, threat, attacks=attacks, steps=3).metrics
        for value in (-math.inf, -1e9)
    )
    assert found == exact
    assert all(0.1 < found[key] < found["clean"] for key in found if key != "clean")
