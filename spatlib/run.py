"""A run directory: settings, metrics and weights of one training, each file written whole."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .config import SPATConfig
from .errors import ConfigError
from .train_config import TrainConfig

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.csv", "checkpoint.safetensors"
EVALUATION = "evaluation.json"
LAST, BEST, EMA = "last.safetensors", "best.safetensors", "ema.safetensors"
PARTS = ("standard",)  # runs in directories of a run: that of the baseline
PACKAGES = ("spatlib", "numpy", "torch", "tensorflow", "tensorflow-cpu", "keras")
SETTINGS = {"backend", "config", "training", "architecture"}  # what makes a JSON file a run's


class Run:
    """The files of one run.

    - ``config.json``: settings, versions, git commit and command line;
    - ``metrics.csv``: one row per epoch; ``tensorboard/``: the same, if tensorboardX is installed;
    - ``last.safetensors``, ``best.safetensors``, ``ema.safetensors``: weights after the last epoch,
      after the one of the best robust validation accuracy, and their moving average;
    - ``checkpoint.safetensors``: what training goes on from;
    - ``curves.png``, ``sheet.png``, ``audit.png``: plots, if Matplotlib is installed.

    One process writes to it: give each of several its own.

    Args:
        directory: Made when training begins.
        resume: Go on with the run that is there.
        overwrite: Delete the run that is there, when training begins.
        parent: The run that this one is a part of.

    Raises:
        ConfigError: There is a run and neither was asked for, or none where ``resume`` was.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        parent: Run | None = None,
    ) -> None:
        self.directory, self.resumed, self.parent = Path(directory), resume, parent
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(
                "run_dir",
                expected="a directory",
                received=f"the file {directory}",
                fix="Choose another path.",
            )
        if resume and overwrite:
            raise ConfigError(
                "resume",
                expected="resume or overwrite",
                received="both",
                fix="Leave one of them out.",
            )
        if resume and not (self.directory / CONFIG).exists():
            raise ConfigError(
                "run_dir",
                expected="a run to resume",
                received=f"no {CONFIG} in {self.directory}",
                fix="Check the path, or leave resume out.",
            )
        if not (resume or overwrite) and (there := next(self._files(), None)) is not None:
            raise ConfigError(
                "run_dir",
                expected="a new directory",
                received=f"one with {there}",
                fix="Resume that run, choose another directory, or pass "
                "overwrite=True to delete it.",
            )
        self.settings: dict[str, Any] = self.read_settings() if resume else {}

    def part(self, name: str) -> Run:
        """A run in a directory of this one, taken up if this one is and it is there."""
        directory = self.directory / name
        resume = self.resumed and (directory / CONFIG).exists()
        part = Run(directory, resume=resume, overwrite=not resume, parent=self)
        part.settings = part.settings or self.settings
        return part

    def begin(self) -> bytes | None:
        """The checkpoint to go on from. A new run deletes what it replaces and says what it is.

        The engine asks for it when it has checked everything and training begins.
        """
        if not self.resumed:
            if self.parent is not None:
                self.parent.begin()
            for path in list(self._files()):
                path.unlink()
            text = json.dumps(self.settings, indent=2, default=os.fspath)
            self.write(CONFIG, text.encode())
            self.resumed = True
        return self.read(CHECKPOINT)

    def _files(self) -> Iterator[Path]:
        """What a run consists of, its settings last: without them there is no run."""
        for part in PARTS:
            if (self.directory / part).is_dir():
                yield from Run(self.directory / part, overwrite=True)._files()
        yield from self.directory.glob("tensorboard/events.*")
        for name in (
            CHECKPOINT,
            METRICS,
            LAST,
            BEST,
            EMA,
            EVALUATION,
            "curves.png",
            "sheet.png",
            "audit.json",
            "audit.png",
            CONFIG,
        ):
            if (self.directory / name).exists():
                yield self.directory / name

    def read_settings(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        path = self.directory / CONFIG
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                "run_dir",
                expected=f"a run with a readable {path}",
                received=f"{type(error).__name__}: {error}",
                fix="Check the path.",
            ) from error
        if not (isinstance(settings, dict) and settings.keys() >= SETTINGS):
            raise ConfigError(
                "run_dir",
                expected="a run of spatlib",
                received=f"another {path}",
                fix="Choose another directory.",
            )
        return settings

    def configs(self) -> tuple[SPATConfig, TrainConfig]:
        """The threat model and method, and the schedule."""
        settings = self.settings or self.read_settings()
        return SPATConfig(**settings["config"]), TrainConfig(**settings["training"])

    def describe(self, settings: dict[str, Any]) -> None:
        """Set what ``config.json`` is to hold: the settings and what else decides a result."""
        self.settings = settings | {"versions": versions(), "git": git_state(), "argv": sys.argv}

    def write(self, name: str, content: bytes) -> None:
        """Replace a file at once: whoever is killed here leaves the old one or the new one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / name
        temporary = path.with_name(f".{name}.part")  # one name: a killed writer leaves one at most
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """The contents of a file, or None if there is none."""
        path = self.directory / name
        return path.read_bytes() if path.exists() else None

    def history(self) -> list[dict[str, float]]:
        """The rows of ``metrics.csv``."""
        text = (self.read(METRICS) or b"").decode()
        return [
            {name: float(value or "nan") for name, value in row.items()}
            for row in csv.DictReader(io.StringIO(text))
        ]

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write ``metrics.csv``, and add the last epoch to the TensorBoard events."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[-1]), restval="")
        writer.writeheader()
        writer.writerows(history)
        self.write(METRICS, text.getvalue().encode())
        _write_events(self.directory / "tensorboard", history[-1])


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Commit of the working directory and whether it has changes; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _write_events(directory: Path, row: dict[str, float]) -> None:
    """For TensorBoard, a file per epoch: only closing one makes sure that it is written."""
    try:
        writer = import_module("tensorboardX").SummaryWriter
    except ImportError:
        return
    epoch = int(row["epoch"])
    # What an interrupted run wrote of this epoch and later ones is no longer shown.
    with writer(logdir=str(directory), purge_step=epoch, filename_suffix=f".{epoch}") as events:
        for name, value in row.items():
            events.add_scalar(name, value, epoch)
