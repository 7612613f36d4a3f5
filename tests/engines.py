"""The engines under test: one training step on a small network, in each framework's own words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import torch
from torch import nn

import spatlib_tf
import spatlib_torch
from spatlib import SPATConfig
from spatlib_tf import ops as tf_ops
from spatlib_tf import random as tf_random
from spatlib_tf.evaluation import evaluate as tf_evaluate
from spatlib_torch import mask as torch_mask
from spatlib_torch import ops as torch_ops
from spatlib_torch.evaluation import evaluate as torch_evaluate
from spatlib_torch.state import mask_generator

CHANNELS, HEIGHT, WIDTH, HIDDEN, CLASSES = 3, 2, 2, 7, 4
SIZE = CHANNELS * HEIGHT * WIDTH


def initial_weights(seed: int = 0, size: int = SIZE) -> list[np.ndarray]:
    """w1 (D, H), b1 (H,), w2 (H, K), b2 (K,) in float64."""
    rng = np.random.default_rng(seed)
    shapes = ((size, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    return [rng.normal(size=shape) for shape in shapes]


class Cast(nn.Module):
    """Inputs in the precision of the network that follows."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.dtype = getattr(torch, precision)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


class TorchEngine:
    """float64 tanh MLP on (N, C, H, W), trained by spat_loss and torch.optim.SGD."""

    name = "torch"

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
        """x and start are (N, C, H, W)."""
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
        """(N, P)."""
        mask = spatlib_torch.shared_mask(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return mask.flatten(1).numpy()

    def perturb(self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig,
                mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        """(N, C, H, W); mask (N, 1, H, W)."""
        return spatlib_torch.perturb(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            start=torch.as_tensor(start), mask=None if mask is None else torch.as_tensor(mask),
        ).numpy()  # fmt: skip

    def evaluate(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, restarts: int
    ) -> dict[str, float]:
        """Under attacks of two steps."""
        data = (torch.as_tensor(x), torch.as_tensor(y))
        return torch_evaluate(self.model, data, config, steps=2, restarts=restarts).metrics

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        """Of ``function(ops, label, *logits)``, one for each of the logits."""
        leaves = [torch.tensor(z, requires_grad=True) for z in logits]
        value = function(torch_ops, torch.as_tensor(label), *leaves)
        grads = torch.autograd.grad(value, leaves, materialize_grads=True)
        return torch.stack(grads).numpy()

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any]:
        """The (offsets, probes) that a call with this seed uses."""
        source = mask_generator(torch.Generator().manual_seed(seed), torch.device("cpu"))
        if config.share == "rms":
            shape = torch.Size((count, CLASSES))
            return None, torch_mask.draw_probes(config, shape, source).double().numpy()
        if config.mask_classes is not None:
            return torch_mask.draw_offsets(config, CLASSES, source), None
        return None, None


class TFEngine:
    """The same network on (N, H, W, C), trained by spat_loss and keras.optimizers.SGD."""

    name = "tf"

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

    def evaluate(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, restarts: int
    ) -> dict[str, float]:
        tf.config.run_functions_eagerly(True)  # tracing each small network takes a second
        try:
            data = (to_last(x), y)
            return tf_evaluate(self.model, data, config, steps=2, restarts=restarts).metrics
        finally:
            tf.config.run_functions_eagerly(False)

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


def to_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


ENGINES = {"torch": TorchEngine, "tf": TFEngine}
