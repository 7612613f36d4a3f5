"""Loaders in several processes of torchrun, and one that ends; begun by tests.processes."""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    TensorDataset,
)

import spatlib
from spatlib import ConfigError, SPATConfig, SpatlibError

from .processes import RANK, WORLD, arrays, facts, network, plan


class Stream(IterableDataset[Any]):
    """Every second example of an odd number, of which one process has one batch more."""

    def __iter__(self) -> Any:
        return iter([*zip(*map(torch.as_tensor, arrays(np.float32)), strict=True)][RANK:57:WORLD])


class Disordered(list[Any]):
    """Batches of which the last comes in another order in each process."""

    def __iter__(self) -> Any:
        x, y = map(torch.as_tensor, arrays(np.float32))
        return iter([(x[:20], y[:20]), (x[20:].roll(RANK, 0), y[20:].roll(RANK, 0))])


def shared_out(_: Path) -> dict[str, Any]:
    """Loaders that share out their 57 examples, or do not, to train and to measure on."""
    x, y = (torch.as_tensor(part)[:57] for part in arrays(np.float32))
    data, config = TensorDataset(x, y), SPATConfig(eps=0.1, steps=1)
    order = BatchSampler(DistributedSampler(data, WORLD, RANK), 8, drop_last=False)
    loaders: dict[str, Any] = {
        "sampler": DataLoader(data, batch_size=8, sampler=order.sampler),
        "nested": DataLoader(data, batch_sampler=order),
        "prepared": Accelerator(cpu=True).prepare(DataLoader(data, batch_size=8, shuffle=True)),
        "stream": DataLoader(Stream(), batch_size=4),
        "whole": DataLoader(data, batch_size=8),
        "shuffled": DataLoader(data, batch_size=8, shuffle=True),
    }

    def trained(data: Any, **settings: Any) -> Any:
        """The result, or the error."""
        training = plan(**{"epochs": 1, "ema": 0.0, "schedule": "constant"} | settings)
        try:
            return spatlib.train(network(), data, config=config, training=training)
        except ConfigError as error:
            return str(error)

    def known(report: Any) -> Any:
        return report.count, report.metrics["clean"], report.per_class["clean"]

    found: dict[str, Any] = {"train": {}, "test": {}}
    for name, loader in loaders.items():
        one = trained(loader)
        if not isinstance(one, str):
            alone = spatlib.evaluate(one.model, (x, y), config, attacks=("pgd",))
            one = facts(one) | {"reported": known(one.report), "alone": known(alone)}
        found["train"][name] = one
    tests = {"arrays": (x, y), "items": data, **loaders, "few": [(x[:1], y[:1]), (x[1:], y[1:])]}
    tests["disordered"] = Disordered()
    for name, test in tests.items():
        torch.manual_seed(RANK)  # as a process has it that draws by itself
        one = trained(((x, y), test))
        found["test"][name] = one if isinstance(one, str) else known(one.report)
    with redirect_stdout(StringIO()) as said:
        trained((x, y), progress=True)
    return found | {"said": said.getvalue().partition("\n")[0]}


def left(_: Path) -> str:
    """What the first process says when the other ends in its first pass forward."""

    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> Any:
            if RANK and self.training:
                os._exit(0)
            return self.inner(x)

    try:
        config = SPATConfig(eps=0.1, steps=1)
        spatlib.train(Ends(), arrays(np.float32), config=config, training=plan())
    except SpatlibError as error:
        return f"{type(error).__name__}: {error}"
    return "none"
