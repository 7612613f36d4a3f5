"""Two threads that attack one network: the second waits, as the first changes its state."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import Mask, SPATConfig, TrainConfig

from . import test_tf_ways, test_torch_state

ROUNDS = 12
CONFIGS = [SPATConfig(eps=0.1, steps=2, attack_mode=mode) for mode in ("eval", "train")]


def in_threads(*calls: Callable[[], Any]) -> None:
    failed: list[BaseException] = []

    def run(call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def in_torch() -> tuple[Callable[[SPATConfig], np.ndarray], Callable[[], Any]]:
    model, (x, y) = test_torch_state.network(dropout=0.0), test_torch_state.batch()

    def attack(config: SPATConfig) -> np.ndarray:
        source = torch.Generator().manual_seed(0)
        return spatlib_torch.perturb(model, x, y, config, generator=source).numpy()

    return attack, lambda: test_torch_state.state(model)


def in_keras() -> tuple[Callable[[SPATConfig], np.ndarray], Callable[[], Any]]:
    model, (x, y) = test_tf_ways.normed(), map(tf.constant, test_tf_ways.arrays())

    def attack(config: SPATConfig) -> np.ndarray:
        return spatlib_tf.perturb(model, x, y, config, start=tf.zeros_like(x)).numpy()

    return attack, lambda: [value.tolist() for value in test_tf_ways.state(model)]


@pytest.mark.parametrize("make", [in_torch, in_keras])
def test_two_threads_get_what_one_would(make: Callable[[], Any]) -> None:
    attack, state = make()
    before, expected = state(), [attack(config) for config in CONFIGS]

    def again(config: SPATConfig, result: np.ndarray) -> None:
        for _ in range(ROUNDS):
            np.testing.assert_array_equal(attack(config), result)

    pairs = zip(CONFIGS, expected, strict=True)
    in_threads(*(lambda pair=pair: again(*pair) for pair in pairs))
    assert state() == before


def test_a_network_is_measured_in_one_thread_while_it_is_trained_in_another() -> None:
    x, y = test_torch_state.batch()
    data = torch.cat([x] * 8), torch.cat([y] * 8)
    plan = TrainConfig(epochs=4, batch_size=8, progress=False)

    def trained(model: torch.nn.Module) -> list[Any]:
        spatlib.train(model, data, config=CONFIGS[0], training=plan)
        return [p.tolist() for p in model.parameters()]

    expected = trained(test_torch_state.network(dropout=0.0))
    model, found = test_torch_state.network(dropout=0.0), list[Any]()

    def measure() -> None:
        for _ in range(ROUNDS):
            spatlib.evaluate(model, (x, y), CONFIGS[0], steps=2)

    in_threads(lambda: found.append(trained(model)), measure)
    assert found == [expected]


def test_a_network_that_is_where_it_is_asked_for_is_not_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Moving replaces gradients, which a training in another thread may free at that moment."""
    model = test_torch_state.network()
    monkeypatch.setattr(model, "to", lambda *_: pytest.fail("moved"))
    spatlib.evaluate(model, test_torch_state.batch(), CONFIGS[0], steps=1, device="cpu")


def test_masks_made_in_two_threads_leave_compiled_what_is() -> None:
    """They run networks uncompiled for a while: the second begins in it, and ends after it."""
    models = [test_torch_state.network() for _ in range(2)]
    inside, ended, graphs = (threading.Event(), threading.Event()), threading.Event(), list[Any]()
    config = SPATConfig(eps=0.1, mask=Mask())

    def overlap(number: int) -> None:
        inside[number].set()
        (ended if number else inside[1]).wait(0.3)

    def mask(number: int) -> None:
        if number:
            inside[0].wait(10)
        models[number][-1].register_forward_pre_hook(lambda *_: overlap(number))
        spatlib_torch.shared_mask(models[number], *test_torch_state.batch(), config)
        ended.set()

    in_threads(partial(mask, 0), partial(mask, 1))

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
    assert len(graphs) == 1


def test_no_lock_keeps_its_network() -> None:
    model = test_torch_state.network()
    spatlib_torch.perturb(model, *test_torch_state.batch(), CONFIGS[0])
    found = weakref.ref(model)
    del model
    gc.collect()
    assert found() is None
