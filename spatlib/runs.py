"""Run directories: settings, metrics and weights of one training; each file is replaced whole."""

import csv
import json
import os
import subprocess
import sys
import warnings
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from time import time
from typing import Any

from filelock import FileLock, Timeout

from .config import SPATConfig, TrainConfig
from .engines import OURS, Rows, engine_of, load_engine
from .errors import AnyPath, ConfigError, differences, require
from .storage import SUMS, Content, naming, read, replace

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.csv", "checkpoint.safetensors"
LAST, BEST, EMA = "last.safetensors", "best.safetensors", "ema.safetensors"
WEIGHTS = {"best": BEST, "ema": EMA, "last": LAST}
RESULT, EVALUATION, KEPT = "result.json", "evaluation.json", "evaluation.npz"
AUDIT, DRIFT, CURVES, SHEET = "audit.json", "audit.png", "curves.png", "sheet.png"
PAGE = "report.html"
READ = (CHECKPOINT, *WEIGHTS.values(), METRICS, CONFIG)  # those that are read again
FILES = (RESULT, EVALUATION, KEPT, AUDIT, DRIFT, CURVES, SHEET, PAGE, *READ)
SPARE = (METRICS, LAST, EMA)  # what a training that goes on can do without
LOCK, MARKER, FORMAT = ".spatlib.lock", "spatlib_run", 3  # of config.json: marker and its value
# Settings that may differ when a run goes on; data have a fingerprint, batches a global_batch.
FREE = {"epochs", "device", "progress", "checkpoint_minutes", "num_workers", "batch_size"}
FREE = {f"training.{name}" for name in FREE} | {"data.name", "data.dir"}
PACKAGES = ("spatlib", "numpy", "torch", "tensorflow", "tensorflow-cpu", "keras")
GIT = ("git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40")


class Run:
    """The files of one run, which one process writes.

    docs/using.md describes them. ``settings`` is what config.json is to hold, {} without a run.
    ``resume`` goes on with a run that is there (``resumed``) or begins one; ``overwrite`` deletes
    its files when training begins. ConfigError if a run is there and neither was asked for, or
    files of others; DataError if a file is not as the run wrote it.
    """

    def __init__(self, place: AnyPath, *, resume: bool = False, overwrite: bool = False) -> None:
        named = isinstance(place, str | os.PathLike) and os.fspath(place) != ""
        fits = named and (os.path.isdir(place) or not os.path.exists(place))
        require(fits, "run_dir", "name a directory", os.fspath(place) if named else place)
        require(not (resume and overwrite), "resume", "be left out beside overwrite", resume)
        self.directory = Path(place).absolute()
        self.parent: Run | None = None  # the one that this one is a part of
        self.silent = False  # in all but the first of several processes, which do not write
        self._found = found = self._stored()
        if found and not (resume or overwrite):
            how = "go on by resume=True, or delete it by overwrite=True"
            raise ConfigError(f"run_dir must be new, got {self.directory} with a run: {how}")
        self.settings = {**found} if resume else {}
        self.resumed = bool(self.settings)
        self._old = [] if self.resumed else [self.directory]  # whose files begin() deletes
        own = overwrite and found and found["training"]["baseline"]
        for name in SPATConfig.from_dict(found["config"]).baselines if own else ():
            baseline = Run(self.directory / name, overwrite=True)  # an error if another's
            self._old.insert(0, baseline.directory)
        # The lock of a process that ended is free: those that it forked do not hold it.
        self._lock = FileLock(self.directory / LOCK, blocking=False, thread_local=False)
        self._events: Any = None  # what this process has begun to write for TensorBoard

    def part(self, name: str) -> "Run":
        """The run in a subdirectory, with the settings of this one; it goes on if this one does."""
        place = self.directory / name
        part = Run(place, resume=self.resumed, overwrite=place in self._old)
        part.parent, part.silent, part._lock = self, self.silent, self._lock
        part.describe(self._asked, self.settings["versions"]["threads"])
        part.settings["network"] = name
        return part

    def describe(self, settings: dict[str, Any], threads: object = 0) -> None:
        """Set what ``config.json`` is to hold; ConfigError if the run that goes on has others."""
        self._asked = asked = json.loads(json.dumps(settings, default=os.fspath))
        facts = _facts(threads)
        if not self.resumed:
            self.settings = {MARKER: FORMAT} | asked | facts
        different = [*differences(asked, {k: self.settings[k] for k in asked}, FREE)]
        if first := [each for each in different if "fingerprint" not in each] or different:
            what = f"resume needs the settings and data of the run in {self.directory}"
            raise ConfigError(f"{what}, got {', '.join(first)}: leave them out, or begin a new run")
        changed = ", ".join(differences(facts["versions"], self.settings["versions"]))
        if changed and self.parent is None:
            warnings.warn(f"the run goes on, perhaps not bit for bit: {changed}", RuntimeWarning, 3)
        self.settings |= asked

    def begin(self) -> None:
        """Lock, and check all files or delete what this run replaces."""
        if self.silent:
            return
        if self.parent is not None:
            self.parent.begin()
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.parent is None:
            with suppress(Timeout):
                self._lock.acquire()
            alone = self._lock.is_locked and self._stored() == self._found
            what = "be no directory that another training writes (wait until it ends)"
            require(alone, "run_dir", what, str(self.directory))
        for place in self._old:
            for path in (*_files(place), place / SUMS):
                path.unlink(missing_ok=True)
        sums = {name: [sha256(self.read(name) or b"").hexdigest()] for name in READ}
        replace(self.directory / SUMS, json.dumps(sums).encode())
        self._old, self.resumed, self._found = [], True, {**self.settings}
        self.write(CONFIG, json.dumps(self.settings, indent=2).encode())

    def close(self) -> None:
        """Leave the directory to other trainings."""
        with suppress(OSError):  # all that could be written is
            if self._events is not None:
                self._events.close()
        self._lock.release(force=True)

    def _stored(self) -> dict[str, Any]:
        """What ``config.json`` holds, {} if there is no run; ConfigError if it is not a run's."""
        if not (files := _files(self.directory)):
            return {}
        content = self.read(CONFIG) or b""
        try:
            settings: dict[str, Any] = json.loads(content)
            number = settings.get(MARKER, f"1 or a {CONFIG} of another program")
            lost = "" if (self.directory / SUMS).exists() else f" without {SUMS}"
            if number == FORMAT and not lost:
                return settings
            got = f"format {number}{lost} (the engine's load_weights can read its weights)"
        except (ValueError, AttributeError) as error:
            got = f"no valid {CONFIG} ({type(error).__name__}: {error})"
        what = f"{self.directory}, which has {files[0].name}, must hold a run of format {FORMAT}"
        raise ConfigError(f"{what}, got {got}: put the right files back, or choose another run_dir")

    def configs(self) -> tuple[SPATConfig, TrainConfig]:
        """The threat model and method, of a part its own, and the schedule; ConfigError without."""
        if not self.settings:
            raise ConfigError(f"run_dir must hold a run, got {self.directory} without {CONFIG}")
        config = SPATConfig.from_dict(self.settings["config"])
        config = config.baselines.get(self.settings.get("network", ""), config)
        return config, TrainConfig(**self.settings["training"])

    def read(self, name: str) -> bytes | None:
        """The contents of a file, or None if there is none; DataError unless it is the run's."""
        return read(self.directory / name, spare=name in SPARE)

    def write(self, name: str, content: Content) -> None:
        """Replace a file whole: a process killed here leaves the old content or the new."""
        if self.silent:
            return
        if name in READ and self._lock.is_locked:  # else no training has begun
            (self.directory / SUMS).stat()  # an error if another directory is in its place
        replace(self.directory / name, content, summed=name in READ)

    def history(self) -> Rows:
        """The rows of ``metrics.csv``; DataError if it is damaged."""
        rows = csv.DictReader((self.read(METRICS) or b"").decode().splitlines())
        return [{name: float(v or "nan") for name, v in row.items()} for row in rows]

    def write_history(self, history: Rows) -> None:
        """Write the last row for TensorBoard, and ``metrics.csv``, if that has other rows."""
        lines = history[-1], *(row.values() for row in history)
        content = "".join(",".join(map(str, line)) + "\r\n" for line in lines).encode()
        if not self.silent and content != self.read(METRICS):
            self._tell(history[-1])  # first: a process that is killed in between leaves no gap
            self.write(METRICS, content)

    def _tell(self, row: dict[str, float]) -> None:
        """Add a row to the events of this process, if tensorboardX is there to write them."""
        with suppress(ImportError), naming(self.directory / "tensorboard") as place:
            # SummaryWriter would write in a thread, and hang on a full disk.
            board, epoch = import_module("tensorboardX.event_file_writer"), int(row["epoch"])
            values = [{"tag": name, "simple_value": value} for name, value in row.items()]
            facts: list[dict[str, Any]] = [{"summary": {"value": values}}]
            if self._events is None:
                place.mkdir(exist_ok=True)
                self._events = board.EventsWriter(str(place / "events"), f".{OURS}.{epoch}")
                # START hides what a process that was killed wrote of this epoch and later ones.
                facts.insert(0, {"session_log": {"status": 1}})
            for fact in facts:
                event = board.event_pb2.Event(wall_time=time(), step=epoch, **fact)
                self._events.write_event(event)
            self._events.flush()


def load_model(run_dir: AnyPath, weights: str | None = None, model: Any = None) -> tuple[Any, Run]:
    """The network of a run that spatlib built by name, on the CPU with its weights; and the run.

    A network of your own, built as it was for the training, is passed as ``model`` to get them.

    ``weights`` are ``"best"`` (of the best robust validation accuracy), ``"ema"`` (averaged) or
    ``"last"``, by default the first that there are. ConfigError if there is no run, no such
    weights or no network; DataError if the file is damaged, or the network another.
    """
    run = Run(run_dir, resume=True)
    run.configs()  # an error unless there is a run
    there = [name for name, file in WEIGHTS.items() if (run.directory / file).exists()]
    name = weights or next(iter(there), "last")
    require(name in there, "weights", f"be one of {there}, those in {run.directory} so far", name)
    known, content = run.settings["architecture"], run.read(WEIGHTS[name]) or b""
    what = f"be given for the run in {run.directory}, whose network was your own"
    require(known is not None or model is not None, "model", what, model)
    engine = load_engine(run.settings["backend"]) if model is None else engine_of(model)
    model = engine.build_model(seed=0, **known) if model is None else model
    engine.load_weights(model, content, str(run.directory / WEIGHTS[name]))
    return model, run


def _files(directory: Path) -> list[Path]:
    """What a run wrote into a directory, its settings last: they make the directory a run."""
    events = [*directory.glob(f"tensorboard/events.*.{OURS}.*")]
    return events + [directory / name for name in FILES if (directory / name).exists()]


def _facts(threads: object) -> dict[str, Any]:
    """Versions, git commit ("-dirty" if files differ; None outside a repository), command line."""
    versions, commit = {"python": python_version(), "threads": str(threads or os.cpu_count())}, None
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    with suppress(OSError, subprocess.SubprocessError):
        commit = subprocess.check_output(GIT, stderr=subprocess.DEVNULL, text=True, timeout=10)
    return {"versions": versions, "git": commit and commit.strip(), "argv": sys.argv}
