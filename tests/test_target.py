"""The ascent target, its guard and its objectives, against their definition and the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from spatlib.core import target as core
from spatlib.core.ops import Array, Ops
from spatlib.core.target import attack_loss, margin, objective, smoothed_target, stalled

from .backends import Backend
from .record import agree, at_most
from .strategies import DTYPES, logits, rows, without_subnormals

pytestmark = pytest.mark.verifies
ULPS = 8
SMOOTHINGS = st.sampled_from((0.0, 1e-3, 0.1, 0.5, 0.99)) | st.floats(0, 0.999)


def exact_log_softmax(z: np.ndarray) -> np.ndarray:
    """In float64; less its maximum, a row loses no digits to the size of its logits."""
    return np.stack([reference.log_softmax(row - row.max()) for row in rows(z)])


@dataclass(frozen=True)
class Case:
    """Logits z (N, K) at the current iterate, labels y (N,), and the base target b (N, K)."""

    z: np.ndarray
    y: np.ndarray
    b: np.ndarray
    smoothing: float

    @property
    def classes(self) -> int:
        return self.z.shape[1]

    @property
    def one_hot(self) -> np.ndarray:
        return np.eye(self.classes, dtype=self.z.dtype)[self.y]

    @property
    def log_p(self) -> np.ndarray:
        return exact_log_softmax(self.z)

    def at_label(self, x: np.ndarray) -> np.ndarray:
        return x[np.arange(len(x)), self.y].astype(np.float64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One-hot targets (pgd, mart) and clean probabilities (trades), 2 to 1000 classes."""
    dtype, classes = draw(DTYPES), draw(st.sampled_from((2, 2, 3, 10, 1000)))
    shape = (draw(st.integers(1, 3)) if classes < 1000 else 2, classes)
    z = draw(logits(dtype, shape))
    y = draw(npst.arrays(np.int64, shape[:1], elements=st.integers(0, classes - 1)))
    b = np.eye(classes, dtype=dtype)[y]
    if draw(st.booleans()):
        clean = draw(logits(dtype, shape))
        b = without_subnormals(np.exp(exact_log_softmax(clean))).astype(dtype)
    return Case(z, y, b, draw(SMOOTHINGS))


def target(backend: Backend, case: Case, guard: bool) -> np.ndarray:
    log_p = case.log_p.astype(case.z.dtype)
    return backend.call(smoothed_target, case.b, case.one_hot, log_p, case.smoothing, guard)


def log_softmax(ops: Ops, z: Array) -> Array:
    return ops.log_softmax(z)


def logsumexp(ops: Ops, z: Array) -> Array:
    return ops.logsumexp(z)


def ulps(x: np.ndarray, count: float = ULPS) -> float:
    return count * float(np.finfo(x.dtype).eps)


@pytest.mark.parametrize("guard", [False, True])
@given(case=cases())
def test_target_is_a_distribution_and_equals_the_oracle(
    backend: Backend, guard: bool, case: Case
) -> None:
    q = target(backend, case, guard)
    assert (q.dtype, q.shape) == (case.z.dtype, case.z.shape)
    assert np.all(q >= 0)
    agree(rows(q).sum(axis=1), 1, rtol=ulps(q), like=q)
    exact = [
        reference.smoothed_target(b, p, y, case.smoothing, guard)
        for b, p, y in zip(rows(case.b), np.exp(case.log_p), case.y, strict=True)
    ]
    # The guard divides by b_y - 1 / K, off by up to an ulp (also across 0, where a jumps).
    excess = np.abs(case.at_label(case.b) - 1 / case.classes)[:, None]
    error = ulps(q) / np.minimum(excess + 1e-30, 1) if guard else ulps(q)
    agree(q, exact, atol=error)


@pytest.mark.parametrize("guard", [False, True])
@given(case=cases())
def test_target_without_smoothing_is_the_base_target(
    backend: Backend, guard: bool, case: Case
) -> None:
    log_p = case.log_p.astype(case.z.dtype)
    q = backend.call(smoothed_target, case.b, case.one_hot, log_p, 0.0, guard)
    np.testing.assert_array_equal(q, case.b)


@given(case=cases())
def test_guarded_target_never_pulls_the_example_back_to_its_label(
    backend: Backend, case: Case
) -> None:
    """p_y - q_y is at most half of p_y - b_y where the label has lost probability, else p_y - b_y.

    So it is never positive for a one-hot b, and never above max(p_y - b_y, 0) for any b.
    """
    q_y = case.at_label(target(backend, case, guard=True))
    p_y, b_y = case.at_label(np.exp(case.log_p)), case.at_label(case.b)
    pull, lost = p_y - q_y, p_y - b_y
    at_most(pull, np.where(lost < 0, lost / 2, lost), ulps(case.z), like=case.z, scale=1)


@given(case=cases())
def test_guard_only_ever_shrinks_the_smoothing(backend: Backend, case: Case) -> None:
    free, guarded = target(backend, case, guard=False), target(backend, case, guard=True)
    at_most(np.abs(guarded - case.b), np.abs(free - case.b), ulps(free), like=free, scale=1)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize(("p_y", "q_y"), [(0.1, 0.88), (0.6, 0.88), (0.9, 0.95), (0.9999, 0.99995)])
def test_target_of_a_label_is_smoothed_by_a_and_guarded_at_half_way(
    backend: Backend, guard: bool, p_y: float, q_y: float
) -> None:
    """K = 2, a = 0.24: q_y = 1 - a + a / K = 0.88, and with the guard at least (1 + p_y) / 2."""
    z = np.log([[p_y, 1 - p_y]])
    case = Case(z, np.array([0]), np.array([[1.0, 0.0]]), 0.24)
    expected = q_y if guard else 0.88
    agree(target(backend, case, guard), [[expected, 1 - expected]], atol=1e-12)


@pytest.mark.parametrize(
    ("b", "p_y"),
    [([0.2, 0.8], 0.05), ([0.25, 0.6, 0.1, 0.05], 0.1), ([0.6, 0.4], 0.9)],
    ids=["label below 1 / K", "label at 1 / K", "label above its base target"],
)
def test_guard_forbids_smoothing_that_would_raise_the_label(
    backend: Backend, b: list[float], p_y: float
) -> None:
    others = [(1 - p_y) / (len(b) - 1)] * (len(b) - 1)
    case = Case(np.log([[p_y, *others]]), np.array([0]), np.array([b]), 0.24)
    np.testing.assert_array_equal(target(backend, case, guard=True), [b])


@given(case=cases())
def test_objective_equals_the_oracle_summed_over_the_batch(backend: Backend, case: Case) -> None:
    q = target(backend, case, guard=False)
    log_p = case.log_p.astype(case.z.dtype)
    result = backend.call(objective, log_p, q)
    assert (result.dtype, result.shape) == (case.z.dtype, ())
    pairs = zip(rows(case.z), rows(q), strict=True)
    exact = sum(reference.objective(z - z.max(), q) for z, q in pairs)
    # N K terms of one sign, added one after the other at worst.
    agree(result, exact, rtol=ulps(q, ULPS + q.size), atol=ulps(q))


@given(case=cases())
def test_stalled_equals_the_oracle_and_the_sign_of_the_label_weight(
    backend: Backend, case: Case
) -> None:
    log_p = case.log_p.astype(case.z.dtype)
    result = backend.call(stalled, case.one_hot, log_p, case.smoothing)
    assert (result.dtype, result.shape) == (case.z.dtype, (len(case.z),))
    p, a = np.exp(case.log_p), case.smoothing
    weight = case.at_label(p) - (1 - a + a / case.classes)
    clear = np.abs(weight) > ulps(case.z)  # not within rounding of the threshold
    exact = [reference.stalled(row, y, a) for row, y in zip(p, case.y, strict=True)]
    np.testing.assert_array_equal(result[clear], np.array(exact, dtype=float)[clear])
    np.testing.assert_array_equal(result[clear], (weight > 0)[clear])


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize(("offset", "expected"), [(1e-6, 1.0), (-1e-6, 0.0)])
def test_stalled_turns_at_the_smoothed_weight_of_the_label(
    backend: Backend, classes: int, offset: float, expected: float
) -> None:
    p_y = 0.9 + 0.1 / classes + offset
    p = np.full((1, classes), (1 - p_y) / (classes - 1))
    p[0, 1] = p_y
    result = backend.call(stalled, np.eye(classes)[[1]], np.log(p), 0.1)
    np.testing.assert_array_equal(result, [expected])


def test_without_smoothing_nothing_is_stalled_not_even_a_certain_label(backend: Backend) -> None:
    result = backend.call(stalled, np.eye(2), np.array([[0.0, -1e4], [-1e4, 0.0]]), 0.0)
    np.testing.assert_array_equal(result, [0, 0])


@given(case=cases())
def test_margin_is_the_best_rival_less_the_label(backend: Backend, case: Case) -> None:
    result = backend.call(margin, case.z, case.one_hot)
    assert (result.dtype, result.shape) == (case.z.dtype, case.y.shape)
    exact = [
        max(value for k, value in enumerate(row) if k != y) - row[y]
        for row, y in zip(rows(case.z).tolist(), case.y, strict=True)
    ]
    largest = np.abs(case.z).max(initial=1e-30)
    agree(result, exact, rtol=0, atol=ulps(case.z) * largest, scale=largest)


@given(case=cases(), shift=st.integers(0, 999))
def test_targeted_is_the_goal_less_the_label(backend: Backend, case: Case, shift: int) -> None:
    goals = (case.y + shift) % case.classes
    goal = np.eye(case.classes, dtype=case.z.dtype)[goals]
    result = backend.call(core.targeted, case.z, case.one_hot, goal)
    exact = rows(case.z)[np.arange(len(goals)), goals] - case.at_label(case.z)
    largest = np.abs(case.z).max(initial=1e-30)
    agree(result, exact, rtol=0, atol=ulps(case.z) * largest, scale=largest)
    named = backend.call(attack_loss, "targeted", case.z, case.one_hot, goal)
    np.testing.assert_array_equal(named, result)


@given(case=cases().filter(lambda case: case.classes <= 10))
def test_margin_is_the_largest_of_the_targeted_ones(backend: Backend, case: Case) -> None:
    z, label, goals = case.z[:1], case.one_hot[:1], np.eye(case.classes, dtype=case.z.dtype)
    towards = [
        backend.call(core.targeted, z, label, goal[None])
        for goal in np.delete(goals, case.y[0], axis=0)
    ]
    largest = np.abs(z).max()
    agree(
        backend.call(margin, z, label),
        np.max(towards, axis=0),
        atol=ulps(z) * largest,
        scale=largest,
    )


@given(case=cases())
def test_attack_loss_is_the_named_objective_of_the_label(backend: Backend, case: Case) -> None:
    crossed = backend.call(attack_loss, "cross-entropy", case.z, case.one_hot)
    exact = -case.at_label(case.log_p)
    near = ulps(case.z, ULPS + case.classes / 8)  # terms, added in lanes of 8
    agree(crossed, exact, rtol=near, atol=near, scale=1)  # of a sum that is 1 at least
    named = backend.call(attack_loss, "margin", case.z, case.one_hot)
    np.testing.assert_array_equal(named, backend.call(margin, case.z, case.one_hot))


@given(case=cases())
def test_log_softmax_and_logsumexp_are_exact_for_logits_of_any_size(
    backend: Backend, case: Case
) -> None:
    log_p, total = backend.call(log_softmax, case.z), backend.call(logsumexp, case.z)
    assert log_p.dtype == total.dtype == case.z.dtype
    # 1e4 added to all logits costs no digit of log p; the sum is of K terms, added in lanes of 8.
    near = {"rtol": ulps(total), "atol": ulps(total, ULPS + case.classes / 8)}
    agree(log_p, case.log_p, **near, scale=1)
    agree(total, case.z.max(axis=1) - case.log_p.max(axis=1), **near, scale=1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsumexp_ignores_entries_of_minus_infinity(backend: Backend, dtype: str) -> None:
    z = np.array([[-np.inf, 1e4, -np.inf], [0, -np.inf, 0], [-1e4, -np.inf, -np.inf]], dtype=dtype)
    result = backend.call(logsumexp, z)
    agree(result, [1e4, np.log(2), -1e4], rtol=ulps(z, 2))
