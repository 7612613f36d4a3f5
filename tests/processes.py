"""What each process of test_torch_processes does; begun by torchrun, or alone for comparison."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

import spatlib
from spatlib import ConfigError, Mask, SPATConfig, SpatlibError, TrainConfig
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
    config, found = SPATConfig(eps=0.1, steps=1), resumed(folder / "run", dies=False)
    x, y = map(torch.as_tensor, arrays(np.float32))
    for name, data in {"items": TensorDataset(x, y), "arrays": (x, y)}.items():
        training = plan(epochs=1, validation=HELD)
        found[name] = facts(spatlib.train(network(), data, config=config, training=training))
    try:
        spatlib.train(network(), (x[:1], y[:1]), config=config, training=plan())
        few = "trained"
    except ConfigError as error:
        few = str(error)
    return found | {"few": few}


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


class Sometimes(nn.Module):
    """With a layer that only process 1 uses, and one that none does."""

    def __init__(self) -> None:
        super().__init__()
        self.always, self.at_one, self.never = (nn.Linear(32, 5) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        z: torch.Tensor = self.always(x)
        return z + self.at_one(x) if RANK == 1 else z


class Overflows(nn.Module):
    """In process 1 the first gradient is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.passes = network(), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.inner(x)
        self.passes += self.training
        if self.training and self.passes == RANK:
            z.register_hook(lambda g: g * math.inf)
        return z


def troubled(folder: Path) -> dict[str, Any]:
    """What goes wrong in one process alone, and networks that need care."""
    x, y = map(torch.as_tensor, arrays(np.float32))
    wrong = [(a, 99 if i == 20 else int(b)) for i, (a, b) in enumerate(zip(x, y, strict=True))]

    class Wrong(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(wrong)

        def __getitem__(self, i: int) -> Any:
            return wrong[i]

    def error(model: nn.Module, data: Any, **more: Any) -> str:
        settings = {"epochs": 1, "ema": 0.0} | more.pop("settings", {})
        try:
            config = SPATConfig(eps=0.1, steps=1)
            spatlib.train(model, data, config=config, training=plan(**settings), **more)
        except (SpatlibError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return "none"

    (folder / "file").touch()

    found: dict[str, Any] = {
        "label": error(network(), Wrong()),
        "run": error(network(), (x, y), run_dir=folder / "file" / "run"),
        "rows": error(network(), (x[RANK::2], y[RANK::2])),
        "items": error(network(), TensorDataset(x[RANK::2], y[RANK::2])),
        "epochs": error(network(), (x, y), settings={"epochs": 1 + RANK}),
        "network": error(network(*(nn.Identity(),) * RANK), (x, y)),
    }
    lazy, expanded = nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), network()
    expanded.register_buffer("one", torch.ones(1).expand(3))
    torch.manual_seed(RANK)
    models: dict[str, Any] = {"sometimes": Sometimes(), "lazy": lazy, "expanded": expanded}
    models["overflows"] = Overflows()
    for name, model in models.items():
        never = [v.clone() for v in model.never.parameters()] if name == "sometimes" else []
        low = {"precision": "float16"} if name == "overflows" else {}
        found[f"{name} error"] = error(model, (x, y), settings=low)
        found[name] = [v.tolist() for v in model.state_dict().values()]
        if never and RANK == 0:
            found["kept"] = all(map(torch.equal, never, model.never.parameters()))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[2])
    from .sharing import left, shared_out

    every = trained_alike, trained_together, resumed, shared_out, troubled, left
    kinds: dict[str, Any] = {each.__name__: each for each in every}
    for what in sys.argv[1].split(","):
        found = json.dumps(kinds[what](place))
        Path(place, f"{what}-{RANK}.json").write_text(found, encoding="utf-8")
    # At the interpreter's end a process aborts now and then (docs/reliability.md).
    os._exit(0)
