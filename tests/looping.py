"""What the tests of PyTorch's training loop share: data, a network, a monitor that keeps all."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from spatlib import SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib_torch import engine

COUNT, BATCH, CLASSES = 14, 4, 3  # the last batch of an epoch has 2
CONFIG = SPATConfig(eps=0.1, steps=1)


def training(**settings: Any) -> TrainConfig:
    return TrainConfig(**{"epochs": 2, "batch_size": BATCH, "progress": False} | settings)


def arrays(count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(count, 2, 4, 4)).astype(np.float32), rng.integers(CLASSES, size=count)


def network() -> nn.Module:
    """Statistics, draws and a memory format that have to come back."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )
    return model.to(memory_format=torch.channels_last)


class Pictures(Dataset[Any]):
    """A map-style data set; its transform draws from every global generator there is."""

    def __init__(self, moves: bool = True) -> None:
        (self.x, self.y), self.moves = arrays(), moves
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.read.append(index)
        x = torch.as_tensor(self.x[index])
        if self.moves:
            x = x * random.random() * np.random.uniform() * torch.rand(())  # noqa: NPY002
        return x, int(self.y[index])


def loader(**settings: Any) -> DataLoader[Any]:
    return DataLoader(Pictures(), batch_size=BATCH, shuffle=True, **settings)


class Keeper(Monitor):
    """Keeps a checkpoint of every step; begins with one of them."""

    def __init__(self, plan: TrainConfig, content: bytes | None = None) -> None:
        super().__init__(plan)
        self.content, self.kept = content, list[bytes]()

    def checkpoint(self) -> bytes | None:
        return self.content

    def due(self) -> bool:
        return True

    def save(self, checkpoint: Any) -> None:
        assert checkpoint is not None
        self.kept.append(b"".join(checkpoint))


class Until(Monitor):
    """Stops after so many epochs, whatever the plan."""

    def __init__(self, plan: TrainConfig, epochs: int) -> None:
        super().__init__(plan)
        self.last = epochs

    def stopped(self, history: list[dict[str, float]]) -> bool:
        return len(history) >= self.last


def fit(data: Any, model: nn.Module | None = None, monitor: Any = None, **settings: Any) -> Any:
    """The state of the network after training, and the history without what the clock says."""
    model = network() if model is None else model
    optimizer, config = settings.pop("optimizer", None), settings.pop("config", CONFIG)
    plan = training(**settings)
    monitor = monitor or Monitor(plan)
    monitor.training = plan
    history = engine.fit(model, data, config, monitor, optimizer=optimizer)
    return state(model), [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def state(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


def disturb() -> None:
    """Move every global generator somewhere else."""
    random.random()
    np.random.uniform()  # noqa: NPY002
    torch.rand(1)


def generators() -> tuple[Any, ...]:
    """The states of the global generators, to be compared by ==."""
    _, keys, *position = np.random.get_state()  # noqa: NPY002
    return random.getstate(), keys.tolist(), position, torch.get_rng_state().tolist()


class Explode(torch.autograd.Function):
    """The identity, with a gradient that is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * math.inf
