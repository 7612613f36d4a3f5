"""Files of a run are written whole or not at all, and when the monitor has to write them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from spatlib import DataError, Mask, SPATConfig, TrainConfig
from spatlib import engines as tensors
from spatlib.monitor import Monitor, best_epoch
from spatlib.runs import BEST, CHECKPOINT, LAST, Run

KILLS = 30


def begun(directory: Path, config: SPATConfig, training: TrainConfig) -> Run:
    run, names = Run(directory), ("data", "fingerprint", "architecture", "optimizer")
    settings = {"backend": "torch", "config": asdict(config), "training": asdict(training)}
    run.describe(settings | dict.fromkeys(names))
    run.begin()
    run.close()
    return run


def content(number: int) -> bytes:
    """A checkpoint of a few hundred kilobytes, all of it saying its number."""
    values = {"w": np.full((300, 300), number, np.float32), "v": np.full(7, number)}
    parts = tensors.pack(
        safetensors.numpy.save, np.empty, np.ndarray.tobytes, values, {"number": number}
    )
    return b"".join(parts)


def write_for_ever(directory: Path, first: int) -> None:
    run = Run(directory, resume=True)
    for number in range(first, 10**9):
        run.write(CHECKPOINT, content(number))


def test_a_kill_at_any_instant_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    rng, last, fork = random.Random(0), 0, multiprocessing.get_context("forkserver")
    run = begun(tmp_path, SPATConfig(eps=0.1), TrainConfig())
    for _ in range(KILLS):
        writer = fork.Process(target=write_for_ever, args=(tmp_path, last + 1))
        writer.start()
        while True:  # until this writer has replaced the file at least once
            time.sleep(rng.uniform(0, 0.02))
            found = run.read(CHECKPOINT)
            if found is not None and tensors.unpack(safetensors.numpy.load, found, "")[1] != {
                "number": last
            }:
                break
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        reader = Run(tmp_path, resume=True)
        reader.begin()
        found = reader.read(CHECKPOINT)
        assert found is not None
        values, meta = tensors.unpack(safetensors.numpy.load, found, "checkpoint")
        number = meta["number"]
        assert number > last
        assert np.all(values["w"] == number)
        assert np.all(values["v"] == number)
        last = number


def test_nothing_but_the_file_is_left_after_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.write(LAST, b"good")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run.write(LAST, b"half")
    assert run.read(LAST) == b"good"
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, "spatlib.json"]


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"x",
        content(1)[:-1],
        content(1)[:50],
        b"\xff" * 100,
        b"<html>" * 50,
        safetensors.numpy.save({"w": np.zeros(3)}),
    ],
)
def test_a_damaged_file_is_named(damage: bytes) -> None:
    with pytest.raises(DataError, match=r"best\.safetensors cannot .*: choose .* by spatlib"):
        tensors.unpack(safetensors.numpy.load, damage, BEST)


@pytest.mark.parametrize("mask", [None, Mask(score="rms", probes=3), Mask(classes=2)], ids=str)
def test_settings_come_back_as_they_were(mask: Mask | None, tmp_path: Path) -> None:
    config = SPATConfig(eps=0.5, norm="L2", bounds=(-1, 1), mask=mask)
    training = TrainConfig(seed=7)
    begun(tmp_path, config, training)
    assert Run(tmp_path, resume=True).configs() == (config, training)


def rows(*robust: float, single: float = 0.9) -> list[dict[str, float]]:
    return [
        {"epoch": i + 1, "loss": 1.0, "val_clean": 0.9, "val_pgd10": value, "val_pgd1": single}
        for i, value in enumerate(robust)
    ]


def test_the_best_epoch_is_the_first_of_the_highest_robust_accuracy() -> None:
    assert best_epoch(rows(0.1, 0.5, 0.5, 0.4)) == 2
    assert best_epoch([{"epoch": 1, "loss": 1.0}]) is None


def test_the_weights_of_the_first_best_epoch_are_kept(tmp_path: Path) -> None:
    history, run = rows(0.1, 0.5, 0.4, 0.5, 0.45, 0.4), Run(tmp_path)
    monitor = Monitor(TrainConfig(patience=3, validation=1), None, run)
    for n in range(1, len(history) + 1):
        monitor.epoch(history[:n], None, str(n).encode)
        monitor.save(b"checkpoint")
        assert run.history() == history[:n]
        assert run.read(LAST) == str(n).encode()
    assert monitor.best_weights() == b"2" == run.read(BEST)


def test_catastrophic_overfitting_is_warned_about() -> None:
    history = rows(0.4, 0.1)
    with pytest.warns(RuntimeWarning, match="catastrophic overfitting in epoch 2"):
        Monitor(TrainConfig(), lambda model: {}).epoch(history, None, bytes)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for quiet in (rows(0.4, 0.3), rows(0.4), [*rows(0.4), rows(0.4, 0.1, single=0.5)[1]]):
            Monitor(TrainConfig(), lambda model: {}).epoch(quiet, None, bytes)
        # At a small eps a network may well be robust to one step first.
        for warmup in (2, 3):
            Monitor(TrainConfig(eps_warmup=warmup), lambda model: {}).epoch(history, None, bytes)
    with pytest.warns(RuntimeWarning, match="in epoch 2"):  # the first one at full eps
        Monitor(TrainConfig(eps_warmup=1), lambda model: {}).epoch(history, None, bytes)


def test_a_checkpoint_is_due_by_the_clock_or_by_a_signal(tmp_path: Path) -> None:
    assert not Monitor(TrainConfig(checkpoint_minutes=0)).due()  # nowhere to write
    assert Monitor(TrainConfig(checkpoint_minutes=0), None, Run(tmp_path)).due()
    monitor = Monitor(TrainConfig(checkpoint_minutes=9), None, Run(tmp_path))
    assert not monitor.due()
    with monitor.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert monitor.due()
        with pytest.raises(SystemExit) as stop:
            monitor.save(b"state")
    assert stop.value.code == 128 + signal.SIGTERM
    assert monitor.run.read(CHECKPOINT) == b"state"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
