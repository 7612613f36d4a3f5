"""Small runs of spatlib.train, and what their directories hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import spatlib
from spatlib import RECIPES, SPATConfig, TrainConfig
from spatlib.runs import Run

CONFIG = SPATConfig(eps=0.1, steps=1)
TRAINING = TrainConfig(
    epochs=2, batch_size=12, lr=0.05, schedule="constant", validation=12, ema=0.5, progress=False
)
RECIPE = RECIPES["digits"].change(epochs=1, steps=1, baseline=False, progress=False)
DIGITS = spatlib.load_data("digits", limit=70)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(36, 5)).astype(np.float32), rng.integers(3, size=36)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def train(run_dir: Any, **arguments: Any) -> spatlib.Result:
    """Of a network and data of one's own."""
    given = {"model": network(), "data": arrays(), "config": CONFIG, "training": TRAINING}
    return spatlib.train(run_dir=run_dir, **given | arguments)


def train_digits(run_dir: Any, **arguments: Any) -> spatlib.Result:
    """Of a network and data by name."""
    return spatlib.train(run_dir=run_dir, **{"data": DIGITS, "recipe": RECIPE} | arguments)


def weights(model: nn.Module) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()]


def rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without what the clock says."""
    return [{name: v for name, v in row.items() if name != "seconds"} for row in history]


def content(directory: Path) -> dict[str, bytes | None]:
    """All below a directory, by path; None for a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def saved(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let ``change`` have its way with the settings of a run."""
    settings, run = saved(directory), Run(directory, resume=True)
    change(settings)
    run.write("config.json", json.dumps(settings).encode())


def older(settings: dict[str, Any]) -> None:
    """Settings as spatlib wrote them before they had a mark."""
    del settings["spatlib_run"], settings["optimizer"]
    settings["data_dir"] = None


def copied(run: Path, directory: Path) -> Path:
    """The directory, with the files of a run."""
    for path in run.glob("*.*"):
        (directory / path.name).write_bytes(path.read_bytes())
    return directory
