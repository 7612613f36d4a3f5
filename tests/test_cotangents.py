"""Cotangents: of the attacks' objectives and of centred logits; gradients with holes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import reference
from reference.target import logsumexp
from spatlib.core import numpy_ops
from spatlib.core.mask import centred
from spatlib.core.target import ascent, finite, objective, to_unit

from .backends import Backend
from .record import agree
from .strategies import DTYPES, SHAPES, gradients, rows
from .test_target import Case, cases, exact_log_softmax, ulps

pytestmark = pytest.mark.verifies
NAMES = ("pgd", "margin", "targeted", "apgd-ce", "apgd-t")


@st.composite
def aimed(draw: st.DrawFn) -> tuple[Case, np.ndarray]:
    """And goals (N, K), one-hot, other than the label."""
    case = draw(cases())
    shifts = draw(npst.arrays(np.int64, case.y.shape, elements=st.integers(1, case.classes - 1)))
    return case, np.eye(case.classes, dtype=case.z.dtype)[(case.y + shifts) % case.classes]


def valued(
    backend: Backend, name: str, case: Case, goal: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    value, cotangent = backend.call(objective, name, case.z, case.one_hot, goal)
    assert value.dtype == cotangent.dtype == case.z.dtype
    assert (value.shape, cotangent.shape) == (case.y.shape, case.z.shape)
    return value, cotangent


def largest(z: np.ndarray) -> float:
    return float(np.abs(z).max(initial=1e-30))


@given(drawn=aimed())
def test_margin_is_the_best_rival_less_the_label(
    backend: Backend, drawn: tuple[Case, np.ndarray]
) -> None:
    case, goal = drawn
    value, cotangent = valued(backend, "margin", case, goal)
    exact = [
        max(v for k, v in enumerate(row) if k != y) - row[y]
        for row, y in zip(rows(case.z).tolist(), case.y, strict=True)
    ]
    agree(value, exact, atol=ulps(case.z) * largest(case.z), scale=largest(case.z))
    chosen = cotangent + case.one_hot  # one of the best rivals
    np.testing.assert_array_equal(np.sort(chosen)[:, :-1], 0)
    best = np.where(case.one_hot > 0, -np.inf, case.z).max(axis=1)
    np.testing.assert_array_equal((chosen * case.z).sum(axis=1), best)
    np.testing.assert_array_equal((chosen * case.one_hot).sum(axis=1), 0)


@given(drawn=aimed())
def test_targeted_is_the_goal_less_the_label(
    backend: Backend, drawn: tuple[Case, np.ndarray]
) -> None:
    case, goal = drawn
    value, cotangent = valued(backend, "targeted", case, goal)
    exact = (rows(case.z) * goal).sum(axis=1) - case.at_label(case.z)
    agree(value, exact, atol=ulps(case.z) * largest(case.z), scale=largest(case.z))
    np.testing.assert_array_equal(cotangent, goal - case.one_hot)


@given(case=cases().filter(lambda case: case.classes <= 10))
def test_margin_is_the_largest_of_the_targeted_ones(backend: Backend, case: Case) -> None:
    z, label, goals = case.z[:1], case.one_hot[:1], np.eye(case.classes, dtype=case.z.dtype)
    towards = [
        backend.call(objective, "targeted", z, label, goal[None])[0]
        for goal in np.delete(goals, case.y[0], axis=0)
    ]
    best = backend.call(objective, "margin", z, label, label)[0]
    near = ulps(z) * largest(z)
    agree(best, np.max(towards, axis=0), atol=near, scale=largest(z))


@pytest.mark.parametrize("name", ["pgd", "apgd-ce"])
@given(drawn=aimed())
def test_cross_entropy_is_compared_by_what_all_rivals_lead_by(
    backend: Backend, name: str, drawn: tuple[Case, np.ndarray]
) -> None:
    """log sum over k != y of exp z_k, less z_y: log(e^CE - 1), which rises with CE."""
    case, goal = drawn
    value, cotangent = valued(backend, name, case, goal)
    z = rows(case.z)
    exact = [logsumexp(np.delete(row, y)) - row[y] for row, y in zip(z, case.y, strict=True)]
    near = ulps(case.z, 8 + case.classes / 8)
    room = near * (1 + largest(z))
    agree(value, exact, atol=room, scale=largest(z))
    rivals = np.exp(exact_log_softmax(np.where(case.one_hot > 0, -np.inf, z)))
    # The logarithms are rounded at the size of the gap to the label.
    near = near * (1 + np.abs(case.log_p).max(axis=1, keepdims=True))
    agree(cotangent, rivals - case.one_hot, atol=near)
    assert np.all(case.at_label(cotangent) == -1)
    crossed = -case.at_label(case.log_p)
    far = np.subtract.outer(crossed, crossed) > 4 * room
    assert np.all(np.subtract.outer(value, value)[far] > 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropies_of_confident_networks_can_be_told_apart(
    backend: Backend, dtype: str
) -> None:
    """-log p_y is e^-lead there: 0 in float32 from a lead of 17 on."""
    leads = np.array([10, 20, 40, 80, 300, 1000], dtype=dtype)
    z = np.stack([leads, 0 * leads, 0 * leads - 1], axis=1)
    label = np.eye(3, dtype=dtype)[[0] * len(z)]
    value, _ = backend.call(objective, "pgd", z, label, label)
    agree(value, np.log1p(np.exp(-1)) - leads, rtol=ulps(z))


def slopes(name: str, z: np.ndarray, label: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Finite differences of the values (N,) in every logit."""
    step, found = 1e-6, np.zeros_like(z)
    for k in range(z.shape[1]):
        move = step * np.eye(z.shape[1])[k]
        ends = (objective(numpy_ops, name, z + s * move, label, goal)[0] for s in (1, -1))
        found[:, k] = np.subtract(*ends) / (2 * step)
    return found


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from((0.1, 1.0, 5.0)))
def test_cotangents_are_the_gradients_of_the_values_up_to_a_positive_factor(
    backend: Backend, name: str, classes: int, seed: int, scale: float
) -> None:
    rng, count = np.random.default_rng(seed), 5
    z = scale * rng.normal(size=(count, classes))
    z += 1e-3 * rng.permuted(np.tile(np.arange(classes), (count, 1)), axis=1)  # no ties
    y = rng.integers(classes, size=count)
    label = np.eye(classes)[y]
    goal = np.eye(classes)[(y + rng.integers(1, classes, size=count)) % classes]
    close = np.diff(np.sort(z), axis=1).min(axis=1) < 1e-5  # a kink within a step
    found = slopes(name, z, label, goal)
    size = np.abs(found).max(axis=1, keepdims=True)
    _, cotangent = backend.call(objective, name, z, label, goal)
    agree(cotangent[~close], (found / size)[~close], atol=1e-5)
    assert np.all(np.abs(cotangent).max(axis=1) == 1)


@given(seed=st.integers(0, 2**32 - 1), guard=st.booleans(), trades=st.booleans())
def test_ascent_is_the_gradient_of_the_training_objective_up_to_a_positive_factor(
    backend: Backend, seed: int, guard: bool, trades: bool
) -> None:
    """J = -sum_k q_k log p_k by finite differences, with the q of the oracle held constant."""
    rng, (count, classes), step = np.random.default_rng(seed), (4, 5), 1e-6
    z, clean = rng.normal(size=(2, count, classes))
    y, smoothing = rng.integers(classes, size=count), float(rng.choice((0, 0.1, 0.9)))
    label, base = np.eye(classes)[y], exact_log_softmax(clean) if trades else None
    log_p = exact_log_softmax(z)
    c = backend.call(ascent, base, label, log_p, smoothing, guard)
    for n in range(count):
        b = label[n] if base is None else np.exp(base[n])
        q = reference.smoothed_target(b, np.exp(log_p[n]), int(y[n]), smoothing, guard)
        ends = [
            [reference.objective(z[n] + sign * step * move, q) for move in np.eye(classes)]
            for sign in (1, -1)
        ]
        found = np.subtract(*ends) / (2 * step)
        agree(c[n], found / np.abs(found).max(), atol=1e-8 / np.abs(found).max())


@pytest.mark.parametrize("classes", [2, 5])
def test_cotangents_give_the_centred_gradients_of_a_linear_map(
    backend: Backend, classes: int
) -> None:
    """z = x W^T: dz_k / dx = W_k, and shifting all logits alike changes nothing."""
    rng = np.random.default_rng(classes)
    weights = rng.normal(size=(classes, 7))
    exact = reference.centred(weights)
    rows_of = np.tile(np.arange(classes), 2)  # another number of examples than of classes
    signs = rng.choice([-1.0, 1.0], size=(4, classes))
    by_class = backend.call(centred, np.eye(classes)[rows_of])
    by_probe = backend.call(centred, signs)
    agree(by_class @ weights, exact[rows_of], atol=1e-14)
    agree(by_probe @ weights, signs @ exact, atol=1e-14)
    for cotangent in (by_class, by_probe):
        agree(cotangent @ (weights + rng.normal(size=7)), cotangent @ weights, atol=1e-13)
    single = backend.call(centred, signs.astype(np.float32))
    assert single.dtype == np.float32


broken = st.tuples(DTYPES, st.sampled_from(SHAPES)).flatmap(
    lambda kind: st.tuples(
        gradients(*kind),
        npst.arrays(
            np.float64, kind[1], elements=st.sampled_from((0, 0, 0, np.nan, np.inf, -np.inf))
        ),
        npst.arrays(np.bool_, kind[1][:1]),
    )
)


@given(drawn=broken)
def test_holes_in_gradients_count_as_0_and_infinities_outweigh(
    backend: Backend, drawn: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    whole, holes, kept = drawn
    holes = np.where(kept.reshape(-1, *(1,) * (whole.ndim - 1)), 0, holes)
    grad = np.where(holes == 0, whole, holes).astype(whole.dtype)
    found, flags = backend.call(finite, grad)
    assert found.dtype == flags.dtype == grad.dtype
    assert (found.shape, flags.shape) == (grad.shape, grad.shape[:1])
    np.testing.assert_array_equal(flags, (rows(holes) != 0).any(axis=1))
    for before, after in zip(grad, found, strict=True):
        endless = np.isinf(before)
        known = np.where(np.isnan(before), 0, before)
        expected = np.where(endless, np.sign(known), 0) if endless.any() else known
        np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_numbers_are_no_holes(backend: Backend, dtype: str) -> None:
    grad = np.full((2, 3, 64, 64), np.finfo(dtype).max)
    found, flags = backend.call(finite, grad)
    np.testing.assert_array_equal(flags, [0, 0])
    np.testing.assert_array_equal(found, grad)


@given(drawn=st.tuples(DTYPES, st.sampled_from([(1, 2), (3, 5)])).flatmap(lambda a: gradients(*a)))
def test_to_unit_scales_each_row_to_a_largest_entry_of_1(
    backend: Backend, drawn: np.ndarray
) -> None:
    unit = backend.call(to_unit, drawn)
    assert (unit.dtype, unit.shape) == (drawn.dtype, drawn.shape)
    size = np.abs(rows(drawn)).max(axis=1, keepdims=True)
    agree(unit, rows(drawn) / np.where(size > 0, size, 1), rtol=ulps(unit, 1))
    np.testing.assert_array_equal(np.abs(unit).max(axis=1), size[:, 0] > 0)
