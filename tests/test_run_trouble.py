"""One training per directory; a disk or an output that fails is one sentence, and loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

import spatlib
from spatlib import ConfigError
from spatlib import __main__ as entry
from spatlib.cli import main
from spatlib.runs import BEST, LAST, Run

from .running import content, copied, rows, train, weights

pytestmark = pytest.mark.usefixtures("without_pictures")
IN_USE = "be no directory that another training writes"


@pytest.mark.parametrize("mode", [{"resume": True}, {"overwrite": True}], ids=str)
def test_a_directory_in_use_is_refused_until_the_training_ends(
    mode: dict[str, bool], own: Any, tmp_path: Path
) -> None:
    refused: list[str] = []

    def second(row: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=IN_USE) as refusal:
            train(tmp_path, **mode)
        refused.append(str(refusal.value))

    with pytest.raises(ZeroDivisionError):  # an error lets go of it too
        train(tmp_path, on_epoch=lambda row: 1 // 0)
    assert rows(train(tmp_path, resume=True, on_epoch=second).history) == rows(own[0].history)
    assert len(refused) == 2
    assert str(tmp_path) in refused[0]
    assert weights(train(tmp_path, resume=True).model) == weights(own[0].model)


def described(directory: Path) -> Run:
    run = Run(directory)
    names = ("backend", "data", "fingerprint", "config", "training", "architecture", "optimizer")
    run.describe(dict.fromkeys(names))
    return run


def test_of_two_that_began_at_once_the_second_finds_the_run_of_the_first(tmp_path: Path) -> None:
    first, second = described(tmp_path), described(tmp_path)
    first.begin()
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=IN_USE):
        second.begin()
    first.close()
    with pytest.raises(ConfigError, match=IN_USE):  # although it has ended
        second.begin()
    assert content(tmp_path) == before


HOLD = """
import os, sys, time
from pathlib import Path
from tests.test_run_trouble import described
run = described(Path(sys.argv[1]))
run.begin()
if os.fork() == 0:  # as the workers of a loader are
    print(os.getpid(), flush=True)  # it has begun: it lets go of the lock at its start
time.sleep(60)
"""


def test_a_killed_process_leaves_no_lock_though_its_workers_live(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(ConfigError, match=IN_USE):
            Run(tmp_path, resume=True).begin()
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # it lives
        run = Run(tmp_path, resume=True)
        run.begin()
        run.close()
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


@pytest.mark.parametrize("nth", [1, 4, 7, 9, 12])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_has_the_name_of_the_file_and_loses_nothing(
    code: int, nth: int, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, count = os.fsync, [0]

    def full(descriptor: int) -> None:
        count[0] += 1
        if count[0] == nth:
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=os.strerror(code)) as failure:
            train(tmp_path)
    assert Path(failure.value.filename).parent == tmp_path
    assert failure.value.errno == code
    assert [path for path in tmp_path.iterdir() if path.suffix == ".part"] == []
    result = train(tmp_path, resume=True)
    assert rows(result.history) == rows(own[0].history)
    assert (tmp_path / LAST).read_bytes() == (own[1] / LAST).read_bytes()


def test_a_file_that_cannot_be_read_is_named(
    own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, read = copied(own[1], tmp_path), Path.read_bytes

    def bad(self: Path) -> bytes:
        if self.name == BEST:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", bad)
    with pytest.raises(OSError, match="Input/output error") as failure:
        train(directory, resume=True)
    assert failure.value.filename == str(directory / BEST)


def test_a_directory_that_is_deleted_is_not_made_anew(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(FileNotFoundError) as failure:
        train(directory, on_epoch=lambda row: shutil.rmtree(directory))
    assert failure.value.filename == str(directory / "spatlib.json")
    assert content(tmp_path) == {}


def test_a_directory_in_its_place_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "run"

    def replaced(row: dict[str, Any]) -> None:
        directory.rename(tmp_path / "moved")
        directory.mkdir()
        (directory / LAST).write_bytes(b"of another")

    with pytest.raises(FileNotFoundError) as failure:
        train(directory, on_epoch=replaced)
    assert failure.value.filename == str(directory / "spatlib.json")
    assert content(directory) == {LAST: b"of another"}


def test_where_no_directory_can_be_made_no_step_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    told: list[Any] = []
    with pytest.raises(NotADirectoryError):
        train(tmp_path / "file" / "run", on_epoch=told.append)
    assert told == []


def test_pictures_that_cannot_be_written_do_not_take_the_result(own: Any, tmp_path: Path) -> None:
    directory = copied(own[1], tmp_path)
    (directory / "curves.png").unlink()
    (directory / "curves.png").mkdir()
    with pytest.warns(UserWarning, match=r"results or plots lost in .*curves\.png"):
        assert train(directory, resume=True).metrics == own[0].metrics


def test_the_command_line_says_it_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"1")
    assert main(("train", "--limit", "60", "--run-dir", str(tmp_path / "file" / "run"))) == 3
    printed = capsys.readouterr().err
    assert printed.startswith(f"spatlib: {tmp_path}/file/run cannot be read or written (Not a ")
    assert printed.count("\n") == 1


def test_a_measurement_that_cannot_be_written_is_printed(
    digits: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = copied(digits[1], tmp_path)
    (directory / "evaluation.json").mkdir()
    assert main(("evaluate", str(directory), "--attacks", "pgd", "--limit", "10")) == 3
    out, error = capsys.readouterr()
    assert json.loads(out)["count"] == 10
    assert error.startswith(f"spatlib: {directory}/evaluation.json cannot be read or written")


@pytest.mark.parametrize("full", [False, True], ids=["closed", "full"])
def test_an_output_that_fails_ends_the_command_without_a_trace(full: bool) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as head does
    with open("/dev/full" if full else writer, "w", closefd=full) as out:
        command = [sys.executable, "-m", "spatlib", "recipes"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert done.returncode == 3
    said = "spatlib: the output cannot be read or written (No space left on device)"
    assert done.stderr.startswith(said) if full else done.stderr == ""
    assert done.stderr.count("\n") == full


@pytest.mark.parametrize(("closed", "command"), [("stdout", "recipes"), ("stderr", "show nowhere")])
def test_without_an_output_the_command_does_its_work(
    closed: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["spatlib", *command.split()])
    monkeypatch.setattr(sys, closed, None)  # as Python has it after >&- and 2>&-
    assert entry.main() == (2 if closed == "stderr" else 0)
    assert capsys.readouterr() == ("", "")
    assert warnings.formatwarning("text", UserWarning, "a.py", 1) == "warning: text\n"


def test_an_output_that_knows_only_ascii_has_the_rest_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(sys, "argv", ["spatlib", "--help"])
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(raw := BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit):
        entry.main()
    sys.stdout.flush()
    assert rb"\u2022 recipes" in raw.getvalue()


def test_a_training_whose_output_nobody_reads_can_go_on(tmp_path: Path) -> None:
    options = "--limit 60 --epochs 3 --steps 1 --no-baseline --validation 0 --run-dir"
    command = [sys.executable, "-m", "spatlib", "train", *options.split(), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["epoch"] == 1
    process.stdout.close()
    assert process.wait(timeout=60) == 3
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert len(spatlib.train(run_dir=tmp_path, resume=True).history) == 3
