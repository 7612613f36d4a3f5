"""Small networks for the recipes; as many parameters as their PyTorch twins."""

from __future__ import annotations

import keras
from keras import layers


def small_cnn(seed: int, channels: int = 1, size: int = 8, classes: int = 10) -> keras.Model:
    """Two 3 x 3 convolutions, pooling, a hidden layer: (N, size, size, channels) to logits."""
    seeds = iter(range(seed * 10, seed * 10 + 10))

    def initial() -> keras.initializers.Initializer:
        # Uniform in +-1 / sqrt(fan_in), PyTorch's default.
        return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=next(seeds))

    def convolution(filters: int) -> keras.Layer:
        return layers.Conv2D(
            filters, 3, padding="same", activation="relu", kernel_initializer=initial()
        )

    return keras.Sequential([
        layers.Input((size, size, channels)),
        convolution(32),
        convolution(64),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(128, activation="relu", kernel_initializer=initial()),
        layers.Dense(classes, kernel_initializer=initial()),
    ])  # fmt: skip


MODELS = {"digits": small_cnn}
