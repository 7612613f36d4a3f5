"""What the engines draw: classes to compare, probes, and TensorFlow's starts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib_tf
import spatlib_torch
from spatlib import Mask, SPATConfig
from spatlib.core.feasible import random_start
from spatlib_tf import attack as tf_attack
from spatlib_tf import ops as tf_ops
from spatlib_torch import ops
from spatlib_torch.attack import Draws

from . import test_tf_model, test_torch_state
from .entry import CLASSES, HEIGHT, WIDTH


def distance_from_uniform(values: np.ndarray) -> float:
    """Kolmogorov's statistic for values in [0, 1]; above 2.5 / sqrt(n) in one case of 10^5."""
    ordered = np.sort(values.ravel())
    return float(np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max())


def test_offsets_are_other_classes_without_replacement_and_all_orders_occur(engine: Any) -> None:
    config, seen = SPATConfig(eps=0.1, mask=Mask(classes=3)), set()
    for seed in range(60):
        offsets, _, _ = engine.draws(config, 5, seed)
        seen.add(tuple(int(offset) for offset in offsets))
    others = range(1, CLASSES)
    assert seen == {(a, b) for a in others for b in others if a != b}


def test_probes_are_signs_of_both_kinds_at_every_place(engine: Any) -> None:
    config = SPATConfig(eps=0.1, mask=Mask(score="rms", probes=3))
    probes = np.stack([engine.draws(config, 5, seed)[1] for seed in range(60)])
    assert probes.shape == (60, 3, 5, CLASSES)
    assert set(np.unique(probes)) == {-1, 1}
    assert np.abs(probes.mean(axis=0)).max() < 0.7  # at each place by itself
    assert abs(probes.mean()) < 0.08


def test_noise_of_a_random_mask_fills_the_interval(engine: Any) -> None:
    config = SPATConfig(eps=0.1, mask=Mask(score="random"))
    noise = np.stack([engine.draws(config, 50, seed)[2] for seed in range(20)])
    assert noise.shape == (20, 50, HEIGHT * WIDTH)
    assert distance_from_uniform(noise) < 0.04
    assert np.abs(np.corrcoef(noise.reshape(-1, HEIGHT * WIDTH).T) - np.eye(4)).max() < 0.12


STILL = (None, Mask(), Mask(score="rms", keep=1), Mask(score="random", floor=1))
MOVING = (Mask(score="rms"), Mask(classes=2), Mask(score="random"))


@pytest.mark.parametrize("mask", [*STILL, *MOVING], ids=str)
def test_torchs_generator_moves_on_where_something_is_drawn_and_only_there(
    mask: Mask | None,
) -> None:
    batch, generator = test_torch_state.batch(), torch.Generator().manual_seed(0)
    config = SPATConfig(eps=0.1, random_start="none", steps=1, mask=mask)
    for call in (spatlib_torch.perturb, spatlib_torch.shared_mask):
        before = generator.get_state()
        call(test_torch_state.network(), *batch, config, generator=generator)
        assert torch.equal(generator.get_state(), before) == (mask in STILL)


@pytest.mark.parametrize("mask", MOVING, ids=str)
def test_torch_draws_the_start_first_and_then_the_mask(mask: Mask) -> None:
    (x, y), model = test_torch_state.batch(), test_torch_state.network()
    config = SPATConfig(eps=0.1, steps=2, mask=mask)
    source = torch.Generator().manual_seed(0)
    start = random_start(ops, x, config, Draws(source))
    budget = spatlib_torch.shared_mask(model, x, y, config, generator=source)
    expected = spatlib_torch.perturb(model, x, y, config, start=start, mask=budget)
    source.manual_seed(0)
    assert torch.equal(spatlib_torch.perturb(model, x, y, config, generator=source), expected)
    source.manual_seed(0)  # with a start it is the mask's alone
    budget = spatlib_torch.shared_mask(model, x, y, config, generator=source)
    expected = spatlib_torch.perturb(model, x, y, config, start=start, mask=budget)
    source.manual_seed(0)
    ours = spatlib_torch.perturb(model, x, y, config, start=start, generator=source)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("mask", MOVING, ids=str)
def test_torchs_random_masks_without_a_generator_are_drawn_alike_beside_a_start(
    mask: Mask,
) -> None:
    (x, y), model = test_torch_state.batch(), test_torch_state.network()
    config, before = SPATConfig(eps=0.1, steps=2, mask=mask), torch.get_rng_state()
    first = spatlib_torch.perturb(model, x, y, config, start=0 * x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(spatlib_torch.perturb(model, x, y, config, start=0 * x), first)
    sources = [torch.Generator().manual_seed(seed) for seed in range(5)]
    others = [spatlib_torch.perturb(model, x, y, config, start=0 * x, generator=g) for g in sources]
    assert any((other != first).any() for other in others)


def test_tensorflows_own_generator_gives_the_starts_unless_one_is_given() -> None:
    (x, y), model = test_tf_model.arrays(), test_tf_model.network()
    config = SPATConfig(eps=0.1, steps=1, mask=Mask())

    def next_number(*starts: np.ndarray) -> float:
        tf.random.set_seed(0)
        for start in starts:
            spatlib_tf.perturb(model, x, y, config, start=start)
        return float(tf.random.uniform(()))

    assert next_number(0 * x, 0 * x) == next_number()
    first, second = (spatlib_tf.perturb(model, x, y, config).numpy() for _ in range(2))
    assert (first != second).any()
    for mask in MOVING:  # drawn as well, and always alike
        random = dataclasses.replace(config, mask=mask)
        ours, again = (spatlib_tf.perturb(model, x, y, random, start=0 * x) for _ in range(2))
        np.testing.assert_array_equal(ours, again)


def test_keras_generator_stays_where_a_graph_finds_no_more_data() -> None:
    source, data = keras.random.SeedGenerator(0), iter(tf.data.Dataset.range(3))

    @tf.function
    def seed() -> Any:
        return tf_attack.next_seed(source, next(data))

    seeds = {tuple(seed().numpy()) for _ in range(3)}
    assert len(seeds) == 3
    before = source.state.numpy()
    for _ in range(9):
        with pytest.raises(tf.errors.OutOfRangeError):
            seed()
    np.testing.assert_array_equal(source.state.numpy(), before)


def starts(**settings: Any) -> np.ndarray:
    """(4000, 6) of radius 2, by TensorFlow."""
    seed = tf_attack.next_seed(keras.random.SeedGenerator(0))
    x = tf.zeros((4000, 6), tf.float64)
    config = SPATConfig(eps=2.0, bounds=(-10, 10), **settings)
    return random_start(tf_ops, x, config, tf_attack.Draws(seed)).numpy()


@pytest.mark.parametrize(("norm", "order"), [("L2", 2), ("L1", 1)])
def test_tensorflows_starts_fill_the_ball(norm: str, order: int) -> None:
    d = starts(norm=norm)
    radius = np.linalg.norm(d, order, axis=1) / 2
    assert radius.max() <= 1 + 1e-12
    assert distance_from_uniform(radius ** d.shape[1]) < 0.04
    assert np.abs(np.sign(d).mean(axis=0)).max() < 0.08
    assert np.abs(np.corrcoef(d.T) - np.eye(d.shape[1])).max() < 0.08


def test_tensorflows_linf_and_gaussian_starts_have_their_distributions() -> None:
    for column in starts().T:
        assert distance_from_uniform(column / 4 + 0.5) < 0.04
    assert starts(random_start="gaussian").std() == pytest.approx(0.001, rel=0.05)
    draws = tf_attack.Draws(tf_attack.next_seed(keras.random.SeedGenerator(0)))
    z = draws.normal(tf.zeros((100_000, 3), tf.float64), "start")
    assert distance_from_uniform((1 + tf.math.erf(z / math.sqrt(2)).numpy()) / 2) < 0.003
    assert np.abs(np.corrcoef(z.numpy().T) - np.eye(3)).max() < 0.02
