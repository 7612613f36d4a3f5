"""A process of torchrun that talks to itself: NCCL on a GPU, Gloo on the CPU.

With one process nothing has to be said. To go through what several say to each other, this one
counts as several: ``python -m torch.distributed.run ... -m tests.grouped cuda DIR``.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import spatlib
from spatlib import Mask, SPATConfig
from spatlib_torch import spat_loss

from .processes import arrays, facts, network, plan


class Several(int):
    """A number that is 1, and counts as more."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return other != 1 and int(self) == other

    def __gt__(self, other: int) -> bool:
        return other == 1 or int(self) > other


def trained(device: str, *layers: nn.Module, several: bool = False) -> dict[str, Any]:
    config = SPATConfig(eps=0.1, steps=2, mask=Mask())
    one = patch.object(distributed, "get_world_size", lambda *_: Several(1))
    with one if several else nullcontext():
        x, y = arrays()
        training = plan(augment="crop-flip", validation=21, device=device)
        data = (x, y), (x[:19], y[:19])
        return facts(
            spatlib.train(network(*layers).double(), data, config=config, training=training)
        )


def stepped(device: str, wrapped: bool) -> list[float]:
    """The weights after two steps of a loop of one's own."""
    model = network(nn.BatchNorm2d(4)).double().to(device)
    outer = DistributedDataParallel(model) if wrapped else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = (torch.as_tensor(part, device=device) for part in arrays())
    for _ in range(2):
        source = torch.Generator(device).manual_seed(0)
        optimizer.zero_grad()
        spat_loss(outer, x, y, SPATConfig(eps=0.1, steps=2), generator=source).backward()
        optimizer.step()
    return [n for p in model.parameters() for n in p.flatten().tolist()]


def main(device: str, place: str) -> None:
    torch.set_num_threads(1)
    alone = trained(device, nn.BatchNorm2d(4)), stepped(device, False)
    distributed.init_process_group("nccl" if device == "cuda" else "gloo")
    # On the CPU there is none that is synchronised.
    norm = nn.SyncBatchNorm(4) if device == "cuda" else nn.BatchNorm2d(4)
    grouped = trained(device, nn.BatchNorm2d(4)), stepped(device, True)
    with patch.object(distributed, "all_reduce", wraps=distributed.all_reduce) as said:
        talking = trained(device, norm, several=True), stepped(device, True)
    found = {"alone": alone, "grouped": grouped, "talking": talking, "said": said.call_count}
    found["backend"] = distributed.get_backend()
    Path(place, "grouped.json").write_text(json.dumps(found), encoding="utf-8")
    distributed.destroy_process_group()
    os._exit(0)  # at the interpreter's end a process aborts now and then (docs/reliability.md)


if __name__ == "__main__":
    main(*sys.argv[1:])
