"""Run directories: settings, metrics and weights of one training; each file is replaced whole."""

import csv
import io
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import Any

from .config import SPATConfig, TrainConfig
from .engines import Rows, load_engine
from .errors import AnyPath, ConfigError, expect, reading, require, shown

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.csv", "checkpoint.safetensors"
LAST, BEST, EMA = "last.safetensors", "best.safetensors", "ema.safetensors"
WEIGHTS = {"best": BEST, "ema": EMA, "last": LAST}
EVALUATION, KEPT = "evaluation.json", "evaluation.npz"
OTHERS = (KEPT, "audit.json", "audit.png", "curves.png", "sheet.png")
FILES = (CHECKPOINT, *WEIGHTS.values(), METRICS, EVALUATION, *OTHERS, CONFIG)
STANDARD = "standard"  # subdirectory with the baseline, a run of its own
OURS = "spatlib"  # is in the names of our TensorBoard files, and the key of our metadata
MARKER, FORMAT = "spatlib_run", 2  # config.json holds this number under this name
SETTINGS = ("backend", "data", "config", "training", "architecture", "optimizer", "global_batch")
# Settings that may differ when a run goes on.
FREE = {"epochs", "device", "progress", "checkpoint_minutes", "batch_size"}  # that: global_batch
PACKAGES = ("spatlib", "numpy", "torch", "tensorflow", "tensorflow-cpu", "keras")
GIT = ("git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


class Run:
    """The files of one run, which one process writes.

    ``config.json``: settings, versions, git commit, command line; ``metrics.csv`` and (with
    tensorboardX) ``tensorboard/``: a row per epoch; ``last``, ``best``, ``ema.safetensors``:
    weights after the last epoch, after that of the best robust validation accuracy, averaged;
    ``checkpoint.safetensors``: what training goes on from.

    ``settings`` is what config.json is to hold; empty if there is no run. ``resume`` goes on with a
    run that is there (``resumed``) or begins one; ``overwrite`` deletes its files when training
    begins. ConfigError if a run is there and neither was asked for, or files of others.
    """

    def __init__(self, place: AnyPath, *, resume: bool = False, overwrite: bool = False) -> None:
        named = isinstance(place, str | os.PathLike) and os.fspath(place) != ""
        fits = named and (os.path.isdir(place) or not os.path.exists(place))
        require(fits, "run_dir", "name a directory", place)
        require(not (resume and overwrite), "resume", "be left out beside overwrite", resume)
        self.directory = Path(place).absolute()
        self.parent: Run | None = None  # the one that this one is a part of
        self.silent = False  # in all but the first of several processes, which do not write
        found = _stored(self.directory)
        if found and not (resume or overwrite):
            how = "go on by resume=True, or delete it by overwrite=True"
            raise ConfigError(f"run_dir must be new, got {self.directory} with a run: {how}")
        self.settings = found if resume else {}
        self.resumed = bool(self.settings)
        old = [self.directory] if found and overwrite else []
        if old and found["training"].get("baseline"):
            old.insert(0, self.directory / STANDARD)
        self._old = [each for each in old if _stored(each)]  # deleted when this run begins

    def part(self, name: str) -> "Run":
        """The run in a subdirectory, with the settings of this one; it goes on if this one does."""
        place = self.directory / name
        part = Run(place, resume=self.resumed, overwrite=place in self._old)
        part.parent, part.silent = self, self.silent
        part.describe({key: self.settings[key] for key in SETTINGS})
        return part

    def describe(self, settings: dict[str, Any]) -> None:
        """Set what ``config.json`` is to hold; ConfigError if the run that goes on has others."""
        asked = json.loads(json.dumps(settings, default=os.fspath))
        if not self.resumed:
            self.settings = {MARKER: FORMAT} | asked | _facts()
        if different := ", ".join(_differences(asked, {k: self.settings[k] for k in asked})):
            what = f"resume needs the settings of the run in {self.directory}"
            raise ConfigError(f"{what}, got {different}: leave them out, or begin a new run")
        self.settings |= asked

    def begin(self) -> bytes | None:
        """Delete what this run replaces, write the settings; the checkpoint to go on from."""
        checkpoint = self.read(CHECKPOINT) if self.resumed else None
        lost = self.resumed and checkpoint is None and len(self.history()) > 0
        expect(not lost, f"{self.directory / CHECKPOINT} is missing beside {METRICS}: put it back")
        if self.parent is not None:
            self.parent.begin()
        for place in self._old if not self.silent else ():
            for path in _files(place):
                path.unlink()
        self._old, self.resumed = [], True
        self.write(CONFIG, json.dumps(self.settings, indent=2).encode())
        return checkpoint

    def configs(self) -> tuple[SPATConfig, TrainConfig]:
        """The threat model and method, and the schedule; ConfigError if there is no run."""
        if not self.settings:
            raise ConfigError(f"run_dir must hold a run, got {self.directory} without {CONFIG}")
        return _configs(self.settings)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file whole: a process killed here leaves the old content or the new."""
        if self.silent:
            return
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
        with reading(self.directory / METRICS, "put a table of numbers back"):
            rows = csv.DictReader((self.read(METRICS) or b"").decode().splitlines())
            return [{name: float(v or "nan") for name, v in row.items()} for row in rows]

    def write_history(self, history: Rows) -> None:
        """Write ``metrics.csv`` if it has other rows, and then the last of them for TensorBoard."""
        text, last = io.StringIO(newline=""), history[-1]
        writer = csv.DictWriter(text, list(last))
        writer.writeheader()
        writer.writerows(history)
        if (content := text.getvalue().encode()) == self.read(METRICS) or self.silent:
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
    """The network of a run that spatlib built by name, on the CPU with its weights; and the run.

    ``weights`` are ``"best"`` (of the best robust validation accuracy), ``"ema"`` (averaged) or
    ``"last"``, by default the first of these that there are. ConfigError if there is no run, no
    such weights or a network of your own; DataError if the file is damaged.
    """
    run = Run(run_dir, resume=True)
    run.configs()  # an error unless there is a run
    there = [name for name, file in WEIGHTS.items() if (run.directory / file).exists()]
    name = weights or next(iter(there), "last")
    require(name in there, "weights", f"be one of {there}, those in {run.directory} so far", name)
    what = "be that of a network by name (build your own, and call the engine's load_weights)"
    require(run.settings["architecture"] is not None, "run_dir", what, str(run_dir))
    engine, path = load_engine(run.settings["backend"]), run.directory / WEIGHTS[name]
    model = engine.build_model(seed=0, **run.settings["architecture"])
    engine.load_weights(model, path.read_bytes(), str(path))
    return model, run


def pack(save: Callable[..., bytes], tensors: Mapping[str, Any], meta: Any = None) -> bytes:
    """Named tensors and JSON in one file; ``save`` is that of safetensors for the framework."""
    return save(dict(tensors), metadata={OURS: json.dumps(meta)})


def unpack(load: Callable[[bytes], Any], content: bytes, source: str) -> tuple[dict[str, Any], Any]:
    """What :func:`pack` was given; DataError, which names ``source``, for anything else."""
    with reading(source, "choose weights or a checkpoint written by spatlib"):
        end = 8 + int.from_bytes(content[:8], "little")  # of the header, whose length comes first
        return load(content), json.loads(json.loads(content[8:end])["__metadata__"][OURS])


def _files(directory: Path) -> list[Path]:
    """What a run wrote into a directory, its settings last: they make the directory a run."""
    events = [*directory.glob(f"tensorboard/events.*.{OURS}.*")]
    return events + [directory / name for name in FILES if (directory / name).exists()]


def _stored(directory: Path) -> dict[str, Any]:
    """The contents of ``config.json``, or {} if there is no run; ConfigError if it is no run's."""
    if not (files := _files(directory)):
        return {}
    try:
        settings: dict[str, Any] = json.loads((directory / CONFIG).read_bytes())
        number = settings.get(MARKER, f"1 or a {CONFIG} of another program")
        if number == FORMAT:
            _configs(settings)
            itemgetter(*SETTINGS)(settings)  # a KeyError if one is missing
            return settings
        got = f"format {number} (weights of a run can be read by the engine's load_weights)"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        got = f"no valid {CONFIG} ({type(error).__name__}: {error})"
    what = f"{directory}, which has {files[0].name}, must hold a run of format {FORMAT}, got {got}"
    raise ConfigError(f"{what}: put the right files back, or choose another run_dir")


def _configs(settings: dict[str, Any]) -> tuple[SPATConfig, TrainConfig]:
    return SPATConfig.from_dict(settings["config"]), TrainConfig(**settings["training"])


def _differences(asked: Any, saved: Any, above: str = "") -> Iterator[str]:
    """Each setting that is not the same, with both values; but for those in FREE."""
    for key in saved | asked:
        now, before, name = asked.get(key), saved.get(key), above + key
        if isinstance(now, dict) and isinstance(before, dict):
            yield from _differences(now, before, f"{name}.")
        elif (
            now != before and name.removeprefix("training.") not in FREE
        ):  # None on top: it is the user's own
            new, old = (shown(v) if v is not None or above else "your own" for v in (now, before))
            yield f"{name} = {new} instead of {old}"


def _facts() -> dict[str, Any]:
    """Versions, git commit ("-dirty" if files differ; None outside a repository), command line."""
    versions, commit = {"python": platform.python_version()}, None
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(GIT, stderr=subprocess.DEVNULL, text=True, timeout=10)
    return {"versions": versions, "git": commit and commit.strip(), "argv": sys.argv}
