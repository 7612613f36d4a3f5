"""PyTorch's arms: the networks, and our step as the trainer takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from spatlib import TrainConfig
from spatlib.monitor import Monitor
from spatlib_torch.engine import build_model
from spatlib_torch.loaders import Batches
from spatlib_torch.loop import Loop
from spatlib_torch.models import preact_resnet

from . import peers_torch
from .harness import peak_resident
from .setting import MLPS, Arm, Setting


def network(setting: Setting) -> nn.Module:
    """In training mode, its weights contiguous."""
    shape, classes = (3, 32, 32), setting.classes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if setting.model == "small":
            model = preact_resnet(shape, classes, widths=(16, 32, 64), stem=16)
        elif setting.model in MLPS:
            width = MLPS[setting.model]
            model = nn.Sequential(
                nn.Flatten(),
                nn.Linear(3072, width),
                nn.ReLU(),
                nn.Linear(width, width),
                nn.ReLU(),
                nn.Linear(width, classes),
            )
        else:
            model = build_model(setting.model, 0, shape=shape, classes=classes, mean=None, std=None)
    return model.to(setting.device, memory_format=torch.contiguous_format).train()


def batch(setting: Setting) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.rand(setting.batch, 3, 32, 32, generator=source)
    y = torch.randint(setting.classes, (setting.batch,), generator=source)
    return x.to(setting.device), y.to(setting.device)


def builders(setting: Setting) -> dict[str, Callable[[], Arm]]:
    arms = peers_torch.builders(setting, network, batch)
    for mask in setting.mask:
        arms[f"ours, {mask}"] = lambda mask=mask: ours(setting, mask)
    if setting.model in MLPS:
        arms = {name: build for name, build in arms.items() if "channels_last" not in name}
    return {name: synchronised(setting, build) for name, build in arms.items()}


def ours(setting: Setting, mask: str) -> Arm:
    """A step of ``spatlib.train`` on a network by name, whose weights are channels_last."""
    model, (x, y) = network(setting).to(memory_format=torch.channels_last), batch(setting)
    config = setting.config(mask)
    how = {"compile": setting.compiled, "precision": setting.precision, "progress": False}
    training = TrainConfig(ema=0.999 if config.rectify else 0.0, **how)
    batches = Batches((x, y), len(x), model, x.device, config.bounds)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, fused=True)
    loop = Loop(model, batches, config, optimizer, Monitor(training), tqdm(disable=True))
    if setting.compiled:
        vars(model)["forward"] = torch.compile(model.forward)
    return lambda: loop.train_on(x, y, (0, len(x)))


def synchronised(setting: Setting, build: Callable[[], Arm]) -> Callable[[], Arm]:
    if setting.device == "cpu":
        return build

    def waiting() -> Arm:
        step = build()
        return lambda: (step(), torch.cuda.synchronize())

    return waiting


def peak(setting: Setting, build: Callable[[], Arm]) -> float:
    """On the CPU above what the imports took, which a first small product belongs to."""
    torch.rand(64, 64) @ torch.rand(64, 64)
    before = peak_resident()
    step = build()
    for _ in range(3):
        step()
    if setting.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident() - before


def finish(setting: Setting, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """On an accelerator TFLOP/s, next to those of a large matrix product in bfloat16."""
    if setting.device == "cpu":
        return {"threads": torch.get_num_threads()}
    eager, mode = setting._replace(compiled=False), FlopCounterMode(display=False)
    for mask in setting.mask:
        step = ours(eager, mask)
        with mode:
            step()
        for name, row in rows.items():
            if name.startswith(f"ours, {mask}"):
                row["tflops"] = mode.get_total_flops() / row["ms"] / 1e9
    size = 8192
    a = torch.rand(size, size, device=setting.device, dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(13):
        if number == 3:
            start.record()
        a @ a
    end.record()
    torch.cuda.synchronize()
    return {
        "card": torch.cuda.get_device_name(),
        "bfloat16_matmul_tflops": 10 * 2 * size**3 / start.elapsed_time(end) / 1e9,
    }
