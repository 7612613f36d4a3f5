"""What happens around the steps of a training: progress, validation, files, stopping."""

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .config import TrainConfig
from .data import as_array
from .engines import Rows
from .errors import require, warn_of_holes
from .report import bar
from .runs import BEST, CHECKPOINT, EMA, LAST, Run

CLEAN, ROBUST, SINGLE = "val_clean", "val_pgd10", "val_pgd1"  # accuracies on held-out data
MEANS = ("loss", "adv_accuracy", "stall_rate", "hole_rate")  # over the examples of an epoch
# By the progress bar, in few columns.
SHOWN = {"loss": "loss={:.3g}", "adv_accuracy": "adv={:.0%}", CLEAN: "val={:.0%}"}
SHOWN |= {ROBUST: "pgd10={:.0%}"}
READ_EVERY = 50  # steps between two looks at the loss, each of which waits for the device
COLLAPSE = 0.5  # robust accuracy has collapsed when it is below this share of its best
Content = Callable[[], bytes | Iterable[bytes]]  # whole, or part by part


@dataclass(eq=False)
class Monitor:
    """How to train, for an engine's loop, which tells it of steps and epochs; it writes the run."""

    training: TrainConfig
    validate: Callable[[Any], dict[str, float]] | None = None  # CLEAN, ROBUST, SINGLE of a model
    run: Run | None = None  # where to write, if anywhere
    on_epoch: Callable[[dict[str, Any]], None] | None = None  # called with each new row
    ordinary: bool = False  # the training is without attack
    callbacks: Sequence[Any] = ()  # of Keras
    label: str = "SPAT"  # of the network in print
    turn: str = ""  # which of how many it is
    signal: int | None = field(default=None, init=False)  # the number of one that stops the run
    _saved: float = field(default_factory=time.monotonic, init=False)
    _rows: Rows = field(default_factory=list, init=False)  # not yet in metrics.csv
    _best: bytes | None = field(default=None, init=False)  # where no file has them

    def __post_init__(self) -> None:
        # What is highest in the best epoch: without attack robustness is best before training.
        self.measure = CLEAN if self.ordinary else ROBUST

    def progress(self, steps: int) -> Any:
        """A bar for all steps; ConfigError if the schedule needs their number, unknown if 0."""
        schedule, what = self.training.schedule, "be 'constant' for data without a len()"
        require(steps > 0 or schedule == "constant", "schedule", what, schedule)
        shown: Any = {"progress": self.training.progress, "unit": "step", "total": steps or None}
        return bar(desc=f"{self.label} {self.turn}".rstrip(), **shown)

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from, if there is one."""
        return self.run.read(CHECKPOINT) if self.run is not None and self.run.resumed else None

    def begin(self, history: Rows) -> None:
        """Go on after these rows with the best weights so far; a new run deletes old files now."""
        if self.run is not None:
            self.run.begin()
            if history:
                self.run.write_history(history)  # the process may have ended before the last one
                self._best = self.run.read(BEST) if self.run.silent else None

    def due(self) -> bool:
        """Whether the engine should call :meth:`save` after this step."""
        late = time.monotonic() - self._saved >= 60 * self.training.checkpoint_minutes
        return self.run is not None and (late or self.signal is not None)

    def best_weights(self) -> bytes | None:
        """Those of the best epoch so far, if there is validation."""
        return self._best if self.run is None or self.run.silent else self.run.read(BEST)

    def save(self, checkpoint: bytes | Iterable[bytes] | None) -> None:
        """Write the checkpoint, if any, and after it new rows; then obey a signal, if one came."""
        if self.run is not None and checkpoint is not None:
            self.run.write(CHECKPOINT, checkpoint)
            self._saved = time.monotonic()
        if self.run is not None and self._rows:
            self.run.write_history(self._rows)
            self._rows = []
        if number := self.signal:
            self.signal = None
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    def epoch(
        self, history: Rows, model: Any, weights: Content, averaged: Content | None = None
    ) -> None:
        """Validate ``model``, which has the average if there is one; keep the best weights."""
        warn_of_holes(history[-1].get("hole_rate", 0.0), f"the steps of epoch {len(history)}")
        if self.validate is not None:
            history[-1].update(self.validate(model))
            *earlier, last = history
            robust, single = (max((r[k] for r in earlier), default=0.0) for k in (ROBUST, SINGLE))
            # Robust to one step only (Wong et al. 2020, arXiv:2001.03994).
            collapsed = last[ROBUST] < COLLAPSE * robust and last[SINGLE] >= single
            if collapsed and len(history) > self.training.eps_warmup:
                what = f"{last[ROBUST]:.3f} under PGD, {last[SINGLE]:.3f} under one step"
                text = f"catastrophic overfitting in epoch {last['epoch']:g}, accuracy {what}"
                warnings.warn(f"{text}: take more or smaller steps", RuntimeWarning, stacklevel=2)
        if self.run is not None:
            self.run.write(LAST, weights())
            if averaged is not None:
                self.run.write(EMA, averaged())
            self._rows = list(history)
        if best_epoch(history, self.measure) == history[-1]["epoch"]:
            if self.run is not None and not self.run.silent:
                self.run.write(BEST, self.run.directory / (EMA if averaged else LAST))
            else:
                made = (averaged or weights)()
                self._best = made if isinstance(made, bytes) else b"".join(made)
        if self.on_epoch is not None:
            self.on_epoch({"network": self.label, **history[-1]})

    def stopped(self, history: Rows) -> bool:
        """Whether training is over: all epochs done, or no better one for ``patience`` epochs."""
        done, patience = len(history), self.training.patience
        last = max(best_epoch(history, self.measure) or done, self.training.eps_warmup)
        return done >= self.training.epochs or (patience is not None and done - last >= patience)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop a run after the step and a save, a second one at once."""
        with closing(self.run) if self.run else nullcontext(), ExitStack() as handlers:

            def receive(number: int, frame: Any) -> None:
                self.signal = number
                handlers.close()

            main = threading.current_thread() is threading.main_thread()
            for number in (signal.SIGINT, signal.SIGTERM) if self.run and main else ():
                before = signal.getsignal(number)  # None: one that Python could not put back
                if before not in (signal.SIG_IGN, None):
                    handlers.callback(signal.signal, number, before)
                    signal.signal(number, receive)
            yield
            self.save(None)  # a signal may have come after the last step


def check_repeated(again: Callable[[], Any]) -> None:
    """RuntimeWarning unless two passes through the data, which ``again`` begins, begin alike."""
    one, other = (next(iter(again())) for _ in range(2))
    if not all(np.array_equal(as_array(a), as_array(b)) for a, b in zip(one, other, strict=True)):
        what = "passes through its data differ (persistent workers, generators of its own)"
        warnings.warn(f"the run goes on, but not bit for bit: {what}", RuntimeWarning, 2)


def best_epoch(history: Rows, measure: str = ROBUST) -> int | None:
    """The first epoch of the highest validation accuracy, if there was validation."""
    validated = [row for row in history if measure in row]
    return int(max(validated, key=lambda row: row[measure])["epoch"]) if validated else None


def show(progress: Any, step: int, row: Mapping[str, float]) -> None:
    """Move the bar to this step, with measures of its epoch beside it."""
    progress.update(step - progress.n)
    shown = (form.format(row[name]) for name, form in SHOWN.items() if name in row)
    progress.set_postfix_str(" ".join(shown))
