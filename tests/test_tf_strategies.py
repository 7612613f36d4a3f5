"""Replicas of a tf.distribute strategy train as one device does; each reads its rows of a batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import spatlib
from spatlib import DataError, SPATConfig, TrainConfig
from spatlib_tf.batches import Seen

from .once import once
from .replicas import BATCH, network

ROOT = Path(__file__).parent.parent
RUN = [sys.executable, "-m"]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results with one device and with two, which must be set up before TensorFlow starts."""

    def run(folder: Path) -> None:
        done = subprocess.run(
            [*RUN, "tests.replicas", folder],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (folder / "found.json").write_text(done.stdout.splitlines()[-1], "utf-8")

    folder = once(tmp_path_factory, "replicas", run)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text("utf-8"))
    found["settings"] = json.loads((folder / "run" / "config.json").read_text("utf-8"))
    return found


def test_several_workers_are_still_beyond_keras() -> None:
    """Where this fails, docs/several-gpus.md can say that they work."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    workers = []
    for index, each in enumerate(sockets):
        each.close()
        own = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CONFIG": json.dumps(own)}
        how: dict[str, Any] = {"stderr": subprocess.PIPE, "text": True, "env": environment}
        workers.append(subprocess.Popen([*RUN, "tests.worker"], cwd=ROOT, **how))
    try:
        said = workers[0].communicate(timeout=120)[1]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
    assert "ValueError: Attempt to convert a value (PerReplica" in said


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for ours, theirs in zip(found["weights"], expected["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    for row, other in zip(found["history"], expected["history"], strict=True):
        assert row == pytest.approx(other, rel=1e-6)  # sums of metrics are float32


@pytest.mark.parametrize("case", ["trades", "mart", "resumed", "fit"])
def test_two_replicas_train_as_one_device(replicas: dict[str, Any], case: str) -> None:
    one, two = replicas["one"]["run" if case == "resumed" else case], replicas["two"][case]
    assert_same(two, one)
    for weights, before in zip(two["weights"], network().get_weights(), strict=True):
        assert np.abs(weights - before).max() > 1e-3


def test_a_run_keeps_the_batch_of_all_replicas(replicas: dict[str, Any]) -> None:
    assert replicas["settings"]["global_batch"] == BATCH


def test_a_network_trains_in_the_scope_it_was_made_in(replicas: dict[str, Any]) -> None:
    assert_same(replicas["two"]["wrapped outside"], replicas["one"]["fit"])
    assert replicas["two"]["made outside"].startswith("model must be made inside the scope")


def test_the_data_parallelism_of_keras_still_does_nothing(replicas: dict[str, Any]) -> None:
    """Where this fails, docs/several-gpus.md has to say what it does."""
    found = replicas["parallel"]
    assert_same(found, replicas["one"]["mart"])
    assert (found["sizes"], found["devices"]) == ([BATCH], 1)


def test_what_replicas_refuse(replicas: dict[str, Any]) -> None:
    assert replicas["two"]["odd"].startswith("batch_size must be a multiple of the 2 replicas")
    assert replicas["two"]["clipped"].startswith("clip_grad_norm must be left out under")


def test_a_loss_that_is_not_finite_stops_replicas_too(replicas: dict[str, Any]) -> None:
    assert replicas["two"]["stopped"] is True


def test_replicas_draw_different_starts(replicas: dict[str, Any]) -> None:
    draws = np.array([value for pair in replicas["two"]["draws"] for value in pair])
    assert draws.shape == (4, 4, 6, 6, 1)
    for i in range(4):
        for j in range(i):
            assert np.abs(draws[i] - draws[j]).max() > 0.01


def test_faults_of_several_replicas_are_told_even_where_their_mean_is_none() -> None:
    seen, y, config = Seen(), np.zeros(2, np.int64), SPATConfig(eps=0.1)
    rows = []
    for value in (-0.5, 1.5):  # one in each of two replicas, whose notes add up
        seen.reset_state()
        seen.update_state(np.full((2, 3), value), y, 2, config)
        rows.append(seen.bad.numpy())
    seen.bad.assign(sum(rows))
    with pytest.raises(DataError, match="in every replica, got others in several"):
        seen.result()


def test_a_strategy_of_one_device_trains_as_none() -> None:
    found = []
    for strategy in (tf.distribute.MirroredStrategy(["/cpu:0"]), tf.distribute.get_strategy()):
        with strategy.scope():
            model = network()
            x, y = np.full((BATCH, *model.input_shape[1:]), 0.5), np.zeros(BATCH, int)
            plan = TrainConfig(epochs=1, batch_size=BATCH, schedule="constant", progress=False)
            how = {"config": SPATConfig(eps=0.1, steps=1), "training": plan, "backend": "tf"}
            found.append({"history": spatlib.train(model, (x, y), **how).history})
        found[-1]["weights"] = model.get_weights()
        del found[-1]["history"][0]["seconds"]
    assert_same(*found)
