"""Small networks for the recipes."""

from __future__ import annotations

from torch import nn


def small_cnn(channels: int = 1, size: int = 8, classes: int = 10) -> nn.Module:
    """Two 3 x 3 convolutions, pooling, a hidden layer: (N, channels, size, size) to logits."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (size // 2) ** 2, 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


MODELS = {"digits": small_cnn}
