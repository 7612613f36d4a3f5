"""What the tests of attacks and training ask of an engine, and the network that they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from spatlib import Mask, SPATConfig
from spatlib.core.feasible import Draws
from spatlib.engines import Engine

CHANNELS, HEIGHT, WIDTH, HIDDEN, CLASSES = 3, 2, 2, 7, 4
SIZE = CHANNELS * HEIGHT * WIDTH


def initial_weights(seed: int = 0, size: int = SIZE) -> list[np.ndarray]:
    """w1 (D, H), b1 (H,), w2 (H, K), b2 (K,) in float64."""
    rng = np.random.default_rng(seed)
    shapes = ((size, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    return [rng.normal(size=shape) for shape in shapes]


def mask_draws(draws: Draws, mask: Mask | None, label: Any, pixels: Any) -> tuple[Any, Any, Any]:
    """The (offsets, probes, noise) of a mask as the oracle takes them; None for what is not drawn.

    offsets: the other classes of ``classes``, as distances from the label; probes: signs (probes,
    N, CLASSES); noise: (N, pixels). ``label`` (N, CLASSES) is one-hot of class 0 in every row,
    ``pixels`` shaped like the inputs with one channel.
    """
    if mask is None:
        return None, None, None
    if mask.score == "rms":
        return None, np.asarray(draws.signs(label, mask.probes)), None
    if mask.score == "random":
        return None, None, np.asarray(draws.uniform(pixels, "mask")).reshape(len(label), -1)
    if mask.classes in (None, CLASSES):
        return None, None, None
    chosen = np.asarray(draws.classes(label, mask.classes))
    return chosen[1:, 0].argmax(axis=1).tolist(), None, None


def to_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


class Entry(Protocol):
    """A tanh network of :func:`initial_weights` in one framework, trained and attacked by it.

    Arrays in and out are NumPy's. Inputs are (N, C, H, W) in [0, 1] and labels integers (N,),
    whatever the layout of the framework. Everything is computed in float64, unless inputs or
    network are of a lower precision: results have to equal the oracle's to 1e-10.
    """

    module: Engine  # registered under the entry's name

    def __init__(
        self,
        weights: list[np.ndarray],
        lr: float = 0.1,
        momentum: float = 0.9,
        precision: str = "float64",
    ) -> None:
        """Logits tanh(x w1 + b1) w2 + b2 of x flattened in the order C, H, W.

        ``lr`` and ``momentum`` are those of SGD; ``precision`` is the network's,
        ``"bfloat16"`` and ``"float16"`` too.
        """

    def weights(self) -> list[np.ndarray]:
        """As they are now, in the shapes of :func:`initial_weights`."""

    def train_step(
        self,
        x: np.ndarray,
        y: np.ndarray,
        start: np.ndarray,
        config: SPATConfig,
        seed: int,
        average: list[np.ndarray] | None = None,
    ) -> float:
        """One update by the loss of the method, and that loss before it; random masks by seed.

        ``average`` are weights as :meth:`weights` has them.
        """

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        """(N, H * W)."""

    def perturb(
        self,
        x: np.ndarray,
        y: np.ndarray,
        start: np.ndarray,
        config: SPATConfig,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        """x' in the shape and the dtype of x; mask (N, 1, H, W)."""

    def stall_rate(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig
    ) -> float:
        """Share of example-steps at which unguarded ascent would have pulled back."""

    def evaluate(
        self,
        x: np.ndarray,
        y: np.ndarray,
        config: SPATConfig,
        restarts: int = 1,
        *,
        attacks: Sequence[str] = ("pgd", "margin"),
        steps: int = 2,
        seen: list[np.ndarray] | None = None,
    ) -> dict[str, float]:
        """The metrics; ``seen`` takes all (N, C, H, W) that the network is shown, in order."""

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        """Of the scalar ``function(ops, label, *logits)``, one for each of the logits."""

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any, Any]:
        """What the mask of a call with this seed and a start draws: :func:`mask_draws`."""

    @staticmethod
    def network(function: Callable[[Any], Any]) -> Any:
        """A model of the framework without weights: logits = function(x) of its tensors."""

    @staticmethod
    def uniform_like(x: Any) -> Any:
        """A tensor like x, in [0, 1), drawn from the framework's global generator."""
