"""Graphs: how often they are traced, how large they are, and that XLA agrees."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import spatlib_tf
from spatlib import Mask, SPATConfig
from spatlib.core import feasible
from spatlib_tf import SPATModel, ops
from spatlib_tf import attack as tf_attack

from .entry import initial_weights, to_last
from .entry_tf import TFEngine
from .test_tf_model import Subclassed, arrays, fit, spat

EPS = {"Linf": 0.1, "L2": 0.4, "L1": 1.0}


class Traced(SPATModel):
    """Counts how often Python runs its steps: once per trace, if they run in a graph."""

    traces = 0

    def train_step(self, data: Any) -> Any:
        self.traces += 1
        return super().train_step(data)


@pytest.mark.parametrize(
    ("way", "most"), [({}, 1), ({"jit_compile": True}, 2)], ids=["graph", "xla"]
)
def test_training_is_traced_once_however_long_it_is(way: dict[str, Any], most: int) -> None:
    config = SPATConfig(eps=0.1, steps=1)
    model = spat(config=config, cls=Traced, **way)
    fit(model, epochs=1)  # 20 examples in batches of 8: the last one has 4
    traces = model.traces
    assert 1 <= traces <= most
    fit(model, epochs=3)
    assert model.traces == traces


def test_a_batch_of_another_size_is_not_traced_anew() -> None:
    model = spat(config=SPATConfig(eps=0.1, steps=1), cls=Traced)
    for count in (20, 21, 3):
        fit(model, arrays(count=count), epochs=1)
    assert model.traces == 1


def test_eager_training_would_be_noticed() -> None:
    model = spat(config=SPATConfig(eps=0.1, steps=1), cls=Traced, run_eagerly=True)
    fit(model, epochs=2)
    assert model.traces == 6


class Counted(Subclassed):
    """Counts its calls; those of a graph are counted while it is traced."""

    calls = 0

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        self.calls += 1
        return super().call(inputs, training=training)


def calls_in_tracing(**settings: Any) -> int:
    model = spat(Counted(), SPATConfig(eps=0.1, **settings))
    fit(model, epochs=1)
    return model.base.calls


@pytest.mark.parametrize("loss", ["pgd", "trades"])
def test_the_graph_does_not_grow_with_the_steps(loss: str) -> None:
    few = calls_in_tracing(loss=loss, steps=3)
    assert calls_in_tracing(loss=loss, steps=40) == few
    assert 0 < few < 40


def test_the_graph_does_not_grow_with_the_classes() -> None:
    def operations(classes: int) -> int:
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(classes)])
        config = SPATConfig(eps=0.1, mask=Mask())
        function = tf.function(lambda x, y: spatlib_tf.shared_mask(model, x, y, config))
        graph = function.get_concrete_function(
            tf.TensorSpec((None, 5)), tf.TensorSpec((None,), tf.int64)
        ).graph
        return len(graph.get_operations())

    assert operations(40) == operations(3) > 0


def in_every_way(function: Callable[[], Any]) -> list[list[np.ndarray]]:
    """The results of a function eagerly, in a graph and under XLA."""
    ways = (function, tf.function(function), tf.function(function, jit_compile=True))
    return [[value.numpy() for value in way()] for way in ways]


@pytest.mark.parametrize(
    ("random_start", "dtype"),
    [
        ("uniform", "float32"),
        ("uniform", "float64"),
        ("uniform", "bfloat16"),
        ("gaussian", "float64"),
    ],
)
def test_draws_are_the_same_eagerly_in_a_graph_and_under_xla(random_start: str, dtype: str) -> None:
    x, state = tf.zeros((7, 5, 3), dtype), tf.Variable([3, 0])

    def draw() -> list[Any]:
        source = tf_attack.Draws(state + 0)  # a constant would be drawn from before compiling
        settings = (SPATConfig(eps=e, norm=n, random_start=random_start) for n, e in EPS.items())
        starts = [feasible.random_start(ops, x, config, source) for config in settings]
        label = tf.one_hot(tf.range(7), 9, dtype=dtype)
        masks = source.classes(label, 4), source.signs(label, 4), source.uniform(x, "mask")
        return [*starts, *masks]

    eager, graph, xla = in_every_way(draw)
    tolerance = {"float64": 1e-13, "float32": 1e-5}.get(dtype, 0.02)
    for results in (graph, xla):
        for ours, expected in zip(results, eager, strict=True):
            np.testing.assert_allclose(
                ours.astype(float), expected.astype(float), rtol=tolerance, atol=tolerance / 100
            )
    assert all(len(np.unique(value.astype(float))) > 1 for value in eager)
    state.assign([4, 0])
    assert all((a != b.numpy()).any() for a, b in zip(eager, draw(), strict=True))


@pytest.mark.parametrize(
    ("loss", "norm", "mask", "function"),
    [
        ("pgd", "Linf", Mask(), spatlib_tf.perturb),
        ("trades", "L2", Mask(score="rms"), spatlib_tf.spat_loss),
    ],  # test_tf_ways has MART and L1
)
def test_float64_results_are_the_same_eagerly_and_under_xla(
    loss: str, norm: str, mask: Mask | None, function: Callable[..., Any]
) -> None:
    engine, rng = TFEngine(initial_weights()), np.random.default_rng(0)
    x, y = tf.constant(to_last(rng.uniform(size=(5, 3, 2, 2)))), tf.constant([0, 1, 2, 3, 0])
    config = SPATConfig(loss=loss, norm=norm, eps=EPS[norm], steps=2, mask=mask)

    def result(**way: Any) -> np.ndarray:
        generator = keras.random.SeedGenerator(0)

        def call() -> Any:
            return function(engine.model, x, y, config, generator=generator)

        return (tf.function(call, **way)() if way else call()).numpy()

    eager = result()
    assert eager.dtype == np.float64
    assert (eager != 0).any()
    np.testing.assert_allclose(result(jit_compile=True), eager, rtol=0, atol=1e-9)


@cache
def losses(**way: bool) -> list[float]:
    return fit(spat(config=SPATConfig(eps=0.1, steps=2, mask=Mask()), **way), epochs=1)["loss"]


@pytest.mark.parametrize("way", ["run_eagerly", "jit_compile"])
def test_fit_gives_the_same_losses_in_a_graph_eagerly_and_under_xla(way: str) -> None:
    assert losses(**{way: True}) == pytest.approx(losses(), rel=1e-4)
