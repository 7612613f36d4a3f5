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
WRITTEN = (CHECKPOINT, METRICS, LAST, BEST, EMA, EVALUATION, "audit.json")
PICTURES = ("curves.png", "sheet.png", "audit.png")
PARTS = ("standard",)  # subdirectories with a run of their own: the baseline's
PACKAGES = ("spatlib", "numpy", "torch", "tensorflow", "tensorflow-cpu", "keras")
SETTINGS = {"backend", "config", "training", "architecture"}  # what a run's config.json has


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
            raise ConfigError(f"run_dir must be a directory, got the file {directory}")
        if resume and overwrite:
            raise ConfigError("resume and overwrite exclude each other: leave one of them out")
        if resume and not (self.directory / CONFIG).exists():
            raise ConfigError(
                f"run_dir {directory} holds no run (no {CONFIG}): check the path, or begin one "
                "without resume"
            )
        if not (resume or overwrite) and (there := next(self._files(), None)) is not None:
            raise ConfigError(
                f"run_dir must be a new directory, got one with {there}: resume that run, choose "
                "another directory, or pass overwrite=True to delete it"
            )
        self.settings: dict[str, Any] = self.read_settings() if resume else {}

    def part(self, name: str) -> Run:
        """The run in a subdirectory, resumed if it exists and this one is resumed."""
        directory = self.directory / name
        resume = self.resumed and (directory / CONFIG).exists()
        part = Run(directory, resume=resume, overwrite=not resume, parent=self)
        part.settings = part.settings or self.settings
        return part

    def begin(self) -> bytes | None:
        """The checkpoint to go on from, for the engine to read when all is checked.

        A new run deletes the files of the one that it replaces and writes its settings here.
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
        """The files of a run; its settings come last, since they make the directory a run."""
        for part in PARTS:
            if (self.directory / part).is_dir():
                yield from Run(self.directory / part, overwrite=True)._files()
        yield from self.directory.glob("tensorboard/events.*")
        for name in (*WRITTEN, *PICTURES, CONFIG):
            if (self.directory / name).exists():
                yield self.directory / name

    def read_settings(self) -> dict[str, Any]:
        """The contents of ``config.json``."""
        path = self.directory / CONFIG
        try:
            settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"run_dir has an unreadable {path} ({type(error).__name__}: {error}): "
                "put the file back, or choose another directory"
            ) from error
        if not (isinstance(settings, dict) and settings.keys() >= SETTINGS):
            raise ConfigError(
                f"run_dir holds no run of spatlib but another {path}: choose another directory"
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
        """Replace a file whole: a process killed here leaves the old content or the new."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / name
        temporary = path.with_name(f".{name}.part")  # always this name: killed writers leave one
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
    """Versions of Python and of the packages that a result depends on."""
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
    """Write a row for TensorBoard to a file of its own: only closing one guarantees the write."""
    try:
        writer = import_module("tensorboardX").SummaryWriter
    except ImportError:
        return
    epoch = int(row["epoch"])
    # What an interrupted run wrote of this epoch and later ones is no longer shown.
    with writer(logdir=str(directory), purge_step=epoch, filename_suffix=f".{epoch}") as events:
        for name, value in row.items():
            events.add_scalar(name, value, epoch)
