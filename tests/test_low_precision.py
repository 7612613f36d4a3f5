"""Networks and inputs of half precision: attacked as in float64, inside the same set."""

from __future__ import annotations

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import Mask, SPATConfig, Threat
from spatlib.core.feasible import FeasibleSet

from .backends import BACKENDS, Backend
from .engines import ENGINES
from .entry import CHANNELS, CLASSES, initial_weights

NORMS = {"Linf": (np.inf, 8 / 255), "L2": (2, 0.2), "L1": (1, 0.5)}
ATTACKS = ("pgd", "margin", "targeted", "apgd")
CALLS = {"torch": spatlib_torch, "tf": spatlib_tf}


@cache
def images() -> tuple[np.ndarray, np.ndarray]:
    """Inputs (N, C, 2, 2) and what the network says of them, where it is not close."""
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(400, CHANNELS, 2, 2)).astype(np.float32)
    w1, b1, w2, b2 = initial_weights()
    z = np.tanh(x.reshape(len(x), -1) @ w1 + b1) @ w2 + b2
    gap = np.diff(np.sort(z, axis=1)[:, -2:])[:, 0]
    return x[gap > 0.05], z.argmax(axis=1)[gap > 0.05]


@cache
def accuracies(name: str, scale: float, precision: str) -> dict[str, float]:
    """Of the network of this precision, its logits times ``scale``, in per cent."""
    w1, b1, w2, b2 = initial_weights()
    subject = ENGINES[name]([w1, b1, scale * w2, scale * b2], precision=precision)
    config = SPATConfig(eps=0.1)
    found = subject.evaluate(*images(), config, attacks=ATTACKS, steps=3)
    return {key: 100 * share for key, share in found.items()}


@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_reports_of_all_precisions_agree(engine: Any, precision: str, scale: float) -> None:
    """A rival's probability is below 1e-16 for many of these networks of 100 times the logits."""
    name = next(n for n, e in ENGINES.items() if e is engine)
    exact, found = accuracies(name, scale, "float64"), accuracies(name, scale, precision)
    assert exact["clean"] == 100
    assert all(30 < exact[f"{key}3"] < 80 for key in ATTACKS)
    assert found == pytest.approx(exact, abs=1)


def moved(backend: Backend, x: np.ndarray, d: np.ndarray, threat: Threat) -> np.ndarray:
    return backend.call(lambda ops, x, d: FeasibleSet(ops, x, threat).at(d), x, d)


@pytest.mark.verifies
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from((1e-5, 1e-3, 0.1, 1.0)),
    bounds=st.sampled_from(((0.0, 1.0), (-1.0, 3.0), (0.0, 255.0), (0.0, 0.3))),
)
def test_no_entry_is_rounded_away_from_its_input(
    backend: Backend, seed: int, size: float, bounds: tuple[float, float]
) -> None:
    """And it is a neighbour of the number that it stands for."""
    rng, (low, high) = np.random.default_rng(seed), bounds
    x = rng.uniform(low, high, size=(4, 50))
    x[:, :9] = rng.choice((low, high, 2.0**-3, 2.0**-9), size=(4, 9))
    x = np.float16(np.clip(x, low, high))
    x[x.astype(float) > high] = np.nextafter(np.float16(high), np.float16(0))
    d = size * (high - low) * rng.uniform(-1, 1, size=x.shape).astype(np.float32)
    d[:, ::5] = 0
    threat = Threat(eps=high - low, bounds=bounds)
    found, exact = moved(backend, x, d, threat), moved(backend, np.float32(x), d, threat)
    assert (found.dtype, exact.dtype) == (np.float16, np.float32)
    near = np.abs(exact - found.astype(float))
    distance, most = (np.abs(v.astype(float) - x.astype(float)) for v in (found, exact))
    assert np.all(distance <= most + 2.0**-25)  # half of the smallest float16
    assert np.all(near <= np.spacing(np.abs(np.float16(exact))).astype(float))
    assert np.all((found.astype(float) >= low) & (found.astype(float) <= high))
    np.testing.assert_array_equal(found[:, ::5], x[:, ::5])


def test_what_half_precision_holds_is_reached(backend: Backend) -> None:
    x, d = np.float16([[0.5, 0.25]]), np.float32([[0.25, -0.125]])
    np.testing.assert_array_equal(moved(backend, x, d, Threat(eps=1)), [[0.75, 0.125]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("mask", [None, Mask(floor=0.0), Mask(score="rms"), Mask(score="random")])
def test_half_inputs_stay_in_the_set_and_in_their_dtype(
    engine: Any, mask: Mask | None, norm: str, dtype: str
) -> None:
    name = next(n for n, e in ENGINES.items() if e is engine)
    array, call, (order, eps) = BACKENDS[name]().array, CALLS[name], NORMS[norm]
    half = (
        (lambda v: v.to(getattr(torch, dtype)))
        if name == "torch"
        else (lambda v: tf.cast(v, dtype))
    )
    w = array(np.random.default_rng(1).normal(size=(12, CLASSES)).astype(np.float32))
    model = engine.network(lambda z: half(z) @ half(w))
    x, y = half(array(images()[0][:20].reshape(20, 12))), array(images()[1][:20])
    config = SPATConfig(eps=eps, norm=norm, steps=3, mask=mask)
    own = call.shared_mask(model, x, y, config)
    x_adv = call.perturb(model, x, y, config, mask=own)
    assert x_adv.dtype == x.dtype
    before, after, budget = (
        np.array(v.tolist() if name == "torch" else tf.cast(v, tf.float64)) for v in (x, x_adv, own)
    )
    far = after - before
    assert np.all(np.linalg.norm(far, order, axis=1) <= eps * (1 + 1e-6))
    assert np.all(np.linalg.norm(far, order, axis=1) > eps / 5)
    assert np.all((after >= 0) & (after <= 1))
    np.testing.assert_array_equal(far[budget == 0], 0)
    loss = call.spat_loss(model, x, y, config, x_adv=x_adv)
    assert np.isfinite(float(loss))


def test_what_half_inputs_became_is_kept_in_float32(engine: Any) -> None:
    name = next(n for n, e in ENGINES.items() if e is engine)
    x = np.random.default_rng(0).uniform(size=(9, 5))
    half = torch.as_tensor(x).bfloat16() if name == "torch" else tf.cast(x, tf.bfloat16)
    data, model = (half, BACKENDS[name]().array(np.arange(9) % 5)), engine.network(lambda z: 4 * z)
    report = spatlib.evaluate(model, data, Threat(eps=0.1), attacks="pgd", steps=1, keep=True)
    with np.load(BytesIO(report.as_npz())) as file:
        assert file["x_adv_pgd1"].dtype == np.float32


def test_xla_rounds_as_eager_code_does() -> None:
    """It drops a cast that is followed by its inverse."""
    x = tf.cast(tf.random.stateless_uniform((4, 50), (0, 0)), tf.bfloat16)
    d = tf.random.stateless_uniform((4, 50), (0, 1), -0.1, 0.1)
    ops = BACKENDS["tf"]().ops

    def at(x: Any, d: Any) -> Any:
        return tf.cast(FeasibleSet(ops, x, Threat(eps=0.1)).at(d), tf.float32)

    np.testing.assert_array_equal(tf.function(at, jit_compile=True)(x, d), at(x, d))
