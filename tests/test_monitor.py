"""What the monitor does of a training: signals, patience, the order of files, the result so far."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import spatlib
from spatlib import DataError, NonFiniteError, TrainConfig
from spatlib.monitor import Monitor
from spatlib.runs import BEST, CHECKPOINT, EMA, LAST, Run

from .running import CONFIG, TRAINING, content, copied, rows, train, weights

pytestmark = pytest.mark.usefixtures("without_pictures", "handlers")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of a process in the foreground: a shell lets its background ignore SIGINT."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt(number: int, epoch: int) -> Callable[[dict[str, Any]], None]:
    """An on_epoch that has a signal sent to this process."""

    def told(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            signal.raise_signal(number)  # handled before the next line

    return told


def test_a_lost_checkpoint_is_said_instead_of_beginning_anew(own: Any, tmp_path: Path) -> None:
    directory = copied(own[1], tmp_path)
    (directory / CHECKPOINT).unlink()
    before = content(directory)
    with pytest.raises(DataError, match=rf"{CHECKPOINT} is missing: put the file of this"):
        train(directory, resume=True, training=replace(TRAINING, epochs=3))
    assert content(directory) == before


# Settings, then of each of two epochs the best (of the second perhaps not), last and averaged
# weights, the checkpoint, the table.
@pytest.mark.parametrize("nth", range(1, 11))
def test_a_process_that_ends_between_two_files_loses_nothing(
    nth: int, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Run.write, []

    def killed(self: Run, name: str, text: bytes) -> None:
        written.append(name)
        if len(written) == nth:
            raise MemoryError  # whatever ends the process here
        write(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", killed)
        with pytest.raises(MemoryError):
            train(tmp_path)
    result = train(tmp_path, resume=True)
    assert rows(result.history) == rows(own[0].history)
    assert rows(Run(tmp_path, resume=True).history()) == rows(own[0].history)
    for name in (LAST, BEST, EMA):
        assert (tmp_path / name).read_bytes() == (own[1] / name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_stops_and_leaves_the_handlers_as_they_were(
    number: int, own: Any, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    expected = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}[number]
    with pytest.raises(expected) as stop:
        train(tmp_path, on_epoch=interrupt(number, 1))
    if number == signal.SIGTERM:
        assert stop.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert len(Run(tmp_path, resume=True).history()) == 1
    result = train(tmp_path, resume=True)
    assert rows(result.history) == rows(own[0].history)
    assert weights(result.model) == weights(own[0].model)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_epoch=twice)
    assert signal.getsignal(signal.SIGINT) == handler
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_process_that_ignores_a_signal_is_not_interrupted(own: Any, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    result = train(tmp_path, on_epoch=interrupt(signal.SIGINT, 1))
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert rows(result.history) == rows(own[0].history)


def test_handlers_come_back_after_an_error_too(tmp_path: Path) -> None:
    def mine(number: int, frame: Any) -> None:
        raise AssertionError

    def fail(row: dict[str, Any]) -> None:
        assert signal.getsignal(signal.SIGTERM) != mine
        raise ValueError("of the caller")

    signal.signal(signal.SIGTERM, mine)
    with pytest.raises(ValueError, match="of the caller"):
        train(tmp_path, on_epoch=fail)
    assert signal.getsignal(signal.SIGTERM) == mine


def test_signals_are_left_alone_in_a_thread(own: Any, tmp_path: Path) -> None:
    done: list[spatlib.Result] = []
    worker = threading.Thread(target=lambda: done.append(train(tmp_path)))
    worker.start()
    worker.join()
    assert rows(done[0].history) == rows(own[0].history)
    assert len(Run(tmp_path, resume=True).history()) == 2


def row(epoch: int, robust: float, single: float = 0.9) -> dict[str, float]:
    return {"epoch": epoch, "loss": 1.0, "val_clean": 0.9, "val_pgd10": robust, "val_pgd1": single}


def test_the_patience_counts_from_the_best_epoch_and_from_full_eps() -> None:
    history = [row(n, p) for n, p in enumerate((0.1, 0.5, 0.4, 0.5, 0.45, 0.4), 1)]

    def answers(**settings: Any) -> list[bool]:
        monitor = Monitor(TrainConfig(**settings))
        return [monitor.stopped(history[:n]) for n in range(1, 7)]

    assert answers(patience=3, validation=1) == [False] * 4 + [True] * 2
    assert answers(patience=3, validation=1, eps_warmup=3) == [False] * 5 + [True]
    assert answers(epochs=6) == [False] * 5 + [True]
    unvalidated = [{"epoch": n, "loss": 1.0} for n in range(1, 4)]
    assert not Monitor(TrainConfig(patience=1, validation=1)).stopped(unvalidated)


def test_rows_are_written_after_the_checkpoint_that_has_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.describe(
        {
            "backend": "torch",
            "data": None,
            "fingerprint": None,
            "config": asdict(CONFIG),
            "training": asdict(TRAINING),
            "architecture": None,
            "optimizer": False,
        }
    )
    monitor, history = Monitor(TRAINING, None, run), [row(1, 0.5)]
    assert monitor.checkpoint() is None
    monitor.begin([])
    monitor.epoch(history, None, lambda: b"weights", lambda: b"averaged")
    assert run.history() == []
    assert [run.read(name) for name in (BEST, LAST, EMA)] == [b"averaged", b"weights", b"averaged"]
    monitor.save(None)  # an engine without checkpoints
    assert run.history() == history
    history.append(row(2, 0.4))
    monitor.epoch(history, None, lambda: b"2")
    monitor.save(b"checkpoint")
    assert run.history() == history
    assert (run.read(CHECKPOINT), run.read(BEST)) == (b"checkpoint", b"averaged")
    run.close()
    again = Monitor(TRAINING, None, Run(tmp_path, resume=True))
    assert again.checkpoint() == b"checkpoint"
    again.begin(history)
    assert again.best_weights() == b"averaged"


def test_the_result_so_far_comes_with_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    wild = replace(TRAINING, lr=1e30, validation=0, ema=0.0)
    with pytest.raises(NonFiniteError) as stop:
        train(tmp_path, training=wild)
    result = stop.value.result
    assert (result.config, result.training) == (CONFIG, wild)
    assert (result.report, result.metrics) == (None, {})
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())
