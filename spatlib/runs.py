"""Run directories: settings, metrics and weights of one training; each file is replaced whole."""

import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any

from .config import SPATConfig, TrainConfig
from .engines import load_engine
from .errors import ConfigError, DataError, require, shown

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.csv", "checkpoint.safetensors"
LAST, BEST, EMA = "last.safetensors", "best.safetensors", "ema.safetensors"
EVALUATION = "evaluation.json"
WEIGHTS = {"best": BEST, "ema": EMA, "last": LAST}
OTHERS = ("audit.json", "audit.png", "curves.png", "sheet.png")
FILES = (CHECKPOINT, *WEIGHTS.values(), METRICS, EVALUATION, *OTHERS)
STANDARD = "standard"  # subdirectory with the baseline, a run of its own
OURS = "spatlib"  # is in the names of our TensorBoard files, and the key of our metadata
MARKER, FORMAT = "spatlib_run", 2  # config.json holds this number under this name
SETTINGS = ("backend", "data", "config", "training", "architecture", "optimizer")
OLD = {"backend", "config", "training", "architecture"}  # in format 1, which had no marker
FREE = ("epochs", "device", "progress", "checkpoint_minutes")  # may differ when a run goes on
PACKAGES = ("spatlib", "numpy", "torch", "tensorflow", "tensorflow-cpu", "keras")
GIT = ("git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")
AnyPath = str | os.PathLike[str]
Rows = list[dict[str, float]]


class Run:
    """The files of one run, which one process writes.

    ``config.json``: settings, versions, git commit, command line; ``metrics.csv`` and (if
    tensorboardX is installed) ``tensorboard/``: a row per epoch; ``last.safetensors``,
    ``best.safetensors``, ``ema.safetensors``: weights after the last epoch, after that of the best
    robust validation accuracy, averaged; ``checkpoint.safetensors``: what training goes on from.

    ``settings`` is what config.json holds, or is to hold; empty if there is no run. ``resume`` goes
    on with the run that is there (``resumed``: there is one) or begins one; ``overwrite`` deletes
    its files when training begins. ConfigError if a run is there and neither was asked for, or
    files of these names that are not those of a run of this format: they are never touched.
    """

    def __init__(
        self, directory: AnyPath, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        named = isinstance(directory, str | os.PathLike) and os.fspath(directory) != ""
        fits = named and (os.path.isdir(directory) or not os.path.exists(directory))
        require(fits, "run_dir", "name a directory", directory)
        require(not (resume and overwrite), "resume", "be left out beside overwrite", resume)
        self.directory = Path(directory).absolute()
        self.parent: Run | None = None  # the one that this one is a part of
        found = _stored(self.directory)
        if found and not (resume or overwrite):
            how = "go on by resume=True, or delete it by overwrite=True"
            raise ConfigError(f"run_dir must be new, got {self.directory} with a run: {how}")
        self.resumed = resume and bool(found)
        self.settings = found if self.resumed else {}
        part = [self.directory / STANDARD] if found and found["training"].get("baseline") else []
        old = [*part, self.directory] if overwrite else []
        self._old = [place for place in old if _stored(place)]  # deleted when this run begins

    def part(self, name: str) -> "Run":
        """The run in a subdirectory, with the settings of this one; it goes on if this one does."""
        place = self.directory / name
        part = Run(place, resume=self.resumed, overwrite=place in self._old)
        part.parent = self
        part.describe({name: self.settings[name] for name in SETTINGS})
        return part

    def describe(self, settings: dict[str, Any]) -> None:
        """Set what ``config.json`` is to hold; ConfigError if the run that goes on has others."""
        asked = json.loads(json.dumps(settings, default=os.fspath))
        saved = {name: self.settings[name] for name in asked} if self.resumed else asked
        if different := ", ".join(_differences(asked, saved)):
            what = f"resume needs the settings of the run in {self.directory}"
            raise ConfigError(f"{what}, got {different}: leave them out, or begin a new run")
        new = {} if self.resumed else {MARKER: FORMAT} | asked | _facts()
        self.settings = self.settings | new | asked

    def begin(self) -> bytes | None:
        """Delete what this run replaces, write the settings; the checkpoint to go on from."""
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
        temporary = self.directory / f".{name}.part"  # always this name: killed writers leave one
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.directory / name)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, name: str) -> bytes | None:
        """The contents of a file, or None if there is none."""
        path = self.directory / name
        return path.read_bytes() if path.exists() else None

    def history(self) -> Rows:
        """The rows of ``metrics.csv``; DataError if it is damaged."""
        try:
            rows = csv.DictReader(io.StringIO((self.read(METRICS) or b"").decode()))
            return [{name: float(v or "nan") for name, v in row.items()} for row in rows]
        except (TypeError, ValueError) as error:
            what = f"must be a table of numbers ({error}): put it back"
            raise DataError(f"{self.directory / METRICS} {what}") from error

    def write_history(self, history: Rows) -> None:
        """Write ``metrics.csv`` if it has other rows, and then the last of them for TensorBoard."""
        text, last = io.StringIO(newline=""), history[-1]
        writer = csv.DictWriter(text, list(last), restval="")
        writer.writeheader()
        writer.writerows(history)
        content = text.getvalue().encode()
        if content == self.read(METRICS):
            return
        self.write(METRICS, content)
        with suppress(ImportError):
            board, epoch = import_module("tensorboardX"), int(last["epoch"])
            # A file per row, as only closing one guarantees the write; purge_step hides what an
            # interrupted run wrote of this epoch and later ones.
            own = {"purge_step": epoch, "filename_suffix": f".{OURS}.{epoch}"}
            with board.SummaryWriter(str(self.directory / "tensorboard"), **own) as events:
                for name, value in last.items():
                    events.add_scalar(name, value, epoch)


def load_model(run_dir: AnyPath, weights: str | None = None) -> tuple[Any, Run]:
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
    require(name in there, "weights", f"be one of {there}, those in {run.directory} so far", name)
    if not run.settings["architecture"]:
        what = f"run_dir must be of a network by name, got your own in {run.directory}"
        raise ConfigError(f"{what}: build it, and call the engine's load_weights")
    engine, path = load_engine(run.settings["backend"]), run.directory / WEIGHTS[name]
    model = engine.build_model(seed=0, **run.settings["architecture"])
    engine.load_weights(model, path.read_bytes(), str(path))
    return model, run


def pack(save: Callable[..., bytes], tensors: Mapping[str, Any], meta: Any = None) -> bytes:
    """Named tensors and JSON in one file; ``save`` is that of safetensors for the framework."""
    return save(dict(tensors), metadata={OURS: json.dumps(meta)})


def unpack(load: Callable[[bytes], Any], content: bytes, source: str) -> tuple[dict[str, Any], Any]:
    """What :func:`pack` was given; DataError, which names ``source``, for anything else."""
    try:
        end = 8 + int.from_bytes(content[:8], "little")  # of the header, whose length comes first
        return load(content), json.loads(json.loads(content[8:end])["__metadata__"][OURS])
    except Exception as error:  # SafetensorError derives from Exception itself
        what = f"weights or a checkpoint written by spatlib ({type(error).__name__}: {error})"
        raise DataError(f"{source} must be {what}: choose another") from error


def _files(directory: Path) -> list[Path]:
    """What a run wrote into a directory, its settings last: they make the directory a run."""
    events = [*directory.glob(f"tensorboard/events.*.{OURS}.*")]
    return events + [path for name in (*FILES, CONFIG) if (path := directory / name).exists()]


def _stored(directory: Path) -> dict[str, Any]:
    """The contents of ``config.json``, or {} if there is no run; ConfigError if it is no run's."""
    if not (files := _files(directory)):
        return {}
    try:
        settings: dict[str, Any] = json.loads((directory / CONFIG).read_bytes())
        number = settings.get(MARKER, 1 if settings.keys() >= OLD else None)
        if number == FORMAT:
            _configs(settings)
            itemgetter(*SETTINGS)(settings)  # a KeyError if one is missing
            return settings
        other = f"format {number}, whose weights the engine's load_weights can still take"
        got = f"a {CONFIG} of another program" if number is None else other
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        got = f"no valid {CONFIG} ({type(error).__name__}: {error})"
    what = f"{directory}, which has {files[0].name}, must hold a run of format {FORMAT}, got {got}"
    raise ConfigError(f"{what}: put the right files back, or choose another run_dir")


def _configs(settings: dict[str, Any]) -> tuple[SPATConfig, TrainConfig]:
    return SPATConfig.from_dict(settings["config"]), TrainConfig(**settings["training"])


def _differences(asked: Any, saved: Any, name: str = "") -> list[str]:
    """Each setting that is not the same, with both values; but for those in FREE."""
    if isinstance(asked, dict) and isinstance(saved, dict):
        keys = {key: f"{name}.{key}".removeprefix(".") for key in saved | asked}
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
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(GIT, stderr=subprocess.DEVNULL, text=True, timeout=10)
    return {"versions": versions, "git": commit and commit.strip(), "argv": sys.argv}
