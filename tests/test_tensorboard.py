"""The events that a run writes for TensorBoard: a file for each process, and each row once."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from spatlib.runs import METRICS, Run

from .running import rows, train

pytestmark = pytest.mark.usefixtures("without_pictures")


def events(directory: Path) -> list[list[Any]]:
    """Of each file, but for the version that comes first: those that are on the disk by now."""
    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        raw, found_here = path.read_bytes(), []
        while raw:
            length = struct.unpack("<Q", raw[:8])[0]  # and four bytes of its checksum
            found_here.append(Event.FromString(raw[12 : 12 + length]))
            raw = raw[16 + length :]
        found.append(found_here[1:])
    return found


def shown(directory: Path) -> list[dict[str, float]]:
    """The rows as TensorBoard shows them: a session that starts hides its step and later ones."""
    kept: list[tuple[int, dict[str, float]]] = []
    for event in (event for file in events(directory) for event in file):
        if event.HasField("session_log"):
            assert event.session_log.status == event.session_log.START
            kept = [(step, row) for step, row in kept if step < event.step]
        else:
            row = {value.tag: value.simple_value for value in event.summary.value}
            assert event.step == row["epoch"]
            kept.append((event.step, row))
    return [row for _, row in kept]


def open_files(directory: Path) -> list[str]:
    found = (os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink())
    return [path for path in found if path.startswith(str(directory))]


def test_a_training_writes_one_file_each_epoch_at_once(own: Any, tmp_path: Path) -> None:
    told: list[int] = []

    def count(row: dict[str, Any]) -> None:  # the row is written after this
        told.append(len(events(tmp_path)[0]) if row["epoch"] > 1 else 0)

    train(tmp_path, on_epoch=count)
    assert [len(file) for file in events(tmp_path)] == [3]  # the start of a session, two epochs
    assert told == [0, 2]
    assert rows(shown(tmp_path)) == [pytest.approx(row, rel=1e-6) for row in rows(own[0].history)]
    assert open_files(tmp_path) == []


@pytest.mark.parametrize("at", ["between", "amid"])
def test_a_resumed_training_adds_a_file_and_no_row_twice(
    at: str, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, seen = Run.write, [0]

    def killed(self: Run, name: str, content: bytes) -> None:
        seen[0] += name == METRICS
        if name == METRICS and seen[0] == (2 if at == "amid" else 3):
            raise MemoryError  # whatever ends the process here
        write(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", killed)
        with pytest.raises((MemoryError, ZeroDivisionError)):
            train(tmp_path, on_epoch=lambda row: 1 // (row["epoch"] < 2 or at == "amid"))
    assert open_files(tmp_path) == []
    train(tmp_path, resume=True)
    train(tmp_path, resume=True)  # which has nothing to add
    assert [len(file) for file in events(tmp_path)] == [3 if at == "amid" else 2, 2]
    assert [row["epoch"] for row in shown(tmp_path)] == [1, 2]
    assert rows(shown(tmp_path)) == [pytest.approx(row, rel=1e-6) for row in rows(own[0].history)]


def test_a_full_disk_is_named_and_not_waited_for(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if "tensorboard" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as failure:
            train(tmp_path)
    assert failure.value.filename == str(tmp_path / "tensorboard")
    assert rows(train(tmp_path, resume=True).history) == rows(own[0].history)
    assert [row["epoch"] for row in shown(tmp_path)] == [1, 2]
