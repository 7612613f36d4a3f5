"""What the engines draw: classes to compare, probes, and TensorFlow's starts."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib_tf
import spatlib_torch
from spatlib import SPATConfig
from spatlib_tf import random as tf_random

from . import test_tf_model, test_torch_state
from .entry import CLASSES
from .test_torch_contexts import distance_from_uniform


def test_offsets_are_other_classes_without_replacement_and_all_orders_occur(engine: Any) -> None:
    config, seen = SPATConfig(mask_classes=3), set()
    for seed in range(60):
        offsets, _ = engine.draws(config, 5, seed)
        seen.add(tuple(int(offset) for offset in offsets))
    others = range(1, CLASSES)
    assert seen == {(a, b) for a in others for b in others if a != b}


def test_probes_are_signs_of_both_kinds_at_every_place(engine: Any) -> None:
    config = SPATConfig(share="rms", probes=3)
    probes = np.stack([engine.draws(config, 5, seed)[1] for seed in range(60)])
    assert probes.shape == (60, 3, 5, CLASSES)
    assert set(np.unique(probes)) == {-1, 1}
    assert np.abs(probes.mean(axis=0)).max() < 0.7  # at each place by itself
    assert abs(probes.mean()) < 0.08


@pytest.mark.parametrize("settings", [{"share": "min"}, {"keep": 1}, {"share": "rms"}], ids=str)
def test_torchs_generator_moves_on_where_something_is_drawn_and_only_there(
    settings: dict[str, Any],
) -> None:
    (x, y), generator = test_torch_state.batch(), torch.Generator().manual_seed(0)
    config = SPATConfig(random_start="none", steps=1, **settings)
    before = generator.get_state()
    spatlib_torch.perturb(test_torch_state.network(), x, y, config, generator=generator)
    assert torch.equal(generator.get_state(), before) == (settings != {"share": "rms"})


def test_tensorflows_own_generator_gives_the_starts_unless_one_is_given() -> None:
    (x, y), model = test_tf_model.arrays(), test_tf_model.network()
    config = SPATConfig(eps=0.1, steps=1, share="min")

    def next_number(*starts: np.ndarray) -> float:
        tf.random.set_seed(0)
        for start in starts:
            spatlib_tf.perturb(model, x, y, config, start=start)
        return float(tf.random.uniform(()))

    assert next_number(0 * x, 0 * x) == next_number()
    first, second = (spatlib_tf.perturb(model, x, y, config).numpy() for _ in range(2))
    assert (first != second).any()
    for mask in ({"share": "rms"}, {"mask_classes": 2}):  # drawn as well, and always alike
        random = dataclasses.replace(config, **mask)
        ours, again = (spatlib_tf.perturb(model, x, y, random, start=0 * x) for _ in range(2))
        np.testing.assert_array_equal(ours, again)


def starts(**settings: Any) -> np.ndarray:
    """(4000, 6) of radius 2, by TensorFlow."""
    seed = tf_random.next_seed(keras.random.SeedGenerator(0))
    x = tf.zeros((4000, 6), tf.float64)
    config = SPATConfig(eps=2.0, bounds=(-10, 10), **settings)
    return tf_random.draw_start(x, config, seed).numpy()


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
    d = starts(random_start="gaussian")
    assert abs(d.mean()) < 5e-5
    assert d.std() == pytest.approx(0.001, rel=0.05)
    assert (d**4).mean() == pytest.approx(3e-12, rel=0.15)
