"""PyTorch's arms: the networks, and our step as the trainer takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from tqdm import tqdm

from spatlib import TrainConfig
from spatlib.monitor import Monitor
from spatlib_torch.engine import build_model
from spatlib_torch.graphs import compiled
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
        elif setting.model == "tiny":
            model = preact_resnet(shape, classes, widths=(16,), blocks=1, stem=16)
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
    scheduler, bar = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0), tqdm(disable=True)
    loop = Loop(model, batches, config, optimizer, scheduler, Monitor(training), bar)
    if setting.compiled:
        vars(model)["forward"] = compiled(model.forward)
    return lambda: loop.train_on(x, y, (0, len(x)), None)


def synchronised(setting: Setting, build: Callable[[], Arm]) -> Callable[[], Arm]:
    if setting.device == "cpu":
        return build

    def waiting() -> Arm:
        torch.backends.cudnn.benchmark = True  # as spatlib.train sets it, here for all
        step = build()
        return lambda: (step(), torch.cuda.synchronize())

    return waiting


def peak(build: Callable[[], Arm]) -> float:
    """MiB above what the imports took, which a first small product belongs to; on the CPU."""
    torch.rand(64, 64) @ torch.rand(64, 64)
    before = peak_resident()
    step = build()
    for _ in range(3):
        step()
    return peak_resident() - before


def allocated(*, peak: bool = False) -> float | None:
    """MiB of an accelerator that are in use, or were at most since this was asked last."""
    if not torch.cuda.is_available():
        return None
    if peak:
        return torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 2**20


class Work(TorchDispatchMode):
    """Floating-point operations by PyTorch's own formulas (FlopCounterMode knows no autograd.grad
    to an input under frozen weights)."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=found) if formula else 0
        return found


def gflop_per_image(setting: Setting) -> dict[str, float]:
    """Of a step of ours by mask, counted in eager steps on two images; by hand it is that of off.

    The convolutions and products alone; each pass of the attack and of the mask once.
    """
    few, found = setting._replace(compiled=False, batch=2), {}
    for mask in dict.fromkeys(("off", *setting.mask)):
        step = ours(few, mask)
        with Work() as work:
            step()
        found[mask] = work.flops / few.batch / 1e9
    return found


def facts(setting: Setting) -> dict[str, Any]:
    """The card and its TFLOP/s in a large matrix product in bfloat16; on the CPU the threads."""
    if setting.device == "cpu":
        return {"threads": torch.get_num_threads()}
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(13):
        if number == 3:
            start.record()
        a @ b
    end.record()
    torch.cuda.synchronize()
    return {
        "card": torch.cuda.get_device_name(),
        "bfloat16_matmul_tflops": 10 * 2 * size**3 / start.elapsed_time(end) / 1e9,
    }
