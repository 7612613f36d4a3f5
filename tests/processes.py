"""What each process of test_torch_processes does; begun by torchrun, or alone for comparison."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import spatlib
from spatlib import ConfigError, Mask, SPATConfig, TrainConfig
from spatlib.runs import Run

WORLD, RANK = (
    int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", 1), ("RANK", 0))
)
BATCH, HELD, COUNT = 16, 21, 58  # of 37 for training, in batches of 16, 16 and an uneven 5
MASKS = {"none": None, "min": Mask(), "rms": Mask(score="rms"), "classes": Mask(classes=4)}
CASES = [(loss, name) for loss in ("pgd", "trades", "mart") for name in MASKS]


def arrays(dtype: Any = np.float64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(COUNT, 2, 4, 4)).astype(dtype), rng.integers(5, size=COUNT)


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(3 + RANK)  # the others get the weights of the first
    convolution = nn.Conv2d(2, 4, 3, padding=1)
    return nn.Sequential(convolution, *layers, nn.Tanh(), nn.Flatten(), nn.Linear(64, 5))


def inner() -> tuple[nn.Module, ...]:
    return nn.BatchNorm2d(4), nn.Dropout(0.3)


def plan(**settings: Any) -> TrainConfig:
    common = {"epochs": 2, "batch_size": BATCH // WORLD, "ema": 0.9, "progress": False}
    return TrainConfig(**common | settings)


def facts(result: Any) -> dict[str, Any]:
    weights = [v.double().flatten().tolist() for v in result.model.state_dict().values()]
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    return {
        "weights": [n for own in weights for n in own],
        "history": history,
        "metrics": result.metrics,
    }


def trained_alike(_: Path | None = None) -> dict[str, Any]:
    """In float64, with random starts, augmentation, averaged weights and validation."""
    found = {}
    x, y = arrays()
    for loss, name in CASES:
        config = SPATConfig(eps=0.1, steps=2, loss=loss, mask=MASKS[name])
        training = plan(augment="crop-flip", validation=HELD)
        result = spatlib.train(
            network().double(), ((x, y), (x[:19], y[:19])), config=config, training=training
        )
        found[f"{loss} {name}"] = facts(result)
    return found


def trained_together(folder: Path) -> dict[str, Any]:
    """With BatchNorm and dropout, where several processes are no longer one, and a run."""
    layers = inner()
    config, found = SPATConfig(eps=0.1, steps=1), resumed(folder / "run", dies=False)
    x, y = map(torch.as_tensor, arrays(np.float32))
    data = TensorDataset(x, y)
    with_loader = {}
    if WORLD > 1:
        for name, sampler in (("shared", DistributedSampler(data)), ("whole", None)):
            loader = DataLoader(data, batch_size=8, sampler=sampler)
            try:
                training = plan(ema=0.0)
                one = spatlib.train(network(*layers), loader, config=config, training=training)
                alone = spatlib.evaluate(one.model, (x, y), config, attacks=("pgd",))
                measured = [
                    (r.count, r.metrics["clean"], r.per_class["clean"]) for r in (one.report, alone)
                ]
                with_loader[name] = facts(one) | {"measured": measured}
            except ConfigError as error:
                with_loader[name] = str(error)
    try:
        spatlib.train(network(), (x[:1], y[:1]), config=config, training=plan())
        few = "trained"
    except ConfigError as error:
        few = str(error)
    return found | {"loader": with_loader, "few": few}


def resumed(folder: Path, dies: bool = True) -> dict[str, Any]:
    """A run whose first process dies in the second epoch, when it is begun for the first time."""
    first = not (folder / "config.json").exists()

    told = []

    def die(row: dict[str, Any]) -> None:
        told.append(row)
        if row["epoch"] == 2 and first and dies:
            os.kill(os.getpid(), signal.SIGKILL)

    result = spatlib.train(
        network(*inner()),
        arrays(np.float32),
        config=SPATConfig(eps=0.1, steps=1),
        training=plan(epochs=3, validation=HELD),
        run_dir=folder,
        resume=True,
        on_epoch=die,
    )
    return facts(result) | {
        "told": len(told),
        "was_there": not first,
        "batch": Run(folder, resume=True).settings["global_batch"],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, place = sys.argv[1], Path(sys.argv[2])
    kinds = {each.__name__: each for each in (trained_alike, trained_together, resumed)}
    Path(place, f"{what}-{RANK}.json").write_text(json.dumps(kinds[what](place)), encoding="utf-8")
