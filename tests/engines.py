"""The engines under test: what the tests of attacks and training ask of one, and its answers.

:class:`Entry` says what a new one has to offer; ``ENGINES`` at the end lists them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from unittest.mock import patch

import keras
import numpy as np
import tensorflow as tf
import torch
from torch import nn

import spatlib_tf.attack
import spatlib_tf.evaluation
import spatlib_torch.attack
from spatlib import SPATConfig
from spatlib.backends import Engine
from spatlib_tf import engine as tf_engine
from spatlib_tf import ops as tf_ops
from spatlib_tf import random as tf_random
from spatlib_torch import engine as torch_engine
from spatlib_torch import mask as torch_mask
from spatlib_torch import ops as torch_ops
from spatlib_torch.state import mask_generator

CHANNELS, HEIGHT, WIDTH, HIDDEN, CLASSES = 3, 2, 2, 7, 4
SIZE = CHANNELS * HEIGHT * WIDTH


def initial_weights(seed: int = 0, size: int = SIZE) -> list[np.ndarray]:
    """w1 (D, H), b1 (H,), w2 (H, K), b2 (K,) in float64."""
    rng = np.random.default_rng(seed)
    shapes = ((size, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    return [rng.normal(size=shape) for shape in shapes]


class Entry(Protocol):
    """A tanh network of :func:`initial_weights` in one framework, trained and attacked by it.

    Arrays in and out are NumPy's. Inputs are (N, C, H, W) in [0, 1] and labels integers (N,),
    whatever the layout of the framework. Everything is computed in float64, unless inputs or
    network are of a lower precision: results have to equal the oracle's to 1e-10.
    """

    module: Engine  # registered under the entry's name

    def __init__(self, weights: list[np.ndarray], lr: float = 0.1, momentum: float = 0.9,
                 precision: str = "float64") -> None:  # fmt: skip
        """Logits tanh(x w1 + b1) w2 + b2 of x flattened in the order C, H, W.

        ``lr`` and ``momentum`` are those of SGD; ``precision`` is the network's,
        ``"bfloat16"`` and ``"float16"`` too.
        """

    def weights(self) -> list[np.ndarray]:
        """As they are now, in the shapes of :func:`initial_weights`."""

    def train_step(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig, seed: int
    ) -> float:
        """One update by the loss of the method, and that loss before it; random masks by seed."""

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        """(N, H * W)."""

    def perturb(self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig,
                mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        """x' in the shape and the dtype of x; mask (N, 1, H, W)."""

    def stall_rate(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig
    ) -> float:
        """Share of example-steps at which unguarded ascent would have pulled back."""

    def evaluate(self, x: np.ndarray, y: np.ndarray, config: SPATConfig, restarts: int = 1, *,
                 attacks: Sequence[str] = ("pgd", "margin"), steps: int = 2,
                 seen: list[np.ndarray] | None = None) -> dict[str, float]:  # fmt: skip
        """The metrics; ``seen`` takes all (N, C, H, W) that the network is shown, in order."""

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        """Of the scalar ``function(ops, label, *logits)``, one for each of the logits."""

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any]:
        """The (offsets, probes) of the mask that a call with this seed uses; None for neither.

        offsets: the other classes of ``mask_classes``, as distances from the label; probes:
        signs (probes, count, CLASSES).
        """

    @staticmethod
    def network(function: Callable[[Any], Any]) -> Any:
        """A model of the framework without weights: logits = function(x) of its tensors."""

    @staticmethod
    def uniform_like(x: Any) -> Any:
        """A tensor like x, in [0, 1), drawn from the framework's global generator."""


class Cast(nn.Module):
    """Inputs in the precision of the network that follows."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.dtype = getattr(torch, precision)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


class TorchNetwork(nn.Module):
    """What a function of tensors says, as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class TorchEngine(Entry):
    """Trained by spat_loss and torch.optim.SGD."""

    module = torch_engine

    def __init__(self, weights: list[np.ndarray], lr: float = 0.1, momentum: float = 0.9,
                 precision: str = "float64") -> None:  # fmt: skip
        first, second = nn.Linear(len(weights[0]), HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second).double()
        self.parameters = [first.weight, first.bias, second.weight, second.bias]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(torch.as_tensor(value.T))
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=momentum)
        if precision != "float64":
            self.model = nn.Sequential(Cast(precision), self.model.to(getattr(torch, precision)))

    def weights(self) -> list[np.ndarray]:
        return [p.detach().numpy().T.copy() for p in self.parameters]

    def train_step(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig, seed: int
    ) -> float:
        loss = spatlib_torch.spat_loss(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            start=torch.as_tensor(start), generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        mask = spatlib_torch.shared_mask(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return mask.flatten(1).numpy()

    def perturb(self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig,
                mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        return spatlib_torch.perturb(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            start=torch.as_tensor(start), mask=None if mask is None else torch.as_tensor(mask),
        ).numpy()  # fmt: skip

    def stall_rate(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig
    ) -> float:
        arrays = torch.as_tensor(x), torch.as_tensor(y), config, torch.as_tensor(start)
        return float(spatlib_torch.attack.adversarial(self.model, *arrays).stall_rate)

    def evaluate(self, x: np.ndarray, y: np.ndarray, config: SPATConfig, restarts: int = 1, *,
                 attacks: Sequence[str] = ("pgd", "margin"), steps: int = 2,
                 seen: list[np.ndarray] | None = None) -> dict[str, float]:  # fmt: skip
        def look(_: Any, inputs: tuple[torch.Tensor]) -> None:
            if seen is not None and len(inputs[0]) == len(x):
                seen.append(inputs[0].detach().numpy().copy())

        with self.model.register_forward_pre_hook(look):
            report = torch_engine.evaluate(
                self.model, (torch.as_tensor(x), torch.as_tensor(y)), config, attacks=attacks,
                steps=steps, restarts=restarts,
            )  # fmt: skip
        return report.metrics

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        leaves = [torch.tensor(z, requires_grad=True) for z in logits]
        value = function(torch_ops, torch.as_tensor(label), *leaves)
        grads = torch.autograd.grad(value, leaves, materialize_grads=True)
        return torch.stack(grads).numpy()

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any]:
        source = mask_generator(torch.Generator().manual_seed(seed), torch.device("cpu"))
        if config.share == "rms":
            shape = torch.Size((count, CLASSES))
            return None, torch_mask.draw_probes(config, shape, source).double().numpy()
        if config.mask_classes is not None:
            return torch_mask.draw_offsets(config, CLASSES, source), None
        return None, None

    network = TorchNetwork
    uniform_like = torch.rand_like


class TFNetwork(keras.Model):
    """What a function of tensors says, as a Keras model, and how often it was asked to."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function, self.calls = function, 0

    def call(self, x: Any) -> Any:
        self.calls += 1
        return self.function(x)


class TFEngine(Entry):
    """Trained by spat_loss and keras.optimizers.SGD, on (N, H, W, C)."""

    module = tf_engine

    def __init__(self, weights: list[np.ndarray], lr: float = 0.1, momentum: float = 0.9,
                 precision: str = "float64") -> None:  # fmt: skip
        layers = keras.layers
        policy = f"mixed_{precision}" if precision in ("bfloat16", "float16") else precision
        side = math.isqrt(len(weights[0]) // CHANNELS)  # of a square image
        self.model = keras.Sequential([
            layers.Input((side, side, CHANNELS), dtype=policy.removeprefix("mixed_")),
            layers.Permute((3, 1, 2), dtype=policy),
            layers.Flatten(dtype=policy),
            layers.Dense(HIDDEN, activation="tanh", dtype=policy),
            layers.Dense(CLASSES, dtype=policy),
        ], )  # fmt: skip
        self.model.set_weights(weights)
        self.optimizer = keras.optimizers.SGD(lr, momentum=momentum)
        self.optimizer.build(self.model.trainable_weights)
        self.generator = keras.random.SeedGenerator(0)

    def weights(self) -> list[np.ndarray]:
        return self.model.get_weights()

    def train_step(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig, seed: int
    ) -> float:
        self.generator.state.assign([seed, 0])
        return float(
            self.graph_step(
                tf.constant(to_last(x)), tf.constant(y), tf.constant(to_last(start)), config
            )
        )

    @tf.function  # one trace per configuration: eager L1 projections are slow
    def graph_step(self, x: Any, y: Any, start: Any, config: SPATConfig) -> Any:
        with tf.GradientTape() as tape:
            loss = spatlib_tf.spat_loss(
                self.model, x, y, config, start=start, generator=self.generator
            )
        weights = self.model.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        generator = keras.random.SeedGenerator(seed)
        mask = spatlib_tf.shared_mask(self.model, to_last(x), y, config, generator=generator)
        return mask.numpy().reshape(len(x), -1)

    def perturb(self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig,
                mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        adversarial = spatlib_tf.perturb(
            self.model, to_last(x), y, config, start=to_last(start),
            mask=None if mask is None else to_last(mask),
        )  # fmt: skip
        return np.moveaxis(adversarial.numpy(), -1, 1)

    def stall_rate(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig
    ) -> float:
        arrays = tf.constant(to_last(x)), tf.constant(y), config, tf.constant(to_last(start))
        return float(spatlib_tf.attack.adversarial(self.model, *arrays).stall_rate)

    def evaluate(self, x: np.ndarray, y: np.ndarray, config: SPATConfig, restarts: int = 1, *,
                 attacks: Sequence[str] = ("pgd", "margin"), steps: int = 2,
                 seen: list[np.ndarray] | None = None) -> dict[str, float]:  # fmt: skip
        original = spatlib_tf.evaluation.logits_of  # Keras has no hooks

        def look(model: Any, z: Any) -> Any:
            if seen is not None and len(z) == len(x):
                seen.append(np.moveaxis(z.numpy(), -1, 1))
            return original(model, z)

        tf.config.run_functions_eagerly(True)  # tracing each small network takes a second
        try:
            with patch("spatlib_tf.evaluation.logits_of", look):
                report = tf_engine.evaluate(self.model, (to_last(x), y), config, attacks=attacks,
                                            steps=steps, restarts=restarts)  # fmt: skip
        finally:
            tf.config.run_functions_eagerly(False)
        return report.metrics

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        leaves = [tf.constant(z) for z in logits]
        with tf.GradientTape() as tape:
            tape.watch(leaves)
            value = function(tf_ops, tf.constant(label), *leaves)
        zero = tf.UnconnectedGradients.ZERO
        return tf.stack(tape.gradient(value, leaves, unconnected_gradients=zero)).numpy()

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any]:
        source = tf_random.next_seed(keras.random.SeedGenerator(seed))
        source = tf_random.split(source, tf_random.MASK)
        if config.share == "rms":
            logits = tf.zeros((count, CLASSES), tf.float64)
            return None, tf_random.draw_probes(config, logits, source).numpy()
        if config.mask_classes is not None:
            return tf_random.draw_offsets(config, CLASSES, source).numpy().tolist(), None
        return None, None

    network = TFNetwork

    @staticmethod
    def uniform_like(x: Any) -> Any:
        return tf.random.uniform(tf.shape(x), dtype=x.dtype)


def to_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


ENGINES: dict[str, type[Entry]] = {"torch": TorchEngine, "tf": TFEngine}  # by names of BACKENDS
