"""Settings that are known to work, by data set."""

from __future__ import annotations

from .config import SPATConfig, TrainConfig

RECIPES = {
    "digits": (
        SPATConfig(eps=0.15),
        TrainConfig(epochs=30, batch_size=64, lr=0.05, baseline=True),
    ),
}
