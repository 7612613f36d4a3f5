"""The gradient that the training attack ascends, against its definition and the oracle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from spatlib.core.ops import Array, Ops
from spatlib.core.target import ascent

from .backends import Backend
from .record import agree, at_most
from .strategies import DTYPES, logits, rows

pytestmark = pytest.mark.verifies
ULPS = 8
SMOOTHINGS = st.sampled_from((0.0, 1e-3, 0.1, 0.5, 0.99)) | st.floats(0, 0.999)

over_guards = pytest.mark.parametrize("guard", [False, True])


def exact_log_softmax(z: np.ndarray) -> np.ndarray:
    """In float64; less its maximum, a row loses no digits to the size of its logits."""
    return np.stack([reference.log_softmax(row - row.max()) for row in rows(z)])


@dataclass(frozen=True)
class Case:
    """Logits z (N, K) at the iterate, labels y (N,), logits at x where b is p(x), else None."""

    z: np.ndarray
    y: np.ndarray
    clean: np.ndarray | None
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

    @property
    def base(self) -> np.ndarray | None:
        return None if self.clean is None else exact_log_softmax(self.clean).astype(self.z.dtype)

    def at_label(self, x: np.ndarray) -> np.ndarray:
        return x[np.arange(len(x)), self.y].astype(np.float64)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """One-hot targets (pgd, mart) and clean probabilities (trades), 2 to 1000 classes."""
    dtype, classes = draw(DTYPES), draw(st.sampled_from((2, 2, 3, 10, 1000)))
    shape = (draw(st.integers(1, 3)) if classes < 1000 else 2, classes)
    z = draw(logits(dtype, shape))
    y = draw(npst.arrays(np.int64, shape[:1], elements=st.integers(0, classes - 1)))
    clean = draw(logits(dtype, shape)) if draw(st.booleans()) else None
    return Case(z, y, clean, draw(SMOOTHINGS))


def ascended(backend: Backend, case: Case, guard: bool) -> np.ndarray:
    log_p = case.log_p.astype(case.z.dtype)
    return backend.call(ascent, case.base, case.one_hot, log_p, case.smoothing, guard)


def ulps(x: np.ndarray, count: float = ULPS) -> float:
    return count * float(np.finfo(x.dtype).eps)


def probabilities(z: np.ndarray) -> list[Decimal]:
    """To 28 digits, whatever their size."""
    terms = [Decimal(float(value)) for value in z]
    top = max(terms)
    powers = [(value - top).exp() for value in terms]
    total = sum(powers)
    return [power / total for power in powers]


@dataclass(frozen=True)
class Exact:
    """p - q (N, K) by its definition, and in units of its largest entry what that is like.

    ``unit`` is p - q (N, K), ``lost`` p_y - b_y (N,), ``error`` (N,) what rounding may do there:
    an ulp or so of every term, and |log p| ulp where a logarithm was rounded.
    """

    slope: np.ndarray
    unit: np.ndarray
    lost: np.ndarray
    error: np.ndarray


def exact(case: Case, guard: bool) -> Exact:
    found = [of_row(case, n, guard) for n in range(len(case.z))]
    return Exact(*(np.array(part, dtype=np.float64) for part in zip(*found, strict=True)))


def of_row(case: Case, n: int, guard: bool) -> tuple[list[float], list[float], float, float]:
    y, share, a = int(case.y[n]), 1 / Decimal(case.classes), Decimal(case.smoothing)
    b = [Decimal(float(value)) for value in case.one_hot[n]]
    p = probabilities(case.z[n])
    b = b if case.clean is None else probabilities(case.clean[n])
    top = max(range(case.classes), key=b.__getitem__)
    others = [k for k in range(case.classes) if k != top]
    moved = [p_k - b_k for p_k, b_k in zip(p, b, strict=True)]
    moved[top] = -sum(moved[k] for k in others)  # as they add up to 0: 1 - p_k has no digits
    near = Decimal(ulps(case.z, ULPS + case.classes / 8))
    terms = sum(v * (1 + abs(v.ln()) / ULPS) for k in others for v in (p[k], b[k]) if v)
    excess, jump = b[y] - share, Decimal(0)
    if guard:
        half = max(-moved[y], Decimal(0)) / (2 * excess) if excess > 0 else Decimal(0)
        a = min(a, half)
        # It divides by b_y - 1 / K, off by up to an ulp (also across 0, where a jumps).
        jump = min(Decimal(case.smoothing), near * (a + terms) / max(abs(excess), Decimal("1e-30")))
    slope = [moved[k] + a * (b[k] - share) for k in range(case.classes)]
    size = max(map(abs, slope))
    if size == 0:  # all is rounding noise
        return [0.0] * case.classes, [0.0] * case.classes, 0.0, 2.0
    error = min(2 * (near * (terms + a) + jump) / size, Decimal(2))
    return (
        [float(v) for v in slope],
        [float(v / size) for v in slope],
        *map(float, (moved[y] / size, error)),
    )


@over_guards
@given(case=cases())
def test_ascent_equals_the_oracle_up_to_a_factor_per_example(
    backend: Backend, guard: bool, case: Case
) -> None:
    c, wanted = ascended(backend, case, guard), exact(case, guard)
    assert (c.dtype, c.shape) == (case.z.dtype, case.z.shape)
    agree(c, wanted.unit, atol=wanted.error[:, None])
    p, b = np.exp(case.log_p), rows(case.one_hot)
    b = b if case.clean is None else np.exp(exact_log_softmax(case.clean))
    for n, slope in enumerate(wanted.slope):
        q = reference.smoothed_target(b[n], p[n], case.y[n], case.smoothing, guard)
        plain = reference.objective_gradient(rows(case.z)[n] - case.z[n].max(), q)
        excess = abs(b[n, case.y[n]] - 1 / case.classes)
        jump = min(case.smoothing, 1e-14 / max(excess, 1e-30)) if guard else 0.0
        agree(plain, slope, atol=1e-13 + jump)


@over_guards
@given(case=cases())
def test_ascent_has_a_largest_entry_of_1_and_adds_up_to_0(
    backend: Backend, guard: bool, case: Case
) -> None:
    c, error = ascended(backend, case, guard), exact(case, guard).error
    largest = np.abs(c).max(axis=1)
    assert np.all((largest == 1) | ((largest == 0) & (error > 0.1)))
    near = ulps(c, ULPS + case.classes / 8) * np.abs(rows(c)).sum(axis=1)
    noise = case.classes * (error > 0.1)  # all there is, and of any sum
    at_most(np.abs(rows(c).sum(axis=1)), 0, 2 * error + near + noise, like=c, scale=1)


@given(case=cases())
def test_ascent_without_smoothing_is_that_of_the_base_method(backend: Backend, case: Case) -> None:
    """The rivals' softmax and -1 at a one-hot label, to all digits; p - p(x) with TRADES."""
    case = replace(case, smoothing=0.0)
    c = ascended(backend, case, guard=False)
    np.testing.assert_array_equal(ascended(backend, case, guard=True), c)
    if case.clean is None:
        assert np.all(case.at_label(c) == -1)
        rivals = np.where(case.one_hot > 0, -np.inf, rows(case.log_p.astype(case.z.dtype)))
        agree(c + case.one_hot, np.exp(exact_log_softmax(rivals)), atol=ulps(c, ULPS + 1), like=c)
    else:
        still = replace(case, clean=case.z)
        np.testing.assert_array_equal(ascended(backend, still, guard=False), 0 * c)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("gap", [30, 300, 1000])
def test_ascent_is_exact_however_confident_the_network_is(
    backend: Backend, gap: float, dtype: str
) -> None:
    """From logits, with a label that leads the best rival by so much."""
    z = np.random.default_rng(gap).normal(size=(20, 6)).astype(dtype)
    y = np.arange(20) % 6
    label = np.eye(6, dtype=dtype)[y]
    z = np.where(label > 0, z.max(axis=1, keepdims=True) + gap, z).astype(dtype)
    surer = (z + 100 * label).astype(dtype)
    rivals = np.exp(exact_log_softmax(np.where(label > 0, -np.inf, z)))
    half = np.where(label > 0, -0.5, rivals - 0.5 / 5)
    expected = {  # without smoothing, half way back by the guard, and stalled
        (0.0, False): np.where(label > 0, -1, rivals),
        (0.1, True): half / np.abs(half).max(axis=1, keepdims=True),
        (0.1, False): np.where(label > 0, 1, -1 / 5),
    }
    near = ulps(z, ULPS + 4 * gap)  # the ulp of a log-probability

    def from_logits(ops: Ops, z: Array, clean: Array, label: Array, *settings: Array) -> Array:
        base = None if clean is None else ops.log_softmax(clean)
        return ascent(ops, base, label, ops.log_softmax(z), *settings)

    for settings, slope in expected.items():
        for clean in (None, surer):
            c = backend.call(from_logits, z, clean, label, *settings)
            left = 100 * np.exp(-gap) * (slope.max() == 1)  # of p beside q = a / K
            agree(c, slope, atol=near + left)
            assert np.all(np.abs(c).max(axis=1) == 1)
    plain = backend.call(from_logits, z, None, label, 0.0, False)
    np.testing.assert_array_equal(plain[label > 0], -1)
    wrong = np.roll(label, 1, axis=1)  # where TRADES' network is as sure of another class
    c = backend.call(from_logits, z, surer, wrong, 0.0, False)
    agree(c, np.where(label > 0, -1, rivals), atol=near)
