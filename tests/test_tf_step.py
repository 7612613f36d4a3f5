"""A training step of ``fit`` stays on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from spatlib import Mask, SPATConfig
from spatlib.monitor import Monitor
from spatlib_tf import engine

from .test_tf_model import BATCH, arrays, network, spat
from .test_tf_train import training

HOST = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2", "StringFormat", "Assert"}
CONFIGS = {
    "every class": SPATConfig(eps=0.1, steps=2, mask=Mask()),
    "some classes, L2": SPATConfig(eps=0.1, steps=2, norm="L2", mask=Mask(classes=2)),
    "probes, TRADES": SPATConfig(eps=0.1, steps=2, loss="trades", mask=Mask(score="rms")),
}


def operations(function: Callable[..., Any]) -> set[str]:
    """The kinds of operation in the graph of a step, bodies of its loops and branches included."""
    x, y = (tf.constant(part[:BATCH]) for part in arrays())
    graph = tf.function(function).get_concrete_function((x, y)).graph.as_graph_def()
    nodes = [*graph.node, *(node for part in graph.library.function for node in part.node_def)]
    return {node.op for node in nodes}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_asks_nothing_of_the_host(name: str) -> None:
    model = spat(config=CONFIGS[name], metrics=["accuracy"])
    kinds = operations(model.train_step)
    assert {"MatMul", "AssignSubVariableOp", "AssignAddVariableOp"} & kinds
    assert {"While", "StatelessWhile"} & kinds
    assert not HOST & kinds


def test_asking_the_host_would_be_noticed() -> None:
    model = spat(config=CONFIGS["every class"])

    def asking(data: Any) -> Any:
        logs = model.train_step(data)
        return tf.numpy_function(np.isfinite, [logs["loss"]], tf.bool)

    assert HOST & operations(asking)


class AskedError(Exception):
    """Carries what Keras was asked for, before the time that compiling takes."""


@pytest.mark.parametrize("ordinary", [True, False])
@pytest.mark.parametrize(("asked", "chosen"), [(True, True), (False, "auto")])
def test_train_compiles_with_xla_where_asked(
    asked: bool, chosen: Any, ordinary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: keras.Model, *args: Any, **settings: Any) -> None:
        raise AskedError(settings["jit_compile"])

    monkeypatch.setattr(keras.Model, "compile", stop)
    monitor = Monitor(training(compile=asked), ordinary=ordinary)
    with pytest.raises(AskedError) as stopped:
        engine.fit(network(), arrays(), SPATConfig(eps=0.1), monitor)
    assert stopped.value.args == (chosen,)
