"""The shared-pixel mask against its invariances, hand-made cases and the oracle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from spatlib.core.mask import begin, finish, fold
from spatlib.core.ops import Array, Ops

from .backends import Backend
from .strategies import DTYPES, gradients, rows

pytestmark = pytest.mark.verifies
SCORES = ("min", "mean", "rms", "neutral")
SHAPES = st.sampled_from(((3, 5), (1, 1), (2, 3, 2, 2), (1, 2, 3, 3), (2, 3, 2, 4)))
BY_CLASS = ("min", "mean", "neutral")  # normalised class by class

over_scores = pytest.mark.parametrize("score", SCORES)


@dataclass(frozen=True)
class Case:
    """Gradients (R, N, ...) of R classes, channels second (none in (N, D)); keep and floor."""

    grads: np.ndarray
    keep: float
    floor: float

    @property
    def channel_axis(self) -> int | None:
        return 1 if self.grads.ndim > 3 else None

    @property
    def channels(self) -> int:
        return self.grads.shape[2] if self.grads.ndim > 3 else 1


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """2 to 4 classes with ties, each dead in some examples and on a scale of its own."""
    dtype, shape, classes = draw(DTYPES), draw(SHAPES), draw(st.integers(2, 4))
    grads = draw(gradients(dtype, (classes * shape[0], *shape[1:]))).reshape(classes, *shape)
    scales = np.logspace(0, draw(st.sampled_from((0, 3))), classes, dtype=dtype)
    grads = grads * scales.reshape(-1, *(1,) * len(shape))
    keep = draw(st.sampled_from((0.5, 0.25, 0.75, 1e-3, 1.0)))
    return Case(grads, keep, draw(st.sampled_from((0.0, 0.25, 0.5, 1.0))))


def mask_of(
    backend: Backend,
    grads: np.ndarray,
    score: str,
    keep: float,
    floor: float,
    channel_axis: int | None,
) -> np.ndarray:
    """Drive begin, fold, finish as an engine does."""

    def run(ops: Ops, *folded: Array) -> Array:
        state = begin(ops, folded[0], score, channel_axis)
        for grad in folded:
            state = fold(ops, state, grad, score, channel_axis)
        return finish(ops, state, keep, floor)

    return backend.call(run, *grads)


def masked(backend: Backend, case: Case, score: str, grads: np.ndarray | None = None) -> np.ndarray:
    grads = case.grads if grads is None else grads
    return mask_of(backend, grads, score, case.keep, case.floor, case.channel_axis)


def clear(case: Case, score: str) -> np.ndarray:
    """(N, P): which pixels' scores are not within rounding of the threshold, by the oracle."""
    out = []
    for n in range(case.grads.shape[1]):
        table = rows(case.grads[:, n])
        found = reference.shared_score(table, case.channels, score)
        used = np.array(reference.used_pixels(table, case.channels))
        if found is None or not used.any():
            out.append(np.ones(len(used), dtype=bool))
            continue
        ranked = np.where(used, found, -np.inf)
        threshold = np.sort(ranked)[-max(1, int(case.keep * found.size + 0.5))]
        near = 50 * np.finfo(case.grads.dtype).eps * np.abs(found[used]).max()
        out.append(~used | (np.abs(found - threshold) > near) | (np.abs(found[used]).max() == 0))
    return np.array(out)


def unused(case: Case) -> np.ndarray:
    """(N, P): which pixels no class depends on, where there is another, by the oracle."""
    tables = [rows(case.grads[:, n]) for n in range(case.grads.shape[1])]
    used = np.array([reference.used_pixels(table, case.channels) for table in tables])
    return ~used & used.any(axis=1, keepdims=True)


@given(score=st.sampled_from(SCORES), case=cases())
def test_mask_equals_the_oracle_off_the_threshold(backend: Backend, score: str, case: Case) -> None:
    mask = masked(backend, case, score)
    exact = [
        reference.shared_mask(rows(case.grads[:, n]), case.channels, score, case.keep, case.floor)
        for n in range(case.grads.shape[1])
    ]
    sure = clear(case, score)
    np.testing.assert_array_equal(rows(mask)[sure], np.array(exact)[sure])


@given(score=st.sampled_from(SCORES), case=cases())
def test_mask_is_floor_or_1_per_pixel_with_at_least_the_kept_share_of_1(
    backend: Backend, score: str, case: Case
) -> None:
    mask = masked(backend, case, score)
    shape = case.grads.shape[1:]
    assert mask.shape == (shape if len(shape) == 2 else (shape[0], 1, *shape[2:]))
    assert mask.dtype == case.grads.dtype
    assert np.all((mask == 1) | (mask == case.floor))
    pixels, idle = mask[0].size, unused(case)
    due = np.minimum(max(1, np.floor(case.keep * pixels + 0.5)), (~idle).sum(axis=1))
    assert np.all((rows(mask) == 1).sum(axis=1) >= due)
    assert np.all(rows(mask)[idle] == case.floor)


@over_scores
@pytest.mark.parametrize(
    ("keep", "pixels", "kept"),
    [(0.5, 5, 3), (0.5, 4, 2), (0.3, 5, 2), (0.25, 10, 3), (0.1, 4, 1), (0.01, 9, 1), (0.99, 9, 9)],
)
def test_mask_keeps_the_rounded_share_of_distinct_scores(
    backend: Backend, score: str, keep: float, pixels: int, kept: int
) -> None:
    grads = np.random.default_rng(pixels).normal(size=(3, 20, 2, pixels, 1))
    mask = rows(mask_of(backend, grads, score, keep, 0.25, 1))
    np.testing.assert_array_equal((mask == 1).sum(axis=1), np.full(20, kept))
    exact = [reference.shared_mask(rows(grads[:, n]), 2, score, keep, 0.25) for n in range(20)]
    np.testing.assert_array_equal(mask, exact)


@pytest.mark.parametrize("score", ["min", "rms"])  # a smallest and a sum; 1000 folds take time
def test_mask_of_a_thousand_classes_equals_the_oracle(backend: Backend, score: str) -> None:
    grads = np.random.default_rng(0).normal(size=(1000, 1, 2, 3, 3))
    mask = mask_of(backend, grads, score, 0.5, 0.25, 1)
    exact = reference.shared_mask(rows(grads[:, 0]), 2, score, 0.5, 0.25)
    np.testing.assert_array_equal(rows(mask), [exact])
    assert (exact == 1).sum() == 5


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("min", [0, 0, 1, 1]),
        ("mean", [1, 1, 0, 0]),
        ("rms", [0, 1, 0, 1]),
        ("neutral", [0, 0, 1, 1]),
    ],
)
def test_each_score_ranks_the_pixels_by_its_own_score(
    backend: Backend, score: str, expected: list[int]
) -> None:
    """Saliencies of mean 1: (2.6, .2, .5, .7) and (.1, 2.5, .6, .8); the second class is 10 x."""
    grads = np.array([[[1.3, -0.1, 0.25, 0.35]], [[-0.5, 12.5, 3.0, -4.0]]])
    mask = mask_of(backend, grads, score, 0.5, 0.0, None)
    np.testing.assert_array_equal(mask, [expected])


@over_scores
def test_all_pixels_that_tie_for_the_last_place_are_kept(backend: Backend, score: str) -> None:
    order = [1, 3, 2, 3, 3] if score == "neutral" else [3, 1, 2, 1, 1]
    grads = np.array([[order], [[2 * v for v in order]]], dtype=np.float32)
    for keep, expected in ((0.2, [1, 0, 0, 0, 0]), (0.4, [1, 0, 1, 0, 0]), (0.6, [1] * 5)):
        mask = mask_of(backend, grads, score, keep, 0.0, None)
        np.testing.assert_array_equal(mask, [expected])


@given(score=st.sampled_from(SCORES), case=cases())
def test_pixels_alike_for_every_class_are_treated_alike(
    backend: Backend, score: str, case: Case
) -> None:
    twice = np.concatenate([case.grads, -case.grads], axis=-1)
    first, second = np.split(masked(backend, case, score, twice), 2, axis=-1)
    np.testing.assert_array_equal(first, second)


@given(score=st.sampled_from(SCORES), case=cases())
def test_the_order_of_the_classes_is_of_no_matter(backend: Backend, score: str, case: Case) -> None:
    same = rows(masked(backend, case, score)) == rows(
        masked(backend, case, score, case.grads[::-1])
    )
    if score in ("min", "neutral"):
        assert np.all(same)
    assert np.all(same | ~clear(case, score))


@given(score=st.sampled_from(SCORES), case=cases(), exponent=st.sampled_from((-9, 3)))
def test_the_scale_of_the_logits_is_of_no_matter(
    backend: Backend, score: str, case: Case, exponent: int
) -> None:
    grads = np.where(np.abs(case.grads) < 1e-26, 0, case.grads).astype(case.grads.dtype)
    powers = np.full(len(grads), exponent)
    if score in BY_CLASS:  # each class has a scale of its own
        powers = exponent * np.arange(len(grads))
    factors = (2.0**powers).astype(grads.dtype).reshape(-1, *(1,) * (grads.ndim - 1))
    expected = masked(backend, case, score, grads)
    np.testing.assert_array_equal(masked(backend, case, score, factors * grads), expected)


@given(score=st.sampled_from(SCORES), case=cases())
def test_dead_classes_take_no_part(backend: Backend, score: str, case: Case) -> None:
    dead = np.zeros_like(case.grads[:1])
    expected = masked(backend, case, score)
    for grads in ([dead, case.grads], [case.grads, dead]):
        mask = masked(backend, case, score, np.concatenate(grads))
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_probes_add_up_on_any_scale(backend: Backend, dtype: str, scale: float) -> None:
    """Squares 9 + 16, 1 + 36 and 25 + 4, of which float32 holds none on the outer scales."""
    grads = scale * np.array([[[3, 1, 5]], [[4, -6, 2]], [[0, 0, 0]]], dtype=dtype)
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        for keep, expected in ((0.3, [0, 1, 0]), (0.6, [0, 1, 1])):
            mask = mask_of(backend, grads[order].astype(dtype), "rms", keep, 0.0, None)
            np.testing.assert_array_equal(mask, [expected])


@over_scores
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mask_is_all_ones_where_no_class_takes_part(
    backend: Backend, score: str, dtype: str
) -> None:
    grads = np.zeros((3, 2, 2, 3, 3), dtype=dtype)
    grads[:, 1, 0, 1, 1] = 1
    mask = mask_of(backend, grads, score, 0.1, 0.25, 1)
    np.testing.assert_array_equal(mask[0], np.ones((1, 3, 3)))
    sole = np.zeros((1, 3, 3)) + np.eye(3)[1] * np.eye(3)[:, [1]]
    np.testing.assert_array_equal(mask[1], sole * 0.75 + 0.25)


@over_scores
@pytest.mark.parametrize(
    ("keep", "neutral", "others"),
    [(0.2, [0, 0, 1, 0, 0], [0, 0, 0, 1, 0]), (0.4, *[[0, 0, 1, 1, 0]] * 2)]
    + [(keep, *[[0, 0, 1, 1, 0]] * 2) for keep in (0.6, 0.8, 1.0)],
)
def test_pixels_that_no_class_depends_on_are_never_kept(
    backend: Backend, score: str, keep: float, neutral: list[int], others: list[int]
) -> None:
    """Not by "neutral" either, for which no class claims less; and if more are due."""
    grads = np.array([[[0, -0.0, 1, -2, 0]], [[0, 0, 0.5, 3, 0]], [[0, 0, 0, 0, 0]]])
    mask = mask_of(backend, grads, score, keep, 0.0, None)
    np.testing.assert_array_equal(mask, [neutral if score == "neutral" else others])


@given(score=st.sampled_from(SCORES), case=cases())
def test_channels_last_gives_the_mask_of_channels_first(
    backend: Backend, score: str, case: Case
) -> None:
    if case.channel_axis is None:
        case = Case(case.grads[..., None, None], case.keep, case.floor)
    last = np.moveaxis(case.grads, 2, -1).copy()
    mask = mask_of(backend, last, score, case.keep, case.floor, last.ndim - 2)
    first = masked(backend, case, score)
    assert mask.shape == (*first.shape[:1], *first.shape[2:], 1)
    same = rows(mask) == rows(first)
    assert np.all(same | ~clear(case, score))  # the channels may be added up in another order
