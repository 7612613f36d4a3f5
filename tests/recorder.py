"""An engine that keeps what it is called with, and the data that it is called for."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from spatlib import RECIPES, Threat, engines
from spatlib.core.survivors import Verdict
from spatlib.data import Dataset
from spatlib.evaluate import Evaluation

DATA = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}
OF_DATA = [name for name, recipe in RECIPES.items() if recipe.data]  # others are for one's own
COUNT = 1100  # more than any recipe holds out


def own(shape: tuple[int, ...] = (2, 5, 7), classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = np.arange(16) % classes
    return rng.uniform(size=(16, *shape)).astype(np.float32), y


class Recorder(ModuleType):
    """An engine in the place of PyTorch's that keeps what it is called with."""

    CHANNELS_FIRST = True
    together = staticmethod(engines.by_itself)

    @staticmethod
    def threads() -> int:
        return 1

    @staticmethod
    def precision(model: Any, device: str | None) -> str:
        """What ``"auto"`` is: of the networks by name that it is asked for."""
        return "bfloat16" if isinstance(model, str) else "float32"

    def __init__(self) -> None:
        super().__init__("recorder")
        self.calls: dict[str, list[Any]] = {"load": [], "build": [], "fit": [], "evaluate": []}

    def load_data(self, name: str) -> Dataset:
        """Of the shape of the official data."""
        self.calls["load"].append(name)
        (channels, *sides), classes = DATA[name]
        x = np.zeros((COUNT, *sides, channels), np.float32)
        source = {"name": name, "dir": None, "limit": None}
        return Dataset(train=(x, np.arange(COUNT) % classes), source=source, channels_last=True)

    def build_model(self, name: str, seed: int, **settings: Any) -> str:
        self.calls["build"].append((name, seed, settings))
        return f"built {len(self.calls['build'])}"

    def check(self, model: Any, data: Any, threat: Threat, training: Any) -> None:
        pass

    def fit(self, *args: Any, optimizer: Any = None) -> list[Any]:
        *rest, monitor = args
        self.calls["fit"].append((*rest, monitor.training, monitor.label))
        return []

    def survivors(
        self, model: Any, data: Any, evaluation: Evaluation, **how: Any
    ) -> list[tuple[np.ndarray, int, dict[str, Verdict]]]:
        self.calls["evaluate"].append((model, evaluation.threat, evaluation.restarts, how))
        one, x = np.ones(1, bool), np.zeros((1, 1))
        return [(np.ones(1, int), 2, dict.fromkeys(evaluation.keys, Verdict(one, one, x)))]


def record(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    engine = Recorder()
    monkeypatch.setitem(engines.BACKENDS, "torch", engine.__name__)
    monkeypatch.setitem(sys.modules, engine.__name__, engine)
    monkeypatch.setattr("spatlib.data.load_data", engine.load_data)
    return engine
