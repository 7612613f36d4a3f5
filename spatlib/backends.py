"""The engines: what each provides, and how one is found without importing the others."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

from .config import SPATConfig
from .errors import BackendError
from .monitor import Monitor
from .result import Report
from .train_config import TrainConfig

BACKENDS = {"torch": "spatlib_torch.engine", "tf": "spatlib_tf.engine"}
INSTALL = {"torch": "run pip install torch", "tf": "run pip install tensorflow keras"}
ENTRY_POINTS = "spatlib.backends"  # group under which other packages register an engine module


class Engine(Protocol):
    """One framework's training and evaluation (a module is enough)."""

    CHANNELS_FIRST: bool

    def build_model(
        self, name: str, seed: int, *, shape: Sequence[int], classes: int, mean: Any, std: Any
    ) -> Any:
        """The registered model of this name, with initial weights fixed by the seed.

        Args:
            name: A key of the engine's registry; ConfigError for another.
            seed: At least 0.
            shape: One input, in the engine's layout.
            classes: Number of logits.
            mean, std: Per channel, of the normalisation that is its first layer; or None.
        """

    def check(self, data: Any, config: SPATConfig) -> None:
        """Raise DataError unless all inputs and labels have the right shapes and values."""

    def fit(
        self,
        model: Any,
        data: Any,
        config: SPATConfig,
        training: TrainConfig,
        label: str,
        monitor: Monitor | None = None,
        *,
        ordinary: bool = False,
    ) -> list[dict[str, float]]:
        """Train in place, return the history; ordinary training uses the bounds of config only.

        The attack of an epoch is that of :func:`spatlib.schedule.warmed_up`. The monitor is told
        of steps and epochs, holds the checkpoint to go on from, and says when to save and to stop.
        """

    def weights(self, model: Any) -> bytes:
        """All weights, as the content of a safetensors file."""

    def load_weights(self, model: Any, content: bytes, source: str = "weights") -> None:
        """Put back what :meth:`weights` gave; DataError if it is that of another architecture."""

    def examples(
        self, model: Any, data: Any, config: SPATConfig, *, count: int = 8, seed: int = 0
    ) -> dict[str, Any]:
        """A few attacked examples, as :func:`spatlib.plots.sheet` takes them."""

    def logits(self, model: Any, x: Any, batch_size: int = 256) -> Any:
        """Logits (N, K) of arrays in the engine's layout, in NumPy, in inference mode."""

    def evaluate(
        self,
        model: Any,
        data: Any,
        config: SPATConfig,
        *,
        attacks: Sequence[Any] = ("pgd", "margin"),
        steps: int = 20,
        restarts: int = 1,
        batch_size: int = 256,
        seed: int = 0,
        device: str | None = None,
    ) -> Report:
        """Accuracies, clean and under attack, as :func:`spatlib.evaluate` says."""


def load_extra(module: str, extra: str = "data") -> Any:
    """Import a module that only some uses need, from one of the extras.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BackendError(
            f"{module} cannot be imported ({type(error).__name__}: {error}): "
            f"run pip install 'spatlib[{extra}]'"
        ) from error


def load_engine(name: str) -> Engine:
    """Import the engine called ``name``.

    Raises:
        BackendError: No such backend, or its framework is not installed.
    """
    known = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | BACKENDS
    if not isinstance(name, str) or name not in known:
        raise BackendError(f"backend must be one of {', '.join(map(repr, known))}, got {name!r}")
    try:
        return cast(Engine, importlib.import_module(known[name]))
    except BackendError:
        raise
    except ImportError as error:
        raise BackendError(
            f"backend {name!r} cannot be imported ({type(error).__name__}: {error}): "
            f"{INSTALL.get(name, 'see the package that registered it')}"
        ) from error
