"""The engines: what each provides, and how one is found without importing the others."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

from .config import SPATConfig, TrainConfig
from .errors import BackendError
from .result import Report

BACKENDS = {"torch": "spatlib_torch.engine", "tf": "spatlib_tf.engine"}
INSTALL = {"torch": "pip install torch", "tf": "pip install tensorflow keras"}
ENTRY_POINTS = "spatlib.backends"  # group under which other packages register an engine module


class Engine(Protocol):
    """One framework's training and evaluation (a module is enough)."""

    CHANNELS_FIRST: bool

    def build_model(self, recipe: str, seed: int) -> Any:
        """The recipe's model, with initial weights fixed by the seed."""

    def check(self, data: Any, config: SPATConfig) -> None:
        """Raise DataError unless all inputs and labels have the right shapes and values."""

    def fit(
        self,
        model: Any,
        data: Any,
        config: SPATConfig | None,
        training: TrainConfig,
        label: str,
    ) -> list[dict[str, float]]:
        """Train in place, return the history; no config is ordinary training."""

    def evaluate(
        self,
        model: Any,
        data: Any,
        config: SPATConfig,
        *,
        steps: int = 20,
        restarts: int = 1,
        batch_size: int = 256,
        seed: int = 0,
        device: str | None = None,
    ) -> Report:
        """Accuracies, clean and under PGD with cross-entropy and with the margin loss."""


def load_engine(name: str) -> Engine:
    """Import the engine called ``name``.

    Raises:
        BackendError: No such backend, or its framework is not installed.
    """
    others = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    known = {**others, **BACKENDS}
    if not isinstance(name, str) or name not in known:
        raise BackendError("backend", expected=f"one of {', '.join(map(repr, known))}",
                           received=repr(name), fix="Choose one of these names.")  # fmt: skip
    try:
        return cast(Engine, importlib.import_module(known[name]))
    except ImportError as error:
        if isinstance(error, BackendError):
            raise
        advice = INSTALL.get(name, "see the package that registered it")
        raise BackendError(f"backend {name!r}", expected="its framework to be installed",
                           received=f"{type(error).__name__}: {error}",
                           fix=f"Run: {advice}") from error  # fmt: skip
