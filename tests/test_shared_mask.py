"""The whole mask, from what pulls gradients and what is drawn, against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
import spatlib_tf
import spatlib_torch
from spatlib import ConfigError, Mask, SPATConfig
from spatlib.core.mask import shared_mask
from spatlib.core.ops import Array, Ops

from .backends import BACKENDS, Backend
from .engines import ENGINES
from .strategies import DTYPES, rows
from .test_mask import Case, clear

pytestmark = pytest.mark.verifies
COUNT, CLASSES = 4, 5
CALLS: dict[str, Any] = {"torch": spatlib_torch.shared_mask, "tf": spatlib_tf.shared_mask}
SHAPES = ((6,), (3, 5), (2, 3, 3), (3, 2, 4))  # of an input, channels first


class Given:
    """Draws that somebody made, and what was asked of them."""

    def __init__(self, drawn: Array, asked: list[Any]) -> None:
        self.drawn, self.asked = drawn, asked

    def classes(self, label: Array, count: int) -> Array:
        self.asked.append(("classes", tuple(label.shape), count))
        return self.drawn

    def signs(self, label: Array, count: int) -> Array:
        self.asked.append(("signs", tuple(label.shape), count))
        return self.drawn

    def uniform(self, like: Array, purpose: str) -> Array:
        self.asked.append((purpose, tuple(like.shape)))
        return self.drawn


def linear_mask(
    backend: Backend, weights: np.ndarray, y: np.ndarray, mask: Mask, drawn: np.ndarray | None
) -> tuple[np.ndarray, list[Any], int]:
    """The mask of logits z_k = <w_nk, x>, what it asked for, and its passes, forward and backward.

    weights: (N, K, ...), one map per example.
    """
    asked: list[Any] = []
    passes: list[bool] = []

    def run(ops: Ops, w: Array, label: Array, drawn: Array) -> Array:
        def pull(cotangent: Array) -> Array:
            passes.append(False)
            each = (slice(None), slice(None), *(None,) * (len(w.shape) - 2))
            return ops.sum(cotangent[each] * w, axis=1)

        def vjp(x: Array, *, many: bool) -> tuple[Array, Callable[..., Array]]:
            passes.append(not many)
            return 0 * label, pull

        draws = Given(drawn, asked)
        x = 0.25 * ops.cast(w[:, 0] > 0, like=w)  # 0 among them
        return shared_mask(ops, x, vjp, lambda _: label, mask, draws)[0]

    label = np.eye(weights.shape[1], dtype=weights.dtype)[y]
    found = backend.call(run, weights, label, drawn)
    assert not any(passes)  # the forward pass was told that many would follow
    return found, asked, len(passes)


def placed(backend: Backend, x: np.ndarray, axis: int) -> np.ndarray:
    """With the channels, that are on this axis, where the framework has them."""
    return np.moveaxis(x, axis, -1).copy() if backend.ops.CHANNEL_AXIS == -1 else x


@st.composite
def maps(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Weights (N, K, ...) of which some pixels are of no matter, labels, and what draws more."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(DTYPES)
    pixels = shape if len(shape) == 1 else (1, *shape[1:])
    alive = rng.uniform(size=(COUNT, 1, *pixels)) < draw(st.sampled_from((0.5, 0.9, 1.0)))
    weights = rng.normal(size=(COUNT, CLASSES, *shape)) * alive
    return weights.astype(dtype), rng.integers(CLASSES, size=COUNT), rng


SETTINGS: dict[str, dict[str, Any]] = {
    "min": {},
    "mean": {"score": "mean", "floor": 0.0},
    "neutral": {"score": "neutral"},
    "rms": {"score": "rms", "probes": 3},
    "three classes": {"classes": 3},
    "two classes": {"classes": 2, "score": "mean"},
    "all classes": {"classes": CLASSES},
    "random": {"score": "random"},
}


@pytest.mark.parametrize("name", SETTINGS)
@given(drawn=maps(), keep=st.sampled_from((0.1, 0.5, 0.8)))
def test_mask_of_linear_maps_equals_the_oracle(
    backend: Backend,
    name: str,
    drawn: tuple[np.ndarray, np.ndarray, np.random.Generator],
    keep: float,
) -> None:
    weights, y, rng = drawn
    config = Mask(keep=keep, **SETTINGS[name])
    channels = weights.shape[2] if weights.ndim > 3 else 1
    pixels = weights[0, 0].size // channels
    centred = np.stack([reference.centred(rows(w)) for w in weights])
    compared, asked, extra = centred, [], None
    passes = 1 + (CLASSES - 1)  # forward, and backward
    if name == "rms":
        extra = rng.choice([-1.0, 1.0], size=(config.probes, COUNT, CLASSES))
        extra[0, :, 0] = -extra[0, :, 1]  # alike in all classes, they would weigh rounding only
        compared = np.einsum("pnk,nkd->npd", extra, centred)
        passes, asked = 1 + config.probes, [("signs", (COUNT, CLASSES), config.probes)]
    elif config.classes in (2, 3):
        offsets = rng.permutation(np.arange(1, CLASSES))[: config.classes - 1].tolist()
        cohorts = [reference.class_cohort(int(label), CLASSES, offsets) for label in y]
        extra = np.eye(CLASSES)[np.array(cohorts).T]
        compared = np.stack([c[cohort] for c, cohort in zip(centred, cohorts, strict=True)])
        passes, asked = 1 + config.classes, [("classes", (COUNT, CLASSES), config.classes)]
    elif name == "random":
        shape = weights[:, 0].shape if channels == 1 else (COUNT, 1, *weights.shape[3:])
        extra = rng.uniform(size=shape)
    images = weights.ndim > 3
    native = placed(backend, weights, 2) if images else weights
    if extra is not None:
        extra = extra.astype(weights.dtype)
        extra = placed(backend, extra, 1) if name == "random" and images else extra
    if name == "random":
        passes, asked = 0, [("mask", extra.shape)]
    mask, was_asked, was_passes = linear_mask(backend, native, y, config, extra)
    assert (was_asked, was_passes, mask.dtype) == (asked, passes, weights.dtype)
    assert rows(mask).shape == (COUNT, pixels)
    if name == "random":
        exact = [reference.keep_best(row, keep, config.floor) for row in rows(extra)]
        np.testing.assert_array_equal(rows(mask), exact)
        return
    exact = [
        reference.shared_mask(table, channels, config.score, keep, config.floor)
        for table in compared
    ]
    # As Case has them: (R, N, ...) with the channels second.
    table = np.moveaxis(compared, 1, 0).reshape(-1, *weights[:, 0].shape).astype(weights.dtype)
    sure = clear(Case(table, keep, config.floor), config.score)
    np.testing.assert_array_equal(rows(mask)[sure], np.array(exact)[sure])


def test_a_random_mask_asks_nothing_of_the_network_and_keeps_unused_pixels_too(
    backend: Backend,
) -> None:
    weights = np.zeros((1, 2, 4))
    noise = np.array([[0.2, 0.9, 0.0, 0.7]])
    for keep, expected in ((0.5, [0.25, 1, 0.25, 1]), (0.9, [1, 1, 1, 1])):
        config = Mask(score="random", keep=keep, floor=0.25)
        mask, _, passes = linear_mask(backend, weights, np.array([0]), config, noise)
        np.testing.assert_array_equal(mask, [expected])
        assert passes == 0


def test_probes_of_one_sign_are_of_no_class_and_leave_all_ones(backend: Backend) -> None:
    weights = np.random.default_rng(0).normal(size=(2, 3, 8))
    signs = np.array([[[1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]])
    config = Mask(score="rms", probes=1)
    mask, _, _ = linear_mask(backend, weights, np.array([0, 1]), config, signs)
    np.testing.assert_array_equal(mask[0], 1)
    assert (mask[1] == 1).sum() == 4


@pytest.mark.parametrize("score", ["min", "random"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_channels_are_on_the_axis_that_is_named(backend: Backend, axis: int, score: str) -> None:
    rng = np.random.default_rng(axis)
    weights, noise = rng.normal(size=(COUNT, CLASSES, 2, 3, 4)), rng.uniform(size=(COUNT, 1, 3, 4))
    y, config = rng.integers(CLASSES, size=COUNT), Mask(score=score)
    own, _, _ = linear_mask(
        backend, placed(backend, weights, 2), y, config, placed(backend, noise, 1)
    )
    expected = np.moveaxis(own, -1, 1) if backend.ops.CHANNEL_AXIS == -1 else own
    assert expected.shape == (COUNT, 1, 3, 4)
    moved, drawn = np.moveaxis(weights, 2, axis + 1).copy(), np.moveaxis(noise, 1, axis).copy()
    mask, _, _ = linear_mask(backend, moved, y, Mask(score=score, channel_axis=axis), drawn)
    np.testing.assert_array_equal(mask, np.moveaxis(expected, 1, axis))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_engines_find_the_channels_on_the_axis_that_is_named(engine: Any, axis: int) -> None:
    rng, name = np.random.default_rng(0), next(n for n, e in ENGINES.items() if e is engine)
    x, w = (rng.uniform(size=(n, 2, 3, 4)).astype(np.float32) for n in (COUNT, CLASSES))
    y, backend = rng.integers(CLASSES, size=COUNT), BACKENDS[name]()
    call = CALLS[name]

    def mask(axis: int, settings: Mask) -> np.ndarray:
        images, weights = (backend.array(np.moveaxis(v, 1, axis).copy()) for v in (x, w))

        def logits(z: Array) -> Array:
            terms = weights * z[:, None]
            return backend.ops.sum(terms - terms * terms, axis=(2, 3, 4))

        config = SPATConfig(eps=0.1, mask=settings)
        return backend.numpy(call(engine.network(logits), images, backend.array(y), config))

    expected = np.moveaxis(mask(3, Mask(channel_axis=3)), 3, axis)
    assert 0.5 < expected.mean() < 1
    np.testing.assert_array_equal(mask(axis, Mask(channel_axis=axis)), expected)
    off = mask(axis, Mask(keep=1, channel_axis=axis))
    np.testing.assert_array_equal(off, np.ones_like(expected))
    assert off.shape == expected.shape
    if axis == backend.ops.CHANNEL_AXIS % 4:
        np.testing.assert_array_equal(mask(axis, Mask()), expected)


def test_masks_that_keep_all_pixels_ask_no_network(engine: Any) -> None:
    name = next(n for n, e in ENGINES.items() if e is engine)
    backend, y = BACKENDS[name](), np.zeros(COUNT, int)
    own = (COUNT, 1, 3, 4) if backend.ops.CHANNEL_AXIS == 1 else (COUNT, 2, 3, 1)
    for shape, settings, expected in (
        ((COUNT, 6), None, (COUNT, 6)),
        ((COUNT, 2, 3, 4), None, own),
        ((COUNT, 2, 3, 4), Mask(keep=1), own),
        ((COUNT, 2, 3, 4), Mask(score="rms", floor=1, channel_axis=2), (COUNT, 2, 1, 4)),
    ):
        config = SPATConfig(eps=0.1, mask=settings)
        x = np.random.default_rng(0).uniform(size=shape).astype(np.float32)
        mask = CALLS[name](engine.network(None), backend.array(x), backend.array(y), config)
        assert mask.dtype == backend.array(x).dtype
        np.testing.assert_array_equal(backend.numpy(mask), np.ones(expected))


def test_an_axis_that_the_inputs_lack_is_refused_and_flat_ones_have_no_channels(
    backend: Backend,
) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(CLASSES, size=COUNT)
    images = rng.normal(size=(COUNT, CLASSES, 2, 3, 4))
    for axis in (4, 7):
        with pytest.raises(
            ConfigError, match=f"channel_axis must be one of x, below 4, got {axis}"
        ):
            linear_mask(backend, images, y, Mask(channel_axis=axis), np.zeros(1))
    flat = rng.normal(size=(COUNT, CLASSES, 6))
    named, _, _ = linear_mask(backend, flat, y, Mask(channel_axis=1), np.zeros(1))
    plain, _, _ = linear_mask(backend, flat, y, Mask(), np.zeros(1))
    np.testing.assert_array_equal(named, plain)
    assert set(np.unique(named)) == {0.5, 1}
