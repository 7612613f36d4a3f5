"""The outer losses, per example, against closed forms and the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from reference.losses import loss_and_cotangents
from spatlib.core.ops import Array, Ops
from spatlib.core.target import outer_loss, rectified

from .backends import Backend
from .record import agree, at_most
from .strategies import DTYPES, logits, rows

pytestmark = pytest.mark.verifies
ULPS = 8

over_losses = pytest.mark.parametrize("name", ["pgd", "trades", "mart"])
over_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


@dataclass(frozen=True)
class Case:
    """Logits (N, K) at x and x', and labels (N,)."""

    clean: np.ndarray
    adversarial: np.ndarray
    y: np.ndarray

    @property
    def logits(self) -> tuple[np.ndarray, np.ndarray]:
        return self.clean, self.adversarial

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(self.clean.shape[1], dtype=self.clean.dtype)[self.y]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dtype, classes = draw(DTYPES), draw(st.sampled_from((2, 2, 3, 10, 1000)))
    shape = (draw(st.integers(1, 3)) if classes < 1000 else 2, classes)
    y = draw(npst.arrays(np.int64, shape[:1], elements=st.integers(0, classes - 1)))
    return Case(draw(logits(dtype, shape)), draw(logits(dtype, shape)), y)


def losses(backend: Backend, case: Case, name: str, beta: float) -> np.ndarray:
    return backend.call(outer_loss, name, beta, case.one_hot, case.clean, case.adversarial)


def oracle(case: Case, name: str, beta: float) -> np.ndarray:
    return np.array([loss for loss, _, _ in with_gradients(case, name, beta)])


def with_gradients(
    case: Case, name: str, beta: float
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Losses and gradients in float64, one example at a time, with the largest logit at 0."""
    clean, moved = (z - z.max(axis=1, keepdims=True) for z in map(rows, case.logits))
    examples = zip(clean, moved, case.y.tolist(), strict=True)
    return [loss_and_cotangents(*example, name, beta) for example in examples]


def rounding(case: Case, beta: float) -> np.ndarray:
    """Some ulp of the largest log-probability: K terms, products with p <= 1, in lanes of 8."""
    largest = 1 + np.maximum(*(np.ptp(rows(z), axis=1) for z in case.logits))
    count = ULPS + case.clean.shape[1] / 8
    return count * float(np.finfo(case.clean.dtype).eps) * largest * (2 + beta)


@over_losses
@given(case=cases(), beta=st.sampled_from((0.0, 1.0, 6.0)))
def test_loss_is_finite_and_equals_the_oracle(
    backend: Backend, name: str, case: Case, beta: float
) -> None:
    loss = losses(backend, case, name, beta)
    assert (loss.dtype, loss.shape) == (case.clean.dtype, case.y.shape)
    assert np.all(np.isfinite(loss))
    agree(
        loss, oracle(case, name, beta), atol=rounding(case, beta), scale=np.abs(case.logits).max()
    )


@over_losses
@given(case=cases(), beta=st.sampled_from((1.0, 6.0)))
def test_gradients_are_finite_and_equal_the_oracle(
    engine: Any, name: str, case: Case, beta: float
) -> None:
    def total(ops: Ops, label: Array, clean: Array, moved: Array) -> Array:
        return ops.sum(outer_loss(ops, name, beta, label, clean, moved), axis=0)

    gradients = engine.gradients(total, case.one_hot, *case.logits)
    assert (gradients.dtype, gradients.shape) == (case.clean.dtype, (2, *case.clean.shape))
    assert np.all(np.isfinite(gradients))
    exact = np.stack([slopes for _, *slopes in with_gradients(case, name, beta)], axis=1)
    near = rounding(case, beta)[:, None]
    agree(gradients, exact, atol=near, scale=np.abs(case.logits).max())


@over_losses
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-5)])
def test_loss_of_random_logits_equals_the_oracle(
    backend: Backend, name: str, classes: int, dtype: str, tolerance: float
) -> None:
    """Relative to losses of order 1 to 30."""
    rng = np.random.default_rng(classes)
    clean, moved = rng.normal(scale=2, size=(2, 50, classes)).astype(dtype)
    case = Case(clean, moved, rng.integers(classes, size=50))
    loss = losses(backend, case, name, 6.0)
    agree(loss, oracle(case, name, 6.0), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["pgd", "trades"])
@given(case=cases(), share=st.floats(0.1, 1))
def test_loss_and_gradients_of_soft_labels_equal_the_oracle(
    engine: Any, name: str, case: Case, share: float
) -> None:
    label = share * rows(case.one_hot) + (1 - share) / case.clean.shape[1]
    near = (
        rounding(case, 6.0) + 4 * float(np.finfo(case.clean.dtype).eps) * np.abs(case.logits).max()
    )

    def total(ops: Ops, label: Array, clean: Array, moved: Array) -> Array:
        return ops.sum(outer_loss(ops, name, 6.0, label, clean, moved), axis=0)

    gradients = engine.gradients(total, label.astype(case.clean.dtype), *case.logits)
    examples = zip(*map(rows, case.logits), label, strict=True)
    exact = [loss_and_cotangents(z - z.max(), v - v.max(), y, name, 6.0) for z, v, y in examples]
    slopes = np.stack([found[1:] for found in exact], axis=1)
    near = rounding(case, 6.0)[:, None]
    agree(gradients, slopes, atol=near, scale=np.abs(case.logits).max())


@given(case=cases(), r=st.sampled_from((0.1, 0.5, 0.9)))
def test_rectified_labels_are_probabilities_and_equal_the_oracle(
    backend: Backend, case: Case, r: float
) -> None:
    label = backend.call(rectified, case.one_hot, case.clean, r)
    shifted = rows(case.clean) - rows(case.clean).max(axis=1, keepdims=True)
    examples = zip(case.y.tolist(), shifted, strict=True)
    exact = [reference.losses.rectified(y, z, r) for y, z in examples]
    ulp = float(np.finfo(case.clean.dtype).eps)
    near = ULPS * ulp * (1 + np.ptp(rows(case.clean), axis=1))[:, None]
    agree(label, exact, atol=near, scale=np.abs(case.clean).max())
    assert label.dtype == case.clean.dtype
    np.testing.assert_array_equal(rows(label) >= 0, True)


@over_dtypes
def test_pgd_needs_no_clean_logits(backend: Backend, dtype: str) -> None:
    moved = np.array([[0, 0, 0, 0], [0, np.log(3), -1e4, -1e4]], dtype=dtype)
    one_hot = np.eye(4, dtype=dtype)[[2, 1]]
    loss = backend.call(outer_loss, "pgd", 6.0, one_hot, None, moved)
    agree(loss, [np.log(4), np.log(4 / 3)], rtol=1e-6)


@given(case=cases(), beta=st.sampled_from((0.5, 6.0)))
def test_divergence_is_never_negative_and_zero_for_equal_logits(
    backend: Backend, case: Case, beta: float
) -> None:
    without, with_it = (losses(backend, case, "trades", b) for b in (0.0, beta))
    largest = np.abs(case.logits).max()
    at_most(without, with_it, rounding(case, beta), like=with_it, scale=largest)
    still = Case(case.clean, case.clean, case.y)
    natural = losses(backend, still, "pgd", 0.0)
    np.testing.assert_array_equal(losses(backend, still, "trades", beta), natural)
    without, with_it = (losses(backend, still, "mart", b) for b in (0.0, beta))
    np.testing.assert_array_equal(with_it, without)


@over_dtypes
def test_trades_weighs_the_divergence_from_clean_to_perturbed(backend: Backend, dtype: str) -> None:
    """p = (3/4, 1/4) and p' = (1/2, 1/2), whose KL(p' || p) would be another number."""
    case = Case(
        np.array([[np.log(3), 0], [np.log(3), 0]], dtype=dtype),
        np.zeros((2, 2), dtype=dtype),
        np.array([0, 1]),
    )
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    expected = [np.log(4 / 3) + 6 * kl, np.log(4) + 6 * kl]
    agree(losses(backend, case, "trades", 6.0), expected, rtol=1e-6)
    expected = [np.log(2) * 2 + 6 * kl / 4, np.log(2) * 2 + 6 * kl * 3 / 4]
    agree(losses(backend, case, "mart", 6.0), expected, rtol=1e-6)


@over_dtypes
@pytest.mark.parametrize("lead", [-1e4, -30, -1, 0, 1, 10, 20, 40, 100, 1e4])
def test_mart_is_exact_for_two_classes_where_the_rival_takes_all(
    backend: Backend, dtype: str, lead: float
) -> None:
    """K = 2: 1 - p'_rival = p'_y, so both terms are log(1 + exp(lead of the rival))."""
    z = np.array([[0, lead], [lead, 0]], dtype=dtype)
    loss = losses(backend, Case(z, z, np.array([0, 1])), "mart", 6.0)
    exact = 2 * np.logaddexp(0.0, lead)
    ulp = float(np.finfo(dtype).eps)
    # A loss below an ulp of the largest logit is rounded away in the log-probabilities.
    near = ULPS * ulp * min(abs(lead), 30)
    agree(loss, exact, rtol=ULPS * ulp, atol=near, scale=abs(lead))


@over_dtypes
@pytest.mark.parametrize("lead", [20, 50, 1e3, 1e4])
def test_mart_keeps_what_is_left_to_the_others_where_the_rival_rounds_to_1(
    backend: Backend, dtype: str, lead: float
) -> None:
    """z' = (0, lead, 2, 1), y = 0: 1 - p'_1 = (1 + e^2 + e) / sum, to all digits."""
    z = np.array([[0, lead, 2, 1]], dtype=dtype)
    loss = losses(backend, Case(np.zeros_like(z), z, np.array([0])), "mart", 0.0)
    rest = np.log(1 + np.exp(2) + np.exp(1))
    total = np.logaddexp(lead, rest)
    agree(loss, [2 * total - rest], rtol=ULPS * np.finfo(dtype).eps)


@over_dtypes
def test_mart_counts_one_rival_where_several_tie(backend: Backend, dtype: str) -> None:
    z = np.array([[0, 0, 0, 0], [5, 1, 5, 5]], dtype=dtype)
    loss = losses(backend, Case(z, z, np.array([1, 1])), "mart", 6.0)
    p_tied = np.exp(5) / (3 * np.exp(5) + np.e)
    p_y = np.e / (3 * np.exp(5) + np.e)
    expected = [np.log(4) - np.log(0.75), -np.log(p_y) - np.log(1 - p_tied)]
    agree(loss, expected, rtol=1e-6)
