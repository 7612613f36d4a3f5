"""Where networks come to fit labels that have become wrong: robust overfitting, and large eps.

What `python -m benchmarks.evidence overfit` runs: a loop of one's own over spatlib's functions, for
arms that share everything but the attack and the label. A run can be taken up after any look at
the held-out examples, from files of at most 16 MiB for networks of up to 4 million weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

import spatlib
from spatlib import Dataset, SPATConfig, Threat, load_data
from spatlib.config import fold
from spatlib.data import as_dataset
from spatlib_torch import perturb, spat_loss
from spatlib_torch.attack import Draws
from spatlib_torch.loaders import augment
from spatlib_torch.models import preact_resnet

from .harness import append, rows_of
from .regime_arms import ARMS, LATER, REGIMES, Arm, Regime

RUNS = Path("runs", "evidence")
SEEDS = range(3)
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10
INITIAL, ORDER = range(2)  # purposes of a seed
PEAK, MOMENTUM, DECAY = 0.1, 0.9, 5e-4
ATTACKS = ("pgd", "margin")
APGD_STEPS = 30
EAGER = 3  # steps before one is recorded, in which libraries choose their kernels
DROPS = (0.5, 0.75)  # of the epochs, after which the rate is a tenth (Rice et al. 2020)


class Run:
    """One arm and seed of a regime, from what its folder holds on."""

    def __init__(
        self, regime: Regime, arm: Arm, seed: int, data: Dataset, folder: Path, device: str
    ) -> None:
        self.regime, self.arm, self.seed, self.folder = regime, arm, seed, folder
        held = slice(-regime.held, None)
        parts = {
            "train": [part[: -regime.held][: regime.images] for part in data.train],
            "held": [part[held] for part in data.train],
            "test": [part[: regime.measured] for part in data.test],
        }
        self.parts = {name: images(*part, regime.pool, device) for name, part in parts.items()}
        settings: dict[str, Any] = {"smoothing": 0.0, "steps": regime.steps, **arm.config}
        self.config = SPATConfig(eps=arm.stretch * regime.eps, **settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(fold(seed, INITIAL))
            own: dict[str, Any] = {
                "widths": regime.widths,
                "blocks": regime.blocks,
                "stem": regime.widths[0],
            }
            shape = tuple(self.parts["train"][0].shape[1:])
            built = preact_resnet(shape, 10, MEAN, STD, **own)
        self.model = built.to(device).to(memory_format=torch.channels_last)
        self.average = deepcopy(self.model)
        self.best = {"model": deepcopy(self.model), "average": deepcopy(self.model)}
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), PEAK, momentum=MOMENTUM, weight_decay=DECAY
        )
        self.progress: dict[str, Any] = {"epoch": 0, "seconds": 0.0, "started": False, "best": {}}
        self.graph: Any = None
        self.eager, self.batch = 0, list[Tensor]()
        self._restore()

    def row(self, deadline: float) -> dict[str, Any] | None:
        """Train to the end and measure; None if the time, of ``time.monotonic``, is over before.

        In any case from one look at the held-out images to the next, or the measurement.
        """
        regime, progress = self.regime, self.progress
        longest = 0.0
        while progress["epoch"] < regime.epochs:
            began = time.monotonic()
            if longest and began + longest > deadline:
                return None
            for _ in range(min(regime.look, regime.epochs - progress["epoch"])):
                self._epoch()
                progress["epoch"] += 1
            self._look()
            longest = time.monotonic() - began
            progress["seconds"] += longest
            self._save()
        if longest and time.monotonic() + longest > deadline:
            return None
        found = self.measured(ATTACKS, 20)
        best = progress["best"]
        epochs = {"best_epoch": best["model"][1], "avg_best_epoch": best["average"][1]}
        return found | epochs | {"seconds": progress["seconds"]}

    def measured(self, attacks: tuple[str, ...], steps: int) -> dict[str, Any]:
        """Accuracies on the test images, clean and after the worst of the attacks."""
        networks = {"best": self.best["model"], "last": self.model}
        networks |= {"avg_best": self.best["average"], "avg_last": self.average}
        found: dict[str, Any] = {}
        for name, network in networks.items():
            for eps in self.regime.judged:
                worst = accuracy(network, self.parts["test"], eps, attacks, steps)
                found |= {f"{name}_clean": worst[0], f"{name}_robust{255 * eps:.0f}": worst[1]}
        return found

    def _epoch(self) -> None:
        regime, epoch = self.regime, self.progress["epoch"]
        x, y = self.parts["train"]
        torch.manual_seed(fold(self.seed, ORDER, epoch))
        rate = PEAK * 0.1 ** sum(epoch >= drop * regime.epochs for drop in DROPS)
        if self.optimizer.param_groups[0]["lr"] != rate:  # a number in the graph
            self.graph, self.eager = None, 0
        self.optimizer.param_groups[0]["lr"] = rate
        order = torch.randperm(len(x), device=x.device)
        for rows in torch.split(order, regime.batch):
            if len(rows) == regime.batch:
                (self._replay if x.is_cuda else self._step)(x[rows], y[rows])

    def _replay(self, x: Tensor, y: Tensor) -> None:
        """A step as one CUDA graph, recorded after three: launching its kernels takes longer."""
        if self.graph is None and self.eager < EAGER:
            self.eager += 1
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(x, y)
            torch.cuda.current_stream().wait_stream(stream)
            return
        if self.graph is None:
            self.batch, self.graph = [x.clone(), y.clone()], torch.cuda.CUDAGraph()
            self.optimizer.zero_grad()
            with torch.cuda.graph(self.graph):
                self._step(*self.batch)
        for mine, its in zip(self.batch, (x, y), strict=True):
            mine.copy_(its)
        self.graph.replay()

    def _step(self, x: Tensor, y: Tensor) -> None:
        x, arm = augment(x, self.regime.augment, 0.0, Draws(None)), self.arm
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            x_adv = perturb(self.model, x, y, self.config, validate=False)
            hard = (y[:, None] == torch.arange(10, device=y.device)).float()
            label = (1 - arm.smooth) * hard + arm.smooth / 10
            own: dict[str, Any] = {"x_adv": x_adv, "average": self.average, "validate": False}
            loss = spat_loss(self.model, x, label, self.config, **own)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        decay = self.regime.ema if self.progress["started"] else 0.0
        move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        move(list(self.average.parameters()), list(self.model.parameters()), 0)
        self.progress["started"] = True
        for mine, its in zip(self.average.buffers(), self.model.buffers(), strict=True):
            mine.copy_(its)

    def _look(self) -> None:
        """Keep the weights, and the averages, that are most robust on the held-out images."""
        for name, network in (("model", self.model), ("average", self.average)):
            _, robust = accuracy(network, self.parts["held"], self.regime.eps, ATTACKS, 10)
            best = self.progress["best"]
            if robust > best.get(name, [-1.0])[0]:
                best[name] = [robust, self.progress["epoch"]]
                self.best[name].load_state_dict(network.state_dict())

    def _parts(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """What a run depends on, by file."""
        for name, network in (("model", self.model), ("average", self.average)):
            yield name, network.state_dict()
            yield f"best_{name}", self.best[name].state_dict()
        state = self.optimizer.state
        names = [name for name, _ in self.model.named_parameters()]
        momenta = (state[p].get("momentum_buffer") for p in self.model.parameters())
        yield "momentum", {n: m for n, m in zip(names, momenta, strict=True) if m is not None}

    def _save(self) -> None:
        """Files of this epoch, then what names it, then none of the epochs before."""
        self.folder.mkdir(parents=True, exist_ok=True)
        before, epoch = [*self.folder.glob("*.safetensors")], self.progress["epoch"]
        for name, tensors in self._parts():
            save_file({k: t.contiguous() for k, t in tensors.items()}, self._file(name, epoch))
        new = self.folder / "progress.new"
        new.write_text(json.dumps(self.progress), encoding="utf-8")
        os.replace(new, self.folder / "progress.json")
        for path in before:
            if not path.stem.endswith(f"-{epoch}"):
                path.unlink()

    def _restore(self) -> None:
        if not (self.folder / "progress.json").exists():
            return
        self.progress = json.loads((self.folder / "progress.json").read_text(encoding="utf-8"))
        saved = {n: load_file(self._file(n, self.progress["epoch"])) for n, _ in self._parts()}
        for name in ("model", "average"):
            getattr(self, name).load_state_dict(saved[name])
            self.best[name].load_state_dict(saved[f"best_{name}"])
        for name, p in self.model.named_parameters():
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(
                saved["momentum"][name]
            )

    def _file(self, name: str, epoch: int) -> Path:
        return self.folder / f"{name}-{epoch}.safetensors"


def images(x: Any, y: Any, pool: int, device: str) -> tuple[Tensor, Tensor]:
    """On the device, x in [0, 1] and pooled: means over squares of pixels."""
    x = F.avg_pool2d(torch.as_tensor(x).to(device).float() / 255, pool)
    return x.contiguous(memory_format=torch.channels_last), torch.as_tensor(y).to(device).long()


def accuracy(
    network: nn.Module, data: Any, eps: float, attacks: tuple[str, ...], steps: int
) -> tuple[float, float]:
    """Clean, and after the worst of the attacks for each example."""
    own: dict[str, Any] = {
        "attacks": attacks,
        "steps": steps,
        "worst_only": True,
        "progress": False,
    }
    found = spatlib.evaluate(network, data, Threat(eps=eps), batch_size=500, **own).metrics
    return found["clean"], found["worst"]


def run(chosen: argparse.Namespace) -> None:
    """A row per arm and seed in evidence_<regime>.csv, seed by seed, while there is time.

    With ``apgd`` in evidence_<regime>_apgd.csv, of the networks of runs that have ended here.
    """
    began, regime, file = time.monotonic(), REGIMES[chosen.dataset], f"evidence_{chosen.dataset}"
    deadline = math.inf if chosen.minutes is None else began + 60 * chosen.minutes
    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    data = as_dataset(load_data(chosen.data or "cifar10", chosen.data_dir), channels_first=True)
    pairs = product(chosen.seeds or SEEDS, chosen.arms)
    trained, file = keys(file), f"{file}_apgd" if chosen.apgd else file
    for seed, arm in sorted(pairs, key=lambda pair: pair[1] in LATER):
        if (arm, str(seed)) in keys(file) or (chosen.apgd and (arm, str(seed)) not in trained):
            continue
        folder = RUNS / chosen.dataset / f"{arm.replace(' ', '_')}-{seed}"
        own = Run(regime, ARMS[arm], seed, data, folder, device)
        row = own.measured(("apgd",), APGD_STEPS) if chosen.apgd else own.row(deadline)
        if row is not None:
            append(file, {"arm": arm, "seed": seed, **row})
            print(seed, arm, *(f"{k} {v:.3f}" for k, v in row.items()), flush=True)
        if time.monotonic() > deadline or row is None:
            return


def keys(file: str) -> set[tuple[str, str]]:
    """Arms and seeds in a table."""
    return {(row["arm"], row["seed"]) for row in rows_of(file)}
