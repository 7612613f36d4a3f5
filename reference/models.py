"""Two classifiers whose gradients are written out by hand.

One example at a time: x (D,) -> logits z (K,). A linear model has the same input gradient at every
x, so anything that depends on x (the mask above all) needs the network with a hidden layer.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .arrays import Array


class Classifier(Protocol):
    """What the attack, the losses and the training step need of a model."""

    parameters: list[Array]

    def logits(self, x: Array) -> Array:
        """Return z(x), shape (K,)."""
        ...

    def input_gradients(self, x: Array) -> Array:
        """Return the matrix (K, D) whose row k is d z_k / d x."""
        ...

    def parameter_gradients(self, x: Array, cotangent: Array) -> list[Array]:
        """Return the gradient of sum_k cotangent_k z_k(x) for each of `parameters`, in order."""
        ...


class SoftmaxLinear:
    """z = x W + b, with W (D, K) and b (K,)."""

    def __init__(self, weights: npt.ArrayLike, bias: npt.ArrayLike) -> None:
        self.parameters: list[Array] = [np.array(v, dtype=np.float64) for v in (weights, bias)]

    def logits(self, x: Array) -> Array:
        """Return z = x W + b."""
        weights, bias = self.parameters
        return x @ weights + bias

    def input_gradients(self, x: Array) -> Array:
        """Return d z_k / d x = W[:, k], whatever x is."""
        return self.parameters[0].T.copy()

    def parameter_gradients(self, x: Array, cotangent: Array) -> list[Array]:
        """Return W: x_i c_k; b: c_k."""
        return [np.outer(x, cotangent), cotangent.copy()]


class TanhMLP:
    """h = tanh(x W1 + b1), z = h W2 + b2, with W1 (D, H), b1 (H,), W2 (H, K), b2 (K,)."""

    def __init__(
        self, w1: npt.ArrayLike, b1: npt.ArrayLike, w2: npt.ArrayLike, b2: npt.ArrayLike
    ) -> None:
        self.parameters: list[Array] = [np.array(v, dtype=np.float64) for v in (w1, b1, w2, b2)]

    def _hidden(self, x: Array) -> Array:
        w1, b1, _, _ = self.parameters
        hidden: Array = np.tanh(x @ w1 + b1)
        return hidden

    def logits(self, x: Array) -> Array:
        """Return z = tanh(x W1 + b1) W2 + b2."""
        _, _, w2, b2 = self.parameters
        return self._hidden(x) @ w2 + b2

    def input_gradients(self, x: Array) -> Array:
        """Return d z_k / d x_i = sum_h W1[i, h] (1 - h_h^2) W2[h, k]: tanh' = 1 - tanh^2."""
        w1, _, w2, _ = self.parameters
        slope = 1.0 - self._hidden(x) ** 2
        return np.stack([w1 @ (slope * w2[:, k]) for k in range(w2.shape[1])])

    def parameter_gradients(self, x: Array, cotangent: Array) -> list[Array]:
        """Return W1: x_i e_h; b1: e_h; W2: h_h c_k; b2: c_k, with e = (1 - h^2) (W2 c)."""
        w2 = self.parameters[2]
        hidden = self._hidden(x)
        error = (1.0 - hidden**2) * (w2 @ cotangent)
        return [np.outer(x, error), error, np.outer(hidden, cotangent), cotangent.copy()]
