"""What happens around the steps of a training: validation, files, checkpoints, stopping."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .errors import DataError
from .runs import BEST, CHECKPOINT, EMA, LAST, Run
from .training import TrainConfig

CLEAN, ROBUST, SINGLE = "val_clean", "val_pgd10", "val_pgd1"  # accuracies on held-out data
SHOWN = (CLEAN, ROBUST)  # measures of the last epoch that the progress bar shows
COLLAPSE = 0.5  # robust accuracy has collapsed when it is below this share of its best


class Monitor:
    """Between an engine's loop and the run: the engine tells it of steps and epochs.

    Args:
        training: ``epochs``, ``patience``, ``eps_warmup``, ``checkpoint_minutes``.
        validate: The accuracies CLEAN, ROBUST and SINGLE of a model; None: there is no validation.
        run: Where to write, if anywhere.
        on_epoch: Called with each new row of the history.
        measure: Column of the history that is highest in the best epoch.
    """

    def __init__(
        self,
        training: TrainConfig,
        validate: Callable[[Any], dict[str, float]] | None = None,
        run: Run | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        measure: str = ROBUST,
    ) -> None:
        self.training, self.validate, self.run, self.on_epoch = training, validate, run, on_epoch
        self.measure = measure
        self.best_weights: bytes | None = None  # of the best epoch so far, if there is validation
        self.signal: int | None = None  # the number of the one that is to stop the run
        self._saved = time.monotonic()
        self._rows: list[dict[str, float]] = []  # not yet in metrics.csv

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from, if there is one; a new run deletes old files now."""
        return self.run.begin() if self.run is not None else None

    def resume(self, history: list[dict[str, float]]) -> None:
        """Go on after these rows, those of the checkpoint, with the best weights so far."""
        if self.run is None or not history:
            return
        self.run.write_history(history)  # the process may have ended before it wrote the last one
        if best_epoch(history, self.measure) is not None:
            self.best_weights = self.run.read(BEST)
            if self.best_weights is None:
                path = self.run.directory / BEST
                raise DataError(f"{path}, the weights of the best epoch, is missing: put it back")

    def due(self) -> bool:
        """Whether the engine should call :meth:`save` after this step."""
        late = time.monotonic() - self._saved >= 60 * self.training.checkpoint_minutes
        return self.run is not None and (late or self.signal is not None)

    def save(self, checkpoint: bytes | None) -> None:
        """Write the checkpoint, if there is one, then new rows; then obey a signal, if one came.

        Engines call it after each epoch too. Rows come after the checkpoint, as a run that has
        rows without one is taken for damaged.
        """
        if self.run is not None and checkpoint is not None:
            self.run.write(CHECKPOINT, checkpoint)
            self._saved = time.monotonic()
        if self.run is not None and self._rows:
            self.run.write_history(self._rows)
            self._rows = []
        number, self.signal = self.signal, None
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number is not None:
            raise SystemExit(128 + number)

    def epoch(
        self,
        history: list[dict[str, float]],
        model: Any,
        weights: Callable[[], bytes],
        averaged: Callable[[], bytes] | None = None,
    ) -> None:
        """Validate ``model``, adding to the last row; keep the weights if they are the best.

        ``weights`` and ``averaged`` return the file contents of the weights and of their average,
        which is what ``model`` has, if there is one.
        """
        if self.validate is not None:
            history[-1].update(self.validate(model))
            if len(history) > self.training.eps_warmup:
                _warn_of_collapse(history)
        best = best_epoch(history, self.measure) == history[-1]["epoch"]
        if best:
            self.best_weights = (averaged or weights)()
        if self.run is not None:
            if best and self.best_weights is not None:
                self.run.write(BEST, self.best_weights)
            self.run.write(LAST, weights())
            if averaged is not None:
                self.run.write(EMA, averaged())
            self._rows = list(history)
        if self.on_epoch is not None:
            self.on_epoch(history[-1])

    def stopped(self, history: list[dict[str, float]]) -> bool:
        """Whether training is over: all epochs done, or no better one for ``patience`` epochs."""
        done, patience = len(history), self.training.patience
        last = max(best_epoch(history, self.measure) or done, self.training.eps_warmup)
        return done >= self.training.epochs or (patience is not None and done - last >= patience)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop a run after the step and a save, a second one at once.

        A signal that the process ignores stays ignored; one with a handler that Python did not
        set is left alone, as that could not be put back.
        """
        if self.run is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        before = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def receive(number: int, frame: Any) -> None:
            self.signal = number
            restore()

        for number in before:
            signal.signal(number, receive)
        try:
            yield
            self.save(None)  # a signal may have come after the last step
        finally:
            restore()


def best_epoch(history: list[dict[str, float]], measure: str = ROBUST) -> int | None:
    """The first epoch of the highest validation accuracy, if there was validation."""
    validated = [row for row in history if measure in row]
    return int(max(validated, key=lambda row: row[measure])["epoch"]) if validated else None


def _warn_of_collapse(history: list[dict[str, float]]) -> None:
    """Catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994): robust to one step only."""
    *earlier, last = history
    robust, single = (max((row[name] for row in earlier), default=0.0) for name in (ROBUST, SINGLE))
    if last[ROBUST] < COLLAPSE * robust and last[SINGLE] >= single:
        warnings.warn(
            f"catastrophic overfitting in epoch {last['epoch']:g}: accuracy under PGD fell to "
            f"{last[ROBUST]:.3f} while that under one step rose to {last[SINGLE]:.3f}; take more "
            "or smaller attack steps, or a smaller lr",
            RuntimeWarning,
            stacklevel=2,
        )
