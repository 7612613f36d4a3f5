"""The whole attack and the whole evaluation, in both engines, on drawn problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from spatlib import SPATConfig
from spatlib.core import losses, numpy_ops, target

from .engines import CHANNELS, CLASSES, HEIGHT, SIZE, WIDTH, initial_weights
from .record import agree

pytestmark = pytest.mark.verifies
ORDERS = {"Linf": np.inf, "L2": 2, "L1": 1}
COUNT = 3
SHAPE = (COUNT, CHANNELS, HEIGHT, WIDTH)


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
        names = ("base", "eps", "step_size", "steps", "norm", "bounds", "smoothing", "guard")
        x_adv, _ = reference.attack(
            reference.TanhMLP(*self.weights), self.x[n].ravel(), int(self.y[n]),
            mask=self.mask[n].ravel(), channels=CHANNELS, start=self.start[n].ravel(),
            **{name: getattr(self.config, name) for name in names},
        )  # fmt: skip
        return x_adv.reshape(SHAPE[1:])


@st.composite
def attacks(draw: st.DrawFn, norms: tuple[str, ...] = tuple(ORDERS), **fixed: Any) -> Attack:
    """x often on a bound, masks down to a single pixel, radii from next to nothing to the range."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    norm = draw(st.sampled_from(norms))
    eps = draw(st.sampled_from((1e-6, 8 / 255, 0.3, 1.0) if norm == "Linf" else (1e-6, 0.5, 20.0)))
    settings = {
        "norm": norm, "eps": eps, "base": draw(st.sampled_from(("pgd", "trades", "mart"))),
        "steps": draw(st.integers(1, 4)), "step_size": eps * draw(st.sampled_from((0.1, 1.0, 9.0))),
        "smoothing": draw(st.sampled_from((0.0, 0.1, 0.9))), "guard": draw(st.booleans()),
    } | fixed  # fmt: skip
    x = np.clip(rng.uniform(-0.5, 1.5, size=SHAPE), 0, 1)
    mask = rng.choice((0.0, 0.25, 1.0), size=(COUNT, 1, HEIGHT, WIDTH))
    if draw(st.booleans()):
        mask = np.eye(HEIGHT * WIDTH)[rng.integers(HEIGHT * WIDTH, size=COUNT)].reshape(mask.shape)
    start = 2 * eps * rng.normal(size=SHAPE)
    if settings["base"] == "trades":  # inwards: at x' = x its gradient is rounding noise
        start = np.where(x < 0.5, np.abs(start), -np.abs(start))
    weights = initial_weights(int(rng.integers(1000)))
    return Attack(weights, x, rng.integers(CLASSES, size=COUNT), start, mask,
                  SPATConfig(**settings))  # fmt: skip


@given(a=attacks())
def test_attack_equals_the_oracle(engine: Any, a: Attack) -> None:
    moved = engine(a.weights).perturb(a.x, a.y, a.start, a.config, a.mask)
    assert (moved.dtype, moved.shape) == (a.x.dtype, a.x.shape)
    agree(moved, [a.oracle(n) for n in range(COUNT)], atol=1e-10)


@given(a=attacks())
def test_attack_is_contained_and_leaves_pixels_of_mask_0_as_they_are(
    engine: Any, a: Attack
) -> None:
    moved = engine(a.weights).perturb(a.x, a.y, a.start, a.config, a.mask)
    d = (moved - a.x).reshape(COUNT, SIZE)
    ulp = np.finfo(moved.dtype).eps  # x' and x' - x are rounded to an ulp of x' <= 1
    room = 8 * ulp * a.config.eps + SIZE * ulp
    assert np.all(np.linalg.norm(d, ORDERS[a.config.norm], axis=1) <= a.config.eps + room)
    assert np.all(np.abs(moved - a.x) <= a.mask * a.config.eps + ulp)
    assert np.all((moved >= 0) & (moved <= 1))
    off = np.broadcast_to(a.mask == 0, moved.shape)
    np.testing.assert_array_equal(moved[off], a.x[off])


@given(a=attacks(norms=("Linf",), smoothing=0.0))
def test_attack_without_smoothing_and_mask_is_the_base_methods_own(engine: Any, a: Attack) -> None:
    """Madry's loop (pgd, mart) and TRADES', written out with the gradients of their own losses."""
    moved = engine(a.weights).perturb(a.x, a.y, a.start, a.config, np.ones_like(a.mask))
    model, eps = reference.TanhMLP(*a.weights), a.config.eps
    for n in range(COUNT):
        x, label = a.x[n].ravel(), np.eye(CLASSES)[a.y[n]]
        clean = reference.softmax(model.logits(x))
        point = np.clip(x + np.clip(a.start[n].ravel(), -eps, eps), 0, 1)
        for _ in range(a.config.steps):
            goal = clean if a.config.base == "trades" else label
            slope = reference.softmax(model.logits(point)) - goal
            point = point + a.config.step_size * np.sign(slope @ model.input_gradients(point))
            point = np.clip(np.clip(point, x - eps, x + eps), 0, 1)
        agree(moved[n].ravel(), point, atol=1e-12)


@given(a=attacks(smoothing=0.0), precision=st.sampled_from(("bfloat16", "float16")))
def test_networks_of_low_precision_leave_the_perturbation_its_own(
    engine: Any, a: Attack, precision: str
) -> None:
    x, start, mask = (v.astype(np.float32) for v in (a.x, a.start, a.mask))
    moved = engine(a.weights, precision=precision).perturb(x, a.y, start, a.config, mask)
    assert (moved.dtype, moved.shape) == (np.dtype("float32"), x.shape)
    d = (moved.astype(np.float64) - x).reshape(COUNT, SIZE)
    room = (8 * a.config.eps + SIZE) * np.finfo(np.float32).eps
    assert np.all(np.linalg.norm(d, ORDERS[a.config.norm], axis=1) <= a.config.eps + room)
    assert np.all((moved >= 0) & (moved <= 1))
    off = np.broadcast_to(mask == 0, moved.shape)
    np.testing.assert_array_equal(moved[off], x[off])


FUNCTIONS = {
    **{f"outer loss of {base}": (
        lambda ops, label, clean, moved, base=base:
        ops.sum(losses.outer_loss(ops, base, 6.0, label, clean, moved), axis=0)
    ) for base in ("pgd", "trades", "mart")},
    "objective": lambda ops, label, clean, moved: target.objective(
        ops, ops.log_softmax(moved), 0.7 * label + 0.3 / CLASSES),
    "margin": lambda ops, label, clean, moved: ops.sum(
        target.margin(ops, moved, label), axis=0),
    "targeted": lambda ops, label, clean, moved: ops.sum(target.targeted(
        ops, moved, label, ops.argmax_one_hot(clean)), axis=0),
}  # fmt: skip


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
    exact = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        values = []
        for sign in (1, -1):
            shifted = logits.copy()
            shifted[place] += sign * step
            values.append(FUNCTIONS[name](numpy_ops, label, *shifted))
        exact[place] = (values[0] - values[1]) / (2 * step)
    gradients = engine.gradients(FUNCTIONS[name], label, *logits)
    agree(gradients, exact, rtol=1e-6, atol=1e-6)  # step^2 of the third derivative, 1e-16 / step


@settings(max_examples=settings.default.max_examples // 10)  # each evaluates four attacks
@given(a=attacks(), restarts=st.integers(1, 2))
def test_robust_accuracy_is_at_most_clean_accuracy_and_falls_with_restarts(
    engine: Any, a: Attack, restarts: int
) -> None:
    subject = engine(a.weights)
    few = subject.evaluate(a.x, a.y, a.config, restarts=restarts)
    more = subject.evaluate(a.x, a.y, a.config, restarts=restarts + 1)
    model = reference.TanhMLP(*a.weights)
    correct = [reference.robust(model, a.x[n].ravel(), a.y[n], ()) for n in range(COUNT)]
    assert few["clean"] == more["clean"] == np.mean(correct)
    for name in ("pgd2", "margin2"):
        assert more[name] <= few[name] <= few["clean"]
