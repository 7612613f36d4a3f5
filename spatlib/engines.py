"""The engines: what each provides, and how one is found without importing the others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from .errors import BackendError, ConfigError

if TYPE_CHECKING:
    from .config import SPATConfig, Threat
    from .evaluate import Evaluation
    from .monitor import Monitor
    from .training import TrainConfig

BACKENDS = {"torch": "spatlib_torch.engine", "tf": "spatlib_tf.engine"}
PACKAGES = {"torch": "torch", "keras": "tf"}  # whose models belong to which of them
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

    def check(self, data: Any, threat: Threat) -> None:
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
        optimizer: Any = None,
    ) -> list[dict[str, float]]:
        """Train in place, return the history; ordinary training uses the bounds of config only.

        ``optimizer`` is that of :func:`spatlib.train`; None is SGD of ``training``.
        The attack of an epoch is that of :func:`spatlib.training.warmed_up`. The monitor is told
        of steps and epochs, holds the checkpoint to go on from, and says when to save and to stop.
        """

    def weights(self, model: Any) -> bytes:
        """All weights, as the content of a safetensors file."""

    def load_weights(self, model: Any, content: bytes, source: str = "weights") -> None:
        """Put back what :meth:`weights` gave; DataError if it is that of another architecture."""

    def perturb(
        self, model: Any, x: Any, y: Any, config: SPATConfig, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """x' of a batch and the mask (None: all ones), as arrays in the engine's layout."""

    def logits(self, model: Any, x: Any, batch_size: int = 256) -> np.ndarray:
        """Logits (N, K) of arrays in the engine's layout, in inference mode."""

    def vjp(
        self, model: Any, x: np.ndarray
    ) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
        """The logits at x, and the map from a cotangent (N, K) to the gradient in x, once."""

    def survivors(
        self, model: Any, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
    ) -> tuple[list[np.ndarray], int]:
        """Integers (1 + attacks, n) per batch, the labels and the verdicts; and the classes."""


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
    known = _others() | BACKENDS
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


def engine_of(model: Any) -> Engine:
    """The engine of a model, by the package that its class is derived from.

    Raises:
        ConfigError: A model of none of them.
    """
    packages = {module.partition(".")[0]: name for name, module in _others().items()} | PACKAGES
    for kind in type(model).__mro__:
        name = packages.get(kind.__module__.partition(".")[0])
        if name is not None:
            return load_engine(name)
    raise ConfigError(
        f"model must be a torch.nn.Module or a keras.Model that returns logits, got "
        f"{type(model).__name__}"
    )


def _others() -> dict[str, str]:
    """The engine modules that other packages registered, by name."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
