"""One training run: its steps, its state, and how it is saved and taken up."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spatlib.config import SPATConfig, Threat, TrainConfig, fold, lr_factor, warmed_up
from spatlib.errors import DataError, NonFiniteError, check_labels, check_range, require
from spatlib.monitor import SHOWN, Monitor
from spatlib.runs import CHECKPOINT, unpack

from .attack import BatchLoss
from .inputs import check_label_values, logits_of, prepare
from .loaders import ATTACK, AUGMENT, STEP, Batches, augment, seed_globals
from .state import attack_state, load_optimizer, optimizer_state, packed, put, unwrap, weights

READ_EVERY = 50  # steps between two reads from the device
PROGRESS = ("history", "step", "done", "count", "seconds", "sums")  # the numbers in a checkpoint
MEANS = ("loss", "adv_accuracy", "stall_rate")  # of an epoch
BAR = (*MEANS[:2], *SHOWN)


@dataclass(eq=False)
class Loop:
    """The state of a training run; :meth:`run` takes it to its end."""

    model: nn.Module
    batches: Batches
    config: SPATConfig
    training: TrainConfig
    loss: Callable[..., BatchLoss]  # of model, x, y, config and generator
    optimizer: torch.optim.Optimizer
    monitor: Monitor
    bar: Any

    def __post_init__(self) -> None:
        training, device = self.training, self.batches.device
        named = unwrap(self.model).named_parameters()
        self.trained = {name: p for name, p in named if p.requires_grad}
        self.average = clones(self.trained if training.ema else {})
        self.kept = clones(self._model())  # to be put back if an epoch goes wrong
        total = training.epochs * len(self.batches)
        self.factor = partial(lr_factor, training.schedule, steps=total)
        self.scheduler = LambdaLR(self.optimizer, self.factor)
        self.attack = self.config  # the epoch's settings: eps is smaller during the warm-up
        self.source = torch.Generator(device)
        self.history: list[dict[str, float]] = []
        # Steps so far; of the current epoch steps, examples and seconds.
        self.step, self.done, self.count, self.seconds = 0, 0, 0, 0.0
        self.sums = [0.0, 0.0, 0.0]  # of MEANS, over the examples of the epoch
        # Step, its number in the epoch, examples; on the device MEANS, extremes of inputs, labels.
        self.seen: list[tuple[int, int, int, Tensor]] = []

    def run(self) -> list[dict[str, float]]:
        content = self.monitor.checkpoint()
        if content is not None:
            self._restore(content)
        try:
            while not self.monitor.stopped(self.history):
                self._epoch()
        except DataError:  # a NonFiniteError is one
            fill(self._model(), self.kept)
            raise
        fill(self.trained, self.average)
        return self.history

    def _epoch(self) -> None:
        """A new epoch, or the rest of one that was interrupted; its row, validation and files."""
        begun, epoch = time.perf_counter() - self.seconds, len(self.history)
        self.attack = warmed_up(self.config, self.training.eps_warmup, epoch)
        for x, y in self.batches.epoch(self.training.seed, epoch, self.done):
            if self.step == 0 and not self.batches.in_arrays:
                check_batch(self.model, x, y, self.config)
            self.train_on(x, y)
            due = self.monitor.due()
            if due or self.step % READ_EVERY == 0:
                self._look()
            self.seconds = time.perf_counter() - begun
            if due:
                self.monitor.save(self._checkpoint())
        rate = float(self.scheduler.base_lrs[0]) * self.factor(self.step - 1)
        row = {"epoch": epoch + 1, **self._look(), "lr": rate, "seconds": self.seconds}
        self.history.append(row)
        self.done, self.count, self.seconds, self.sums = 0, 0, 0.0, [0.0, 0.0, 0.0]
        self.kept = clones(self._model() | self.average)
        packs = partial(weights, self.model)
        if self.average:
            own = deepcopy(unwrap(self.model).state_dict())
            fill(self.trained, self.average)
            self.monitor.epoch(self.history, self.model, partial(packed, own), packs)
            put(self.model, own, "average")
        else:
            self.monitor.epoch(self.history, self.model, packs, None)
        if self.monitor.run is not None:
            self.monitor.save(self._checkpoint())

    def train_on(self, x: Tensor, y: Tensor) -> None:
        """One step. Reads no value on the host."""
        training, device, draws = self.training, self.batches.device, self.source.manual_seed
        lower, low = self.config.bounds[0], training.precision == "bfloat16"
        seed = partial(fold, training.seed, len(self.history), self.done)
        seed_globals(seed(STEP), device)
        moved = augment(x, training.augment, lower, draws(seed(AUGMENT)))
        with torch.autocast(device.type, torch.bfloat16, low):
            moved, y = prepare(moved, y, self.attack, validate=False)
            loss, logits, stalls = self.loss(self.model, moved, y, self.attack, draws(seed(ATTACK)))
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        if training.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), training.clip_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        if self.average and self.step == 0:
            fill(self.average, self.trained)
        elif self.average:
            move = get_ema_multi_avg_fn(training.ema)  # type: ignore[no-untyped-call]
            move(list(self.average.values()), list(self.trained.values()), 0)
        self.step, self.done, self.count = self.step + 1, self.done + 1, self.count + len(y)
        self.classes, accuracy = logits.shape[1], (logits.argmax(dim=1) == y).float().mean()
        values = loss.detach(), accuracy, stalls, *torch.aminmax(x), *torch.aminmax(y)
        self.seen.append((self.step, self.done, len(y), torch.stack(values)))

    def _look(self) -> dict[str, float]:
        """The epoch's means so far; raises for what went wrong. The only wait for the device."""
        # A gradient that was not finite shows in the parameters.
        size = nn.utils.get_total_norm(self.trained.values(), math.inf)
        *rows, (largest, *_) = torch.stack([*(s[-1] for s in self.seen), size.expand(7)]).tolist()
        for (step, number, count, _), row in zip(self.seen, rows, strict=True):
            try:
                check_range(row[3:5], self.config.bounds)
                check_labels(row[5:], self.classes)
            except DataError as error:
                raise DataError(f"epoch {len(self.history) + 1}, batch {number}: {error}") from None
            if not math.isfinite(row[0]):
                raise NonFiniteError(step, self.history)
            self.sums = [total + count * new for total, new in zip(self.sums, row, strict=False)]
        if not math.isfinite(largest):
            raise NonFiniteError(self.step, self.history)
        self.seen = []
        means = {name: n / self.count for name, n in zip(MEANS, self.sums, strict=True)}
        shown = (self.history[-1] if self.history else {}) | means
        self.bar.update(self.step - self.bar.n)
        self.bar.set_postfix({name: f"{shown[name]:.3f}" for name in BAR if name in shown})
        return means

    def _model(self) -> dict[str, Tensor]:
        module = unwrap(self.model)
        return dict(module.named_parameters()) | dict(module.named_buffers())

    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds beside the optimizer's state; ``kept`` not at an epoch's end."""
        module, kept = unwrap(self.model), self.kept if self.done else {}
        parts = {"model": module.state_dict(), "buffers": dict(module.named_buffers())}
        return parts | {"average": self.average, "kept": kept}

    def _checkpoint(self) -> bytes:
        state, optimizer = optimizer_state(self.optimizer, self.trained)
        parts = self._parts() | {"optimizer": state}
        named = {f"{part}.{name}": t for part, own in parts.items() for name, t in own.items()}
        meta = {name: getattr(self, name) for name in PROGRESS}
        return packed(named, meta | {"device": self.batches.device.type, "optimizer": optimizer})

    def _restore(self, content: bytes) -> None:
        named, meta = unpack(safetensors.torch.load, content, CHECKPOINT)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for name, tensor in named.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        put(self.model, parts["model"], CHECKPOINT)
        began, device = meta["device"], self.batches.device.type
        what = f"be {began!r}, where the run began: other kinds of device draw other numbers"
        require(began == device, "device", what, device)
        load_optimizer(self.optimizer, self.trained, parts["optimizer"], meta["optimizer"])
        for name in PROGRESS:
            setattr(self, name, meta[name])
        for name, tensors in self._parts().items():
            fill(tensors, parts[name])
        if self.done == 0:
            self.kept = clones(self._model() | self.average)
        self.scheduler = LambdaLR(self.optimizer, self.factor, last_epoch=self.step - 1)
        self.monitor.resume(self.history)
        self.bar.update(self.step - self.bar.n)


def clones(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the device."""
    return {name: tensor.detach().clone() for name, tensor in named.items()}


@torch.no_grad()
def fill(named: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into the tensors of the same names."""
    for name, value in values.items():
        named[name].copy_(value)


def check_batch(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, classes: int = 0) -> int:
    """The number of classes; DataError for a batch that cannot be trained on."""
    x, y = prepare(x, y, threat, validate=True)
    if not classes:  # once, so not worth compiling
        eager = torch.compiler.set_stance("force_eager")
        with eager, attack_state(unwrap(model), fork=x.device) as module, torch.no_grad():
            classes = logits_of(module, x).shape[1]
    check_label_values(y, classes)
    return classes
