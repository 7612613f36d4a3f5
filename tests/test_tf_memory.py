"""What trainings and evaluations in Keras leave behind in a process that goes on."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.func_graph import FuncGraph

import spatlib
from spatlib import SPATConfig, TrainConfig
from spatlib_tf.loop import Loop, Trainer

CONFIG = SPATConfig(eps=0.1, steps=1)
x = np.random.default_rng(0).uniform(size=(12, 5)).astype(np.float32)
y = np.arange(12) % 3


def network() -> keras.Model:
    return keras.Sequential([keras.layers.Input((5,)), keras.layers.Dense(3)])


def alive(kind: type) -> int:
    gc.collect()
    return sum(type(each) is kind for each in gc.get_objects())


@pytest.fixture
def warnings_of_retracing() -> Iterator[list[str]]:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "retracing" in record.getMessage():
                said.append(record.getMessage())

    handler = Keep()
    tf.get_logger().addHandler(handler)
    yield said
    tf.get_logger().removeHandler(handler)


def plain() -> keras.Model:
    model = network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, batch_size=12, verbose=0)
    return model


def adversarial() -> keras.Model:
    model, training = network(), TrainConfig(epochs=1, batch_size=12, progress=False)
    spatlib.train(model, (x, y), backend="tf", config=CONFIG, training=training)
    return model


def operations() -> list[int]:
    """Those of each graph that is alive."""
    gc.collect()
    graphs = [each for each in gc.get_objects() if type(each) is FuncGraph]
    return [len(graph.get_operations()) for graph in graphs]


@pytest.mark.usefixtures("one_attack")
def test_a_training_leaves_no_more_graphs_than_that_of_keras() -> None:
    found = [operations()]
    for train in (plain, adversarial):
        model = weakref.ref(train())
        found.append(operations())
        assert model() is None
    for count in (len, sum):  # TensorFlow itself keeps graphs in which an optimizer was applied
        before, keras_own, ours = map(count, found)
        assert ours - keras_own <= keras_own - before
    assert alive(Trainer) == alive(Loop) == 0


def test_evaluations_leave_no_graph_and_are_not_warned_of(
    warnings_of_retracing: list[str],
) -> None:
    model, before = network(), alive(FuncGraph)
    for _ in range(6):  # TensorFlow warns of the fifth trace
        spatlib.evaluate(model, (x, y), CONFIG, attacks=("pgd",), steps=1, progress=False)
    assert alive(FuncGraph) == before
    assert warnings_of_retracing == []
