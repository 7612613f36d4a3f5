"""The whole attack and the whole evaluation, in both engines, on drawn problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from spatlib import SPATConfig
from spatlib.core import numpy_ops
from spatlib.core import target as losses

from .entry import CHANNELS, CLASSES, initial_weights
from .record import agree, at_most, saw, saw_dtypes
from .strategies import examples

pytestmark = pytest.mark.verifies
ORDERS = {"Linf": np.inf, "L2": 2, "L1": 1}
COUNT = 3
EACH = 2  # times the deep profile's examples: 2,000 on two engines, two minutes of TensorFlow's


@dataclass(frozen=True)
class Attack:
    """A network, a batch x (N, C, H, W) and y (N,), a start, a mask (N, 1, H, W), settings."""

    weights: list[np.ndarray]
    x: np.ndarray
    y: np.ndarray
    start: np.ndarray
    mask: np.ndarray
    config: SPATConfig

    def oracle(self, n: int) -> np.ndarray:
        names = ("loss", "eps", "steps", "norm", "bounds", "smoothing", "guard")
        x_adv, _ = reference.attack(
            reference.TanhMLP(*self.weights),
            self.x[n].ravel(),
            int(self.y[n]),
            mask=self.mask[n].ravel(),
            channels=CHANNELS,
            start=self.start[n].ravel(),
            step_size=self.config.alpha,
            **{name: getattr(self.config, name) for name in names},
        )
        return x_adv.reshape(self.x.shape[1:])


@st.composite
def attacks(draw: st.DrawFn, norms: tuple[str, ...] = tuple(ORDERS), **fixed: Any) -> Attack:
    """One to three images of one or four pixels, often on a bound, and masks of down to a pixel.

    Radii go from next to nothing to the range.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, side = draw(st.sampled_from(((COUNT, 2), (COUNT, 2), (1, 2), (COUNT, 1), (1, 1))))
    shape, pixels = (count, CHANNELS, side, side), side * side
    # One pixel comes back to x' = x now and then, where the gradient of trades is rounding noise.
    known = ("pgd", "trades", "mart") if pixels > 1 else ("pgd", "mart")
    norm = draw(st.sampled_from(norms))
    eps = draw(st.sampled_from((1e-6, 8 / 255, 0.3, 1.0) if norm == "Linf" else (1e-6, 0.5, 20.0)))
    settings = {
        "norm": norm,
        "eps": eps,
        "loss": draw(st.sampled_from(known)),
        "steps": draw(st.integers(1, 4)),
        "step_size": eps * draw(st.sampled_from((0.1, 1.0, 9.0))),
        "smoothing": draw(st.sampled_from((0.0, 0.1, 0.9))),
        "guard": draw(st.booleans()),
    } | fixed
    x = np.clip(rng.uniform(-0.5, 1.5, size=shape), 0, 1)
    mask = rng.choice((0.0, 0.25, 1.0), size=(count, 1, side, side))
    if draw(st.booleans()):
        mask = np.eye(pixels)[rng.integers(pixels, size=count)].reshape(mask.shape)
    start = 2 * eps * rng.normal(size=shape)
    if settings["loss"] == "trades":  # inwards: at x' = x its gradient is rounding noise
        start = np.where(x < 0.5, np.abs(start), -np.abs(start))
    weights = initial_weights(int(rng.integers(1000)), CHANNELS * pixels)
    return Attack(
        weights, x, rng.integers(CLASSES, size=count), start, mask, SPATConfig(**settings)
    )


@examples(deep=EACH)
@given(a=attacks())
def test_attack_equals_the_oracle(engine: Any, a: Attack) -> None:
    moved = engine(a.weights).perturb(a.x, a.y, a.start, a.config, a.mask)
    assert (moved.dtype, moved.shape) == (a.x.dtype, a.x.shape)
    agree(moved, [a.oracle(n) for n in range(len(a.x))], atol=1e-10)


def contained(moved: np.ndarray, x: np.ndarray, config: SPATConfig) -> None:
    """x' and x' - x are rounded to an ulp of x' <= 1 in every coordinate, d to a few of eps."""
    d = (moved.astype(np.float64) - x).reshape(len(x), -1)
    room = (8 * config.eps + d.shape[1]) * float(np.finfo(moved.dtype).eps)
    length = np.linalg.norm(d, ORDERS[config.norm], axis=1)
    at_most(length, config.eps, room, like=moved, scale=1)


@examples(deep=EACH)
@given(a=attacks())
def test_attack_is_contained_and_leaves_pixels_of_mask_0_as_they_are(
    engine: Any, a: Attack
) -> None:
    moved = engine(a.weights).perturb(a.x, a.y, a.start, a.config, a.mask)
    contained(moved, a.x, a.config)
    ulp = np.finfo(moved.dtype).eps  # x' and x' - x are rounded to an ulp of x' <= 1
    at_most(np.abs(moved - a.x), a.mask * a.config.eps, ulp, scale=1)
    assert np.all((moved >= 0) & (moved <= 1))
    off = np.broadcast_to(a.mask == 0, moved.shape)
    np.testing.assert_array_equal(moved[off], a.x[off])


@examples(deep=EACH)
@given(a=attacks(norms=("Linf",), smoothing=0.0))
def test_attack_without_smoothing_and_mask_is_the_base_methods_own(engine: Any, a: Attack) -> None:
    """Madry's loop (pgd, mart) and TRADES', written out with the gradients of their own losses."""
    moved = engine(a.weights).perturb(a.x, a.y, a.start, a.config, np.ones_like(a.mask))
    model, eps = reference.TanhMLP(*a.weights), a.config.eps
    for n in range(len(a.x)):
        x, label = a.x[n].ravel(), np.eye(CLASSES)[a.y[n]]
        clean = reference.softmax(model.logits(x))
        point = np.clip(x + np.clip(a.start[n].ravel(), -eps, eps), 0, 1)
        for _ in range(a.config.steps):
            goal = clean if a.config.loss == "trades" else label
            slope = reference.softmax(model.logits(point)) - goal
            point = point + a.config.alpha * np.sign(slope @ model.input_gradients(point))
            point = np.clip(np.clip(point, x - eps, x + eps), 0, 1)
        agree(moved[n].ravel(), point, atol=1e-12)


@examples(deep=EACH)
@given(a=attacks(smoothing=0.0), precision=st.sampled_from(("bfloat16", "float16")))
def test_networks_of_low_precision_leave_the_perturbation_its_own(
    engine: Any, a: Attack, precision: str
) -> None:
    x, start, mask = (v.astype(np.float32) for v in (a.x, a.start, a.mask))
    moved = engine(a.weights, precision=precision).perturb(x, a.y, start, a.config, mask)
    assert (moved.dtype, moved.shape) == (np.dtype("float32"), x.shape)
    contained(moved, x, a.config)
    saw(precision)
    assert np.all((moved >= 0) & (moved <= 1))
    off = np.broadcast_to(mask == 0, moved.shape)
    np.testing.assert_array_equal(moved[off], x[off])


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.3), ("L2", 0.5), ("L1", 1.0)])
def test_networks_of_low_precision_are_attacked_much_as_in_float32(
    engine: Any, norm: str, eps: float
) -> None:
    """To two ulp of a bfloat16, where no gradient is so small that its sign hangs on a digit."""
    rng = np.random.default_rng(1)
    x, start = rng.uniform(0.3, 0.7, size=(2, 8, CHANNELS, 2, 2)).astype(np.float32)
    weights, y = [0.3 * w for w in initial_weights()], rng.integers(CLASSES, size=len(x))
    config = SPATConfig(norm=norm, eps=eps, steps=3)
    mask = np.ones((len(x), 1, 2, 2), np.float32)

    def found(precision: str) -> np.ndarray:
        saw(precision)
        moved = engine(weights, precision=precision).perturb(x, y, 0 * start, config, mask)
        return (moved - x).reshape(len(x), -1)

    exact = found("float32")
    size = np.linalg.norm(exact, axis=1)
    assert np.all(size > eps / 4)
    for precision in ("bfloat16", "float16"):
        apart = np.linalg.norm(found(precision) - exact, axis=1) / size
        at_most(apart, 0, 2**-6, like=np.float16(0), scale=1)


WAYS: list[dict[str, Any]] = [{"smoothing": 0.0}, {"smoothing": 0.1}, {"loss": "trades"}]


@pytest.mark.parametrize("settings", WAYS, ids=str)
@pytest.mark.parametrize("norm", ORDERS)
def test_nothing_of_a_confident_network_is_lost(
    engine: Any, norm: str, settings: dict[str, Any]
) -> None:
    """Logits 100 times as large move the same examples: all but one, whose mask is 0.

    There p_y rounds to 1 even in float64, and p - q in plain numbers to 0.
    """
    rng, eps = np.random.default_rng(2), {"Linf": 0.1, "L2": 0.5, "L1": 1.0}[norm]
    x = rng.uniform(0.3, 0.7, size=(8, CHANNELS, 2, 2))
    start = eps / 40 * rng.uniform(-1, 1, size=x.shape)
    config = SPATConfig(norm=norm, eps=eps, steps=1, step_size=eps / 4, **settings)
    mask = np.ones((len(x), 1, 2, 2))
    mask[0] = 0
    w1, b1, w2, b2 = initial_weights()
    for scale in (1, 3, 10, 100):
        weights = [w1, b1, scale * w2, scale * b2]
        model, found = reference.TanhMLP(*weights), {}
        z = np.stack([model.logits(row.ravel()) for row in x])
        y = z.argmax(axis=1)
        for precision in ("float32", "float64"):
            saw(precision)
            images, begin, budget = (v.astype(precision) for v in (x, start, mask))
            subject = engine(weights, precision=precision)
            moved = subject.perturb(images, y, begin, config, budget)
            far = np.abs(moved - np.where(budget > 0, images + begin, images))
            np.testing.assert_array_equal(far.max(axis=(1, 2, 3)) > eps / 50, np.arange(8) > 0)
            found[precision] = moved
        agree(found["float32"], found["float64"], atol=1e-3 * eps)
    others = np.where(np.eye(CLASSES)[y] > 0, -np.inf, z)
    assert np.median(z.max(axis=1) - others.max(axis=1)) > 40  # e^-37 is 1e-16


FUNCTIONS = {
    f"outer loss of {name}": (
        lambda ops, label, clean, moved, name=name: ops.sum(
            losses.outer_loss(ops, name, 6.0, label, clean, moved), axis=0
        )
    )
    for name in ("pgd", "trades", "mart")
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from((0.1, 1.0, 5.0)))
def test_gradients_equal_finite_differences(
    engine: Any, name: str, seed: int, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    label = np.eye(CLASSES)[rng.integers(CLASSES, size=COUNT)]
    logits = scale * rng.normal(size=(2, COUNT, CLASSES))
    step = 1e-5
    logits[1] += 10 * step * rng.permuted(np.tile(np.arange(CLASSES), (COUNT, 1)), axis=1)
    exact, largest = np.zeros_like(logits), 0.0
    for place in np.ndindex(*logits.shape):
        values = []
        for sign in (1, -1):
            shifted = logits.copy()
            shifted[place] += sign * step
            values.append(FUNCTIONS[name](numpy_ops, label, *shifted))
        exact[place] = (values[0] - values[1]) / (2 * step)
        largest = max(largest, *map(abs, values))
    gradients = engine.gradients(FUNCTIONS[name], label, *logits)
    # step^2 of the third derivative, and an ulp of the values over the step
    agree(gradients, exact, rtol=1e-6, atol=1e-6, scale=largest / (2 * step))


@examples(quick=0.2, deep=1)  # each evaluates four or six attacks: in TensorFlow, 0.5 s
@given(a=attacks(), restarts=st.integers(1, 2))
def test_robust_accuracy_is_at_most_clean_accuracy_and_falls_with_restarts(
    engine: Any, a: Attack, restarts: int
) -> None:
    subject = engine(a.weights)
    few = subject.evaluate(a.x, a.y, a.config, restarts=restarts)
    more = subject.evaluate(a.x, a.y, a.config, restarts=restarts + 1)
    model = reference.TanhMLP(*a.weights)
    correct = [reference.robust(model, x.ravel(), y, ()) for x, y in zip(a.x, a.y, strict=True)]
    saw_dtypes((a.x,))
    assert few["clean"] == more["clean"] == np.mean(correct)
    for name in ("pgd2", "margin2"):
        assert more[name] <= few[name] <= few["clean"]
