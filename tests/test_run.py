"""Run directories: written whole or not at all, never overwritten by accident."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from spatlib import ConfigError, DataError, SPATConfig, TrainConfig, tensors
from spatlib.monitor import Monitor, best_epoch
from spatlib.run import BEST, CHECKPOINT, CONFIG, EMA, LAST, METRICS, Run

SETTINGS = {"backend": "torch", "config": {}, "training": {}, "architecture": {}}
KILLS = 30


def begun(directory: Path, **settings: Any) -> Run:
    run = Run(directory)
    run.describe(SETTINGS | settings)
    run.begin()
    return run


def content(number: int) -> bytes:
    """A checkpoint of a few hundred kilobytes, all of it saying its number."""
    values = {"w": np.full((300, 300), number, np.float32), "v": np.full(7, number)}
    return tensors.pack(safetensors.numpy.save, values, {"number": number})


def write_for_ever(directory: Path, first: int) -> None:
    run = Run(directory, overwrite=True)
    for number in range(first, 10**9):
        run.write(CHECKPOINT, content(number))


def test_a_kill_at_any_instant_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    rng, last, fork = random.Random(0), 0, multiprocessing.get_context("forkserver")
    for _ in range(KILLS):
        writer = fork.Process(target=write_for_ever, args=(tmp_path, last + 1))
        writer.start()
        while True:  # until this writer has replaced the file at least once
            time.sleep(rng.uniform(0, 0.02))
            found = Run(tmp_path, overwrite=True).read(CHECKPOINT)
            if found is not None and tensors.unpack(safetensors.numpy.load, found, "")[1] != {
                "number": last
            }:
                break
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        values, meta = tensors.unpack(
            safetensors.numpy.load, Run(tmp_path, overwrite=True).read(CHECKPOINT), "checkpoint"
        )
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
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


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
    with pytest.raises(DataError, match=r"best\.safetensors must be .* by spatlib.*: choose"):
        tensors.unpack(safetensors.numpy.load, damage, BEST)


def test_an_existing_run_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    begun(tmp_path)
    for name in (CHECKPOINT, METRICS, LAST, BEST, EMA, "mine.txt"):
        (tmp_path / name).write_bytes(b"old")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / CONFIG).write_bytes(b"another run")
    with pytest.raises(ConfigError, match="overwrite=True"):
        Run(tmp_path)
    new = Run(tmp_path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 8  # nothing is deleted before training begins
    with pytest.raises(ConfigError, match=r"resume and overwrite .* leave one"):
        Run(tmp_path, resume=True, overwrite=True)
    assert Run(tmp_path, resume=True).settings["backend"] == "torch"
    new.describe(SETTINGS)
    assert new.begin() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, "mine.txt", "other"]
    assert (tmp_path / "other" / CONFIG).exists()


@pytest.mark.parametrize("name", [CHECKPOINT, METRICS, LAST, BEST, EMA])
def test_a_file_of_another_is_never_taken_up_or_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"of another")
    with pytest.raises(ConfigError, match=f"one with .*{name}"):
        Run(tmp_path)
    assert Monitor(TrainConfig(), None, Run(tmp_path, overwrite=True)).checkpoint() is None
    assert not (tmp_path / name).exists()


def test_only_a_run_can_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none holds no run .*: check the path"):
        Run(tmp_path / "none", resume=True)
    (tmp_path / CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unreadable .*config\.json"):
        Run(tmp_path, resume=True)
    (tmp_path / CONFIG).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no run of spatlib .*: choose another"):
        Run(tmp_path, resume=True)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="the file"):
        Run(tmp_path / "file")


def test_settings_say_what_decides_a_result(tmp_path: Path) -> None:
    config, training = SPATConfig(norm="L2", bounds=(-1, 1)), TrainConfig(seed=7)
    begun(tmp_path, config=asdict(config), training=asdict(training))
    saved = json.loads((tmp_path / CONFIG).read_text(encoding="utf-8"))
    assert {"python", "numpy", "torch"} <= set(saved["versions"])
    assert "git" in saved
    assert saved["argv"]
    assert Run(tmp_path, resume=True).configs() == (config, training)


def rows(*robust: float, single: float = 0.9) -> list[dict[str, float]]:
    return [
        {"epoch": i + 1, "loss": 1.0, "val_clean": 0.9, "val_pgd10": value, "val_pgd1": single}
        for i, value in enumerate(robust)
    ]


def test_the_best_epoch_is_the_first_of_the_highest_robust_accuracy() -> None:
    assert best_epoch(rows(0.1, 0.5, 0.5, 0.4)) == 2
    assert best_epoch([{"epoch": 1, "loss": 1.0}]) is None


def epochs(monitor: Monitor, history: list[dict[str, float]]) -> list[bool]:
    """Whether the monitor says stop, epoch after epoch."""
    answers = []
    for n in range(1, len(history) + 1):
        monitor.epoch(history[:n], None, str(n).encode)
        answers.append(monitor.stopped(history[:n]))
    return answers


def test_training_stops_after_the_patience_and_the_best_weights_are_kept(tmp_path: Path) -> None:
    history = rows(0.1, 0.5, 0.4, 0.5, 0.45, 0.4)
    run = Run(tmp_path)
    monitor = Monitor(TrainConfig(patience=3, validation=1), None, run)
    assert epochs(monitor, history) == [False, False, False, False, True, True]
    assert monitor.best_weights == b"2" == run.read(BEST)
    assert run.read(LAST) == b"6"
    assert run.history() == history
    assert epochs(Monitor(TrainConfig(epochs=6)), history) == [False] * 5 + [True]
    warm = Monitor(TrainConfig(patience=3, validation=1, eps_warmup=3))
    assert epochs(warm, history) == [False] * 5 + [True]


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
