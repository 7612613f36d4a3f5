"""What happens around the steps of a training: validation, checkpoints, stopping."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .config import SPATConfig
from .errors import DataError
from .run import BEST, CHECKPOINT, EMA, LAST, Run
from .train_config import TrainConfig

VALIDATION_STEPS = 10
CLEAN, ROBUST, SINGLE = "val_clean", f"val_pgd{VALIDATION_STEPS}", "val_pgd1"
SHOWN = (CLEAN, ROBUST)  # measures of the last epoch that the progress bar shows
COLLAPSE = 0.5  # PGD accuracy below this share of its best, while PGD-1 accuracy is at its best


class Monitor:
    """Between an engine's loop and the run: the engine tells it of steps and epochs.

    Args:
        training: ``patience``, ``checkpoint_minutes``.
        validate: Clean, PGD-10 and PGD-1 accuracy of a model on held-out data, or None.
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
        self.best_weights: bytes | None = None
        self.signal: int | None = None
        self.saved = time.monotonic()

    def checkpoint(self) -> bytes | None:
        """The checkpoint to go on from, if the run is resumed; a new run deletes old files now."""
        return self.run.begin() if self.run is not None else None

    def resume(self, history: list[dict[str, float]]) -> None:
        """Read the best weights of the epochs so far."""
        if self.run is not None and best_epoch(history, self.measure) is not None:
            self.best_weights = self.run.read(BEST)
            if self.best_weights is None:
                raise DataError(
                    f"{self.run.directory / BEST} is missing, the weights of the best epoch: "
                    "put it back, or begin a new run"
                )

    def due(self) -> bool:
        """Whether the engine should call :meth:`save` after this step."""
        minutes = (time.monotonic() - self.saved) / 60
        return self.run is not None and (
            self.signal is not None or minutes >= self.training.checkpoint_minutes
        )

    def save(self, checkpoint: bytes | None) -> None:
        """Write the checkpoint, if there is one; then obey a signal, if one came."""
        if self.run is not None and checkpoint is not None:
            self.run.write(CHECKPOINT, checkpoint)
            self.saved = time.monotonic()
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
        """Validate, keep the best weights, write the row.

        Args:
            history: The rows so far; what is measured is added to the last.
            model: What to validate: the averaged network, if there is one.
            weights, averaged: Return the file contents of the weights and of their average.
        """
        if self.validate is not None:
            history[-1].update(self.validate(model))
            if len(history) > self.training.eps_warmup:
                _warn_of_collapse(history)
        best = best_epoch(history, self.measure)
        if best == history[-1]["epoch"]:
            self.best_weights = (averaged or weights)()
        if self.run is not None:
            if best == history[-1]["epoch"] and self.best_weights is not None:
                self.run.write(BEST, self.best_weights)
            self.run.write(LAST, weights())
            if averaged is not None:
                self.run.write(EMA, averaged())
            self.run.write_history(history)
        if self.on_epoch is not None:
            self.on_epoch(history[-1])

    def stopped(self, history: list[dict[str, float]]) -> bool:
        """Whether training is over: all epochs done, or no better one for ``patience`` epochs."""
        if len(history) >= self.training.epochs:
            return True
        patience, best = self.training.patience, best_epoch(history, self.measure)
        if patience is None or best is None:
            return False
        return len(history) - max(best, self.training.eps_warmup) >= patience

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM stop the run after the step and a save, a second one at once."""
        if self.run is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

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


def validation(engine: Any, data: Any, config: SPATConfig) -> Callable[[Any], dict[str, float]]:
    """The measure of :class:`Monitor`; one step from a random start is Wong et al.'s FGSM."""

    def validate(model: Any) -> dict[str, float]:
        report = engine.evaluate(model, data, config, steps=VALIDATION_STEPS, attacks=("pgd",))
        single = engine.evaluate(model, data, config, steps=1, attacks=("pgd",))
        return {
            CLEAN: report.metrics["clean"],
            ROBUST: report.metrics[f"pgd{VALIDATION_STEPS}"],
            SINGLE: single.metrics["pgd1"],
        }

    return validate


def _warn_of_collapse(history: list[dict[str, float]]) -> None:
    """Catastrophic overfitting (Wong et al. 2020, arXiv:2001.03994): robust to one step only."""
    *earlier, last = history
    if earlier and (
        last[ROBUST] < COLLAPSE * max(row[ROBUST] for row in earlier)
        and last[SINGLE] >= max(row[SINGLE] for row in earlier)
    ):
        warnings.warn(
            f"catastrophic overfitting in epoch {last['epoch']:g}: accuracy under PGD fell to "
            f"{last[ROBUST]:.3f} while that under one step rose to {last[SINGLE]:.3f}; take more "
            "or smaller attack steps, or a smaller lr",
            RuntimeWarning,
            stacklevel=2,
        )
