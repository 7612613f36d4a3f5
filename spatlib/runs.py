"""Run directories: settings, metrics and weights of one training; each file is replaced whole."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any

from .config import SPATConfig
from .engines import load_engine
from .errors import ConfigError, DataError, require, shown
from .training import TrainConfig

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.csv", "checkpoint.safetensors"
LAST, BEST, EMA = "last.safetensors", "best.safetensors", "ema.safetensors"
EVALUATION = "evaluation.json"
WEIGHTS = {"best": BEST, "ema": EMA, "last": LAST}
OTHERS = ("audit.json", "audit.png", "curves.png", "sheet.png")
FILES = (CHECKPOINT, BEST, EMA, LAST, METRICS, EVALUATION, *OTHERS)
STANDARD = "standard"  # subdirectory with the baseline, a run of its own
OURS = "spatlib"  # is in the names of our TensorBoard files, and the key of our metadata
MARKER, FORMAT = "spatlib_run", 2  # config.json holds this number under this name
SETTINGS = ("backend", "data", "config", "training", "architecture", "optimizer")
OLD = {"backend", "config", "training", "architecture"}  # in format 1, which had no marker
FREE = ("epochs", "device", "progress", "checkpoint_minutes")  # may differ when a run goes on
PACKAGES = ("spatlib", "numpy", "torch", "tensorflow", "tensorflow-cpu", "keras")
LENGTH = struct.Struct("<Q")  # a safetensors file begins with the length of its JSON header


class Run:
    """The files of one run, which one process writes.

    ``config.json``: settings, versions, git commit, command line and the mark of a run;
    ``metrics.csv``: one row per epoch; ``tensorboard/``: the same, if tensorboardX is installed;
    ``last.safetensors``, ``best.safetensors``, ``ema.safetensors``: weights after the last epoch,
    after the one of the best robust validation accuracy, and their moving average;
    ``checkpoint.safetensors``: what training goes on from; ``curves.png``, ``sheet.png``,
    ``audit.png``: plots, if Matplotlib is installed.

    Args:
        directory: Made when training begins; what a relative path means is settled now.
        resume: Go on with the run that is there; if there is none, begin one.
        overwrite: When training begins, delete the files of the run that is there.
        parent: The run that this one is a part of.

    Attributes:
        settings: What ``config.json`` holds, or is to hold; empty if there is no run.
        resumed: Whether there is a run to go on with.

    Raises:
        ConfigError: There is a run and neither was asked for; or there are files of these names
            but not those of a run of this format, which are never touched.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        resume: bool = False,
        overwrite: bool = False,
        parent: Run | None = None,
    ) -> None:
        named = isinstance(directory, str | os.PathLike) and os.fspath(directory) != ""
        require(named, "run_dir", "name a directory", directory)
        self.directory, self.parent = Path(directory).absolute(), parent
        if self.directory.exists() and not self.directory.is_dir():
            raise ConfigError(f"run_dir must be a directory, got the file {self.directory}")
        if resume and overwrite:
            raise ConfigError("resume and overwrite exclude each other: leave one of them out")
        found = _stored(self.directory)
        if found and not (resume or overwrite):
            raise ConfigError(
                f"run_dir must be a new directory, got one with a run, {self.directory}: go on by "
                "resume=True, choose another directory, or delete the run by overwrite=True"
            )
        self.resumed = resume and bool(found)
        self.settings = found if self.resumed else {}
        self._old: list[Path] = []  # directories of what is deleted when this run begins
        if overwrite and found:
            part = [self.directory / STANDARD] if found["training"].get("baseline") else []
            self._old = [place for place in (*part, self.directory) if _stored(place)]

    def part(self, name: str) -> Run:
        """The run in a subdirectory, with the settings of this one; it goes on if this one does."""
        place = self.directory / name
        part = Run(place, resume=self.resumed, overwrite=place in self._old, parent=self)
        part.describe({name: self.settings[name] for name in SETTINGS})
        return part

    def describe(self, settings: dict[str, Any]) -> None:
        """Set what ``config.json`` is to hold: these settings, and what else decides a result.

        Raises:
            ConfigError: The run that goes on has others; names each, with both values.
        """
        asked = json.loads(json.dumps(settings, default=os.fspath))
        if not self.resumed:
            self.settings = {MARKER: FORMAT} | asked | _facts()
        elif different := _differences(asked, {name: self.settings[name] for name in asked}):
            raise ConfigError(
                f"resume needs the settings of the run in {self.directory}, got "
                f"{', '.join(different)}: leave them out, or begin a new run"
            )
        else:
            self.settings = self.settings | asked

    def begin(self) -> bytes | None:
        """Delete the run that this one replaces, write the settings; the checkpoint to go on from.

        Raises:
            DataError: The checkpoint is missing, but there are epochs.
        """
        checkpoint = self.read(CHECKPOINT) if self.resumed else None
        if self.resumed and checkpoint is None and self.history():
            path = self.directory / CHECKPOINT
            raise DataError(f"{path} is missing beside {METRICS}: put it back, or begin a new run")
        if self.parent is not None:
            self.parent.begin()
        for path in [path for place in self._old for path in _files(place)]:
            path.unlink()
        self._old, self.resumed = [], True
        content = json.dumps(self.settings, indent=2).encode()
        if content != self.read(CONFIG):
            self.write(CONFIG, content)
        return checkpoint

    def configs(self) -> tuple[SPATConfig, TrainConfig]:
        """The threat model and method, and the schedule; ConfigError if there is no run."""
        if not self.settings:
            raise ConfigError(f"run_dir must hold a run, got {self.directory} without {CONFIG}")
        return _configs(self.settings)

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
        """The rows of ``metrics.csv``; DataError if it is damaged."""
        try:
            rows = csv.DictReader(io.StringIO((self.read(METRICS) or b"").decode()))
            return [{name: float(v or "nan") for name, v in row.items()} for row in rows]
        except (TypeError, ValueError) as error:
            path = self.directory / METRICS
            raise DataError(f"{path} must be a table of numbers ({error}): put it back") from error

    def write_history(self, history: list[dict[str, float]]) -> None:
        """Write ``metrics.csv`` if it has other rows, and then the last of them for TensorBoard."""
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[-1]), restval="")
        writer.writeheader()
        writer.writerows(history)
        if text.getvalue().encode() == self.read(METRICS):
            return
        self.write(METRICS, text.getvalue().encode())
        with suppress(ImportError):
            writer_of, epoch = (
                import_module("tensorboardX").SummaryWriter,
                int(history[-1]["epoch"]),
            )
            # A file per row, as only closing one guarantees the write; purge_step hides what an
            # interrupted run wrote of this epoch and later ones.
            own = {"purge_step": epoch, "filename_suffix": f".{OURS}.{epoch}"}
            with writer_of(str(self.directory / "tensorboard"), **own) as events:
                for name, value in history[-1].items():
                    events.add_scalar(name, value, epoch)


def load_model(run_dir: str | os.PathLike[str], weights: str | None = None) -> tuple[Any, Run]:
    """The network of a run, built and with its weights, on the CPU; and the run.

    Args:
        run_dir: Directory of a run of a network that spatlib built, by name.
        weights: ``"best"`` (of the best robust validation accuracy), ``"ema"`` (averaged) or
            ``"last"``; default: the first of these that the run has.

    Raises:
        ConfigError: No run, no such weights, or a network of the user's own.
        DataError: The file is damaged.
    """
    run = Run(run_dir, resume=True)
    run.configs()  # an error unless there is a run
    there = [name for name, file in WEIGHTS.items() if (run.directory / file).exists()]
    name = weights or next(iter(there), "last")
    if name not in there:
        raise ConfigError(
            f"weights must be one of {there}, those in {run.directory}, got {name!r}: "
            "choose one of them, or let the first epoch finish"
        )
    if not run.settings["architecture"]:
        raise ConfigError(
            f"run_dir must be a run of a network that spatlib can build, got your own in "
            f"{run.directory}: build it, and call the engine's load_weights"
        )
    engine = load_engine(run.settings["backend"])
    model = engine.build_model(seed=0, **run.settings["architecture"])
    path = run.directory / WEIGHTS[name]
    engine.load_weights(model, path.read_bytes(), str(path))
    return model, run


def pack(save: Callable[..., bytes], tensors: Mapping[str, Any], meta: Any = None) -> bytes:
    """Named tensors and JSON in one file; ``save`` is that of safetensors for the framework."""
    return save(dict(tensors), metadata={OURS: json.dumps(meta)})


def unpack(
    load: Callable[[bytes], dict[str, Any]], content: bytes, source: str
) -> tuple[dict[str, Any], Any]:
    """What :func:`pack` was given; DataError, which names ``source``, for anything else."""
    try:
        (length,) = LENGTH.unpack_from(content)
        header = json.loads(content[LENGTH.size : LENGTH.size + length])
        return load(content), json.loads(header["__metadata__"][OURS])
    except Exception as error:  # SafetensorError derives from Exception itself
        raise DataError(
            f"{source} must be weights or a checkpoint written by spatlib, got a file that cannot "
            f"be read ({type(error).__name__}: {error}): choose another"
        ) from error


def _files(directory: Path) -> list[Path]:
    """What a run wrote into a directory, its settings last: they make the directory a run."""
    events = [*directory.glob(f"tensorboard/events.*.{OURS}.*")]
    return events + [path for name in (*FILES, CONFIG) if (path := directory / name).exists()]


def _stored(directory: Path) -> dict[str, Any]:
    """The contents of ``config.json``, or {} if there is no run.

    Raises:
        ConfigError: There are files of these names but not those of a run of this format.
    """
    path, files = directory / CONFIG, _files(directory)
    if not files:
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        keys = settings.keys() if isinstance(settings, dict) else set[str]()
        if MARKER in keys and settings[MARKER] == FORMAT:
            _configs(settings)
            itemgetter(*SETTINGS)(settings)  # a KeyError if one is missing
            return settings  # type: ignore[no-any-return]
        problem = "is that of another program:"
        if MARKER in keys:
            problem = f"must have format {FORMAT}, got {settings[MARKER]!r}:"
        elif keys >= OLD:
            problem = (
                "is that of a run of an older format, which cannot go on (the engine's "
                "load_weights puts its weights into a network):"
            )
    except FileNotFoundError:
        problem = f"is missing beside {files[0].name}: put it back, or"
    except (OSError, ValueError, TypeError, KeyError) as error:
        problem = f"is damaged ({type(error).__name__}: {error}): put it back, or"
    raise ConfigError(f"{path} {problem} choose another run_dir")


def _configs(settings: dict[str, Any]) -> tuple[SPATConfig, TrainConfig]:
    return SPATConfig.from_dict(settings["config"]), TrainConfig(**settings["training"])


def _differences(asked: Any, saved: Any, name: str = "") -> list[str]:
    """Each setting that is not the same, with both values; but for those in FREE."""
    if isinstance(asked, dict) and isinstance(saved, dict):
        keys = {key: f"{name}.{key}" if name else key for key in saved | asked}
        parts = (_differences(asked.get(k), saved.get(k), path) for k, path in keys.items())
        return [text for part in parts for text in part]
    if asked == saved or name.removeprefix("training.") in FREE:
        return []
    own = name in ("data", "architecture")  # stored as None if they were the user's own
    now, before = ("your own" if own and v is None else shown(v) for v in (asked, saved))
    return [f"{name} = {now} instead of {before}"]


def _facts() -> dict[str, Any]:
    """Versions, git commit ("-dirty" if files differ; None outside a repository), command line."""
    versions, commit = {"python": platform.python_version()}, None
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        commit = done.stdout.strip()
    return {"versions": versions, "git": commit, "argv": sys.argv}
