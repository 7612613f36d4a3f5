"""Masks, attacks, evaluations: alike eagerly, in a graph of any batch size, under XLA."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

import spatlib
import spatlib_tf
from spatlib import Mask, SPATConfig, Threat
from spatlib.core.feasible import random_start
from spatlib.core.survivors import Attacked, survivors
from spatlib.evaluate import Evaluation
from spatlib_tf import ops
from spatlib_tf.attack import Draws, next_seed, vjp
from spatlib_tf.ops import logits_of, one_hot

from .entry import to_last
from .test_tf_fit import normed, state
from .test_tf_graph import Counted
from .test_tf_model import BATCH, SHAPE, arrays
from .test_tf_twin import CLASSES, batch, twins

SIZES = (5, 3)
COMPILED = ("classes", "rms", "noise", "mart")  # under XLA too, which takes seconds for each
STEPS = 3
NAMED = {
    "Linf": ("pgd", "margin", "targeted", "apgd"),
    "L2": ("pgd", "apgd-t"),
    "L1": ("margin", "targeted"),
}
THREATS = {n: Threat(eps=e, norm=n) for n, e in {"Linf": 0.15, "L2": 0.5, "L1": 8}.items()}


@cache
def labelled() -> tuple[np.ndarray, np.ndarray]:
    """Inputs with the labels that the network gives them, but for one."""
    x = to_last(batch()[0])
    y = twins()[1](x).numpy().argmax(axis=1)
    y[2] = (y[2] + 1) % CLASSES
    return x, y


def in_every_way(make: Callable[[], Callable[..., Any]], xla: bool) -> list[list[Any]]:
    """For batches of all SIZES: what ``make()`` gives eagerly, in a graph and perhaps under XLA.

    Each graph is made once, for batches of a size that is not known. XLA, which compiles for
    each size, gets the first.
    """
    x, y = labelled()
    signature = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (x, y)]
    found = []
    for way in (None, {}, {"jit_compile": True})[: 3 if xla else 2]:
        used = function = make()
        if way is not None:
            used = tf.function(function, input_signature=signature, **way)
        sizes = SIZES[:1] if way else SIZES
        found.append([used(tf.constant(x[:size]), tf.constant(y[:size])) for size in sizes])
        assert way is None or used.experimental_get_tracing_count() == 1
    return found


SCORES = get_args(Mask.__annotations__["score"])
MASKS = {score: Mask(score=score, floor=0.25) for score in SCORES}
MASKS["classes"] = Mask(classes=3, floor=0.25)


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_score(name: str) -> None:
    config = SPATConfig(eps=0.1, mask=MASKS[name])

    def make() -> Callable[..., Any]:
        generator = keras.random.SeedGenerator(3)
        return lambda x, y: spatlib_tf.shared_mask(twins()[1], x, y, config, generator=generator)

    eager, *others = in_every_way(make, xla=name in COMPILED)
    for masks in others:
        for ours, expected in zip(masks, eager, strict=False):
            np.testing.assert_array_equal(ours, expected)
            assert set(np.unique(ours)) == {0.25, 1}
            assert 0.4 < np.mean(np.equal(ours, 1)) < 0.6


ATTACKS = {
    "noise": SPATConfig(eps=0.1, steps=2, mask=Mask(score="random", floor=0)),
    "trades": SPATConfig(eps=0.4, norm="L2", steps=1, loss="trades", mask=Mask(score="rms")),
    "mart": SPATConfig(eps=1, norm="L1", steps=1, loss="mart", mask=Mask(score="neutral")),
    "gaussian": SPATConfig(eps=0.1, steps=2, random_start="gaussian", guard=False, smoothing=0.3),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_and_losses(name: str) -> None:
    config = ATTACKS[name]

    def make() -> Callable[..., Any]:
        generator, model = keras.random.SeedGenerator(3), twins()[1]

        def both(x: Any, y: Any) -> Any:
            x_adv = spatlib_tf.perturb(model, x, y, config, generator=generator)
            return x_adv, spatlib_tf.spat_loss(model, x, y, config, x_adv=x_adv)

        return both

    eager, *others = in_every_way(make, xla=name in COMPILED)
    for results in others:
        for (ours, loss), (expected, value) in zip(results, eager, strict=False):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
            assert float(loss) == pytest.approx(float(value), rel=1e-9)
    assert all(np.abs(x_adv - labelled()[0][: len(x_adv)]).max() > 0.03 for x_adv, _ in eager)


def test_attacks_in_train_mode_leave_no_trace() -> None:
    config = SPATConfig(eps=0.1, steps=2, attack_mode="train", random_start="none", mask=Mask())
    (x, y), model = map(tf.constant, arrays()), normed()
    call = partial(spatlib_tf.perturb, model, config=config)
    signature = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (x, y)]
    before, results = state(model), []
    for way in (None, {}, {"jit_compile": True}):
        used = call if way is None else tf.function(call, input_signature=signature, **way)
        results.append(used(x, y))
        assert all(map(np.array_equal, state(model), before))
    eager, graph, xla = results
    np.testing.assert_allclose(graph, eager, rtol=0, atol=1e-5)
    for found in (eager, xla):  # XLA has another dropout
        assert 0.05 < np.abs(found - x).max() < 0.1 + 1e-6


def in_graphs(made: dict[Any, Any], way: dict[str, Any]) -> Callable[..., Any]:
    """A way to call the functions of an evaluation: each as one graph of any batch size."""

    def call(function: Any, net: Attacked, *arguments: Any) -> Any:
        given = tuple(map(tf.convert_to_tensor, arguments))
        specs = [tf.TensorSpec([None, *v.shape[1:]] if v.ndim else [], v.dtype) for v in given]
        graph = partial(tf.function, input_signature=specs, autograph=False, **way)
        key = function, net.name
        made[key] = made.get(key) or graph(partial(function, net))
        return made[key](*given)

    return call


def evaluated(
    norm: str, names: Sequence[str], steps: int, xla: bool = False
) -> dict[str, list[bool]]:
    """Who survives each attack, alike in every way."""
    model, evaluation = twins()[1], Evaluation(THREATS[norm], names, steps)
    threat, (x, y), found = evaluation.threat, labelled(), list[Any]()
    own = partial(vjp, model, False), partial(logits_of, model)
    for way in (None, {}, {"jit_compile": True})[: 3 if xla else 2]:
        source, graphs, results = keras.random.SeedGenerator(7), dict[Any, Any](), []
        how: Any = operator.call if way is None else in_graphs(graphs, way)
        for size in SIZES[:1] if way else SIZES:
            z, some = tf.constant(x[:size]), tf.constant(y[:size])
            clean = logits_of(model, z)
            start = random_start(ops, z, threat, Draws(next_seed(source)))
            batch, net = (z, some, clean, one_hot(some, clean)), Attacked(ops, *own, threat)
            results.append(survivors(net, evaluation, batch, [start], True, how, None))
        assert all(graph.experimental_get_tracing_count() == 1 for graph in graphs.values())
        assert bool(graphs) == (way is not None)
        found.append(results)
    eager, *others = found
    for results in others:
        for ours, expected in zip(results, eager, strict=False):
            assert list(ours) == ["clean", *(f"{name}{steps}" for name in names)]
            for key, verdict in expected.items():
                np.testing.assert_array_equal(ours[key].right, verdict.right)
    return {key: verdict.right.tolist() for key, verdict in eager[0].items()}


@pytest.mark.parametrize("norm", NAMED)
def test_evaluations_under_all_named_attacks(norm: str) -> None:
    metrics = {key: np.mean(value) for key, value in evaluated(norm, NAMED[norm], STEPS).items()}
    assert 0 < min(metrics.values()) < metrics["clean"] < 1


def test_an_evaluation_under_xla() -> None:
    clean, attacked = map(sum, evaluated("Linf", ["margin"], 1, xla=True).values())
    assert 0 < attacked < clean


def test_an_evaluation_is_traced_once_whatever_the_sizes_of_its_batches() -> None:
    def calls(count: int) -> int:
        model = Counted()
        model(np.zeros((1, *SHAPE)))
        model.calls = 0
        report = spatlib.evaluate(
            model, arrays(count=count), SPATConfig(eps=0.1), attacks="pgd", batch_size=BATCH
        )
        assert report.count == count
        return model.calls

    assert calls(BATCH + 1) == calls(3 * BATCH + 3) == calls(BATCH)


def test_every_score_and_attack_is_here() -> None:
    assert {"min", "mean", "rms", "neutral", "random"} == set(SCORES) < set(MASKS)
    assert CLASSES > 3  # so that the ratio of logits of apgd is one
