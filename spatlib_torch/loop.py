"""One training run: its steps, its state, and how it is saved and taken up."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spatlib import errors as checks
from spatlib.config import SPATConfig
from spatlib.errors import ConfigError, DataError, NonFiniteError
from spatlib.monitor import SHOWN, Monitor
from spatlib.runs import CHECKPOINT, pack, unpack
from spatlib.training import TrainConfig, fold, lr_factor, warmed_up

from .attack import BatchLoss
from .inputs import check_label_values, logits_of, prepare
from .loaders import ATTACK, AUGMENT, STEP, Batches, augment, seed_globals
from .state import attack_state, copies, like, load_optimizer, optimizer_state, put, unwrap, weights

READ_EVERY = 50  # steps between two reads from the device
PROGRESS = ("history", "step", "done", "count", "seconds")  # the numbers in a checkpoint
Loss = Callable[[nn.Module, Tensor, Tensor, SPATConfig, torch.Generator], BatchLoss]


class Loop:
    """The state of a training run; :meth:`run` takes it to its end."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        config: SPATConfig,
        training: TrainConfig,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        monitor: Monitor,
        bar: Any,
    ) -> None:
        self.model, self.batches, self.config, self.training = model, batches, config, training
        self.loss, self.optimizer, self.monitor, self.bar = loss, optimizer, monitor, bar
        self.trained = {n: p for n, p in unwrap(model).named_parameters() if p.requires_grad}
        self.average: dict[str, Tensor] = {}  # of the trained parameters, from the first update on
        self.kept = self._clones()
        total = training.epochs * len(batches)
        self.factor = partial(lr_factor, training.schedule, steps=total)
        self.scheduler = LambdaLR(optimizer, self.factor)
        self.attack = config  # the epoch's settings: eps is smaller during the warm-up
        self.source = torch.Generator(batches.device)
        self.history: list[dict[str, float]] = []
        # Steps so far; of the current epoch steps, examples and seconds.
        self.step, self.done, self.count, self.seconds = 0, 0, 0, 0.0
        wide = torch.float32 if batches.device.type == "mps" else torch.float64  # none on MPS
        # Of the current epoch, on the device: the sums of loss, accuracy and stall rate; and the
        # first step that went wrong (0: none so far) with the extremes of its inputs and labels.
        self.sums = torch.zeros(3, dtype=wide, device=batches.device)
        self.wrong = torch.zeros(5, dtype=wide, device=batches.device)
        self.classes = 0

    def run(self) -> list[dict[str, float]]:
        content = self.monitor.checkpoint()
        if content is not None:
            self._restore(content)
        try:
            while not self.monitor.stopped(self.history):
                self._finish_epoch()
                self._close_epoch()
        except DataError:  # a NonFiniteError is one
            with torch.no_grad():
                for name, tensor in self._tensors().items():
                    tensor.copy_(self.kept[name])
            raise
        self._exchange()
        return self.history

    def _finish_epoch(self) -> None:
        """The rest of the epoch that was interrupted, or a new epoch."""
        clock, epoch = time.perf_counter() - self.seconds, len(self.history)
        self.attack = warmed_up(self.config, self.training.eps_warmup, epoch)
        for x, y in self.batches.epoch(self.training.seed, epoch, self.done):
            if self.step == 0 and not self.batches.in_arrays:
                check_batch(self.model, x, y, self.config, self.training)
            self.train_on(x, y)
            if self.step % READ_EVERY == 0:
                self._look()
            if self.monitor.due():
                self._look()
                self.seconds = time.perf_counter() - clock
                self.monitor.save(self._checkpoint())
        self.seconds = time.perf_counter() - clock

    def _close_epoch(self) -> None:
        """Its row, validation, files."""
        loss, accuracy, stall_rate = self._look()
        row = {"epoch": len(self.history) + 1, "loss": loss, "adv_accuracy": accuracy}
        rate = float(self.scheduler.base_lrs[0]) * self.factor(self.step - 1)
        self.history.append(row | {"stall_rate": stall_rate, "lr": rate, "seconds": self.seconds})
        self.done, self.count, self.seconds = 0, 0, 0.0
        self.sums.zero_()
        averaged = partial(weights, self.model) if self.average else None
        with self._exchanged():
            self.kept = self._clones()
            self.monitor.epoch(self.history, self.model, self._last, averaged)
        if self.monitor.run is not None:
            self.monitor.save(self._checkpoint())

    def train_on(self, x: Tensor, y: Tensor) -> None:
        """One step. Reads no value on the host."""
        seed = partial(fold, self.training.seed, len(self.history), self.done)
        seed_globals(seed(STEP), self.batches.device)
        source, lower = self.source.manual_seed(seed(AUGMENT)), self.batches.bounds[0]
        moved = augment(x, self.training.augment, lower, source)
        low = self.training.precision == "bfloat16"
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=low):
            moved, y = prepare(moved, y, self.attack, validate=False)
            source = self.source.manual_seed(seed(ATTACK))
            loss, logits, stalls = self.loss(self.model, moved, y, self.attack, source)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        if self.training.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), self.training.clip_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        if self.average:
            move = get_ema_multi_avg_fn(self.training.ema)  # type: ignore[no-untyped-call]
            move(list(self.average.values()), list(self.trained.values()), 0)
        elif self.training.ema:
            self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.step, self.done, self.count = self.step + 1, self.done + 1, self.count + len(y)
        self.classes, accuracy = logits.shape[1], (logits.argmax(dim=1) == y).float().mean()
        self._note(len(y), loss.detach(), accuracy, stalls, *torch.aminmax(x), *torch.aminmax(y))

    def _note(self, count: int, *values: Tensor) -> None:
        """Add to the sums, and remember the first step that went wrong.

        A label that names no class has made the loss NaN.
        """
        found = torch.stack([value.to(self.sums) for value in values])
        self.sums += found[:3] * count
        lower, upper = self.config.bounds
        slack = checks.ROUNDING * (upper - lower)
        inside = (found[3] >= lower - slack) & (found[4] <= upper + slack)
        step = torch.where(inside & torch.isfinite(found[0]), 0, self.step).to(found)
        now = torch.cat([step[None], found[3:]])
        self.wrong = torch.where(self.wrong[0] > 0, self.wrong, now)

    def _look(self) -> list[float]:
        """The means of the epoch so far; raises for what went wrong. The only wait for the device.

        A gradient that was not finite shows in the parameters.
        """
        largest = nn.utils.get_total_norm(self.trained.values(), math.inf)
        parts = (self.wrong, largest.to(self.sums)[None], self.sums / self.count)
        step, low, high, first, last, size, *means = torch.cat(parts).tolist()
        if step:
            self._refuse(int(step), (low, high), (int(first), int(last)))
        if not math.isfinite(size):
            raise NonFiniteError(self.step, self.history)
        self.bar.update(self.step - self.bar.n)
        shown = {"loss": means[0], "adv_accuracy": means[1]}
        validated = self.history[-1] if self.history else {}
        shown |= {name: value for name, value in validated.items() if name in SHOWN}
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
        return means

    def _refuse(self, step: int, inputs: tuple[float, float], labels: tuple[int, int]) -> None:
        """Raise for the step that went wrong: the data, if they did, else the loss."""
        try:
            checks.check_range(inputs, self.config.bounds)
            checks.check_labels(labels, self.classes)
        except DataError as error:
            number = step - (self.step - self.done)
            raise DataError(f"epoch {len(self.history) + 1}, batch {number}: {error}") from None
        raise NonFiniteError(step, self.history)

    def _tensors(self) -> dict[str, Tensor]:
        module = unwrap(self.model)
        return dict(module.named_parameters()) | dict(module.named_buffers())

    def _unsaved(self) -> dict[str, Tensor]:
        """The buffers that are no part of the state dict."""
        module = unwrap(self.model)
        return {n: b for n, b in module.named_buffers() if n not in module.state_dict()}

    def _clones(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self._tensors().items()}

    @torch.no_grad()
    def _exchange(self) -> None:
        """Put the average into the model and the model's parameters where the average was."""
        for name, mean in self.average.items():
            value = self.trained[name].detach().clone()
            self.trained[name].copy_(mean)
            mean.copy_(value)

    @contextmanager
    def _exchanged(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _last(self) -> bytes:
        """The weights themselves while the model has their average."""
        with self._exchanged():
            return weights(self.model)

    def _checkpoint(self) -> bytes:
        state, optimizer = optimizer_state(self.optimizer, self.trained)
        parts = {
            "model": unwrap(self.model).state_dict(),
            "rest": self._unsaved(),
            "optimizer": state,
            "average": self.average,
            "kept": self.kept if self.done else {},
            "epoch": {"sums": self.sums},
        }
        named = {f"{part}.{name}": t for part, all_ in parts.items() for name, t in all_.items()}
        meta = {name: getattr(self, name) for name in PROGRESS}
        meta |= {"device": self.batches.device.type, "optimizer": optimizer}
        return pack(safetensors.torch.save, copies(named), meta)

    def _restore(self, content: bytes) -> None:
        named, meta = unpack(safetensors.torch.load, content, CHECKPOINT)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        if not parts.keys() >= {"model", "epoch"}:
            raise DataError(f"{CHECKPOINT} must be one of PyTorch: put the file of the run back")
        device = self.batches.device
        if meta["device"] != device.type:
            raise ConfigError(
                f"device must be {meta['device']!r}, where the run began, got {device.type!r}: "
                "each kind of device draws other random numbers"
            )
        put(self.model, parts["model"], CHECKPOINT)
        with torch.no_grad():
            for name, buffer in self._unsaved().items():
                buffer.copy_(parts["rest"][name])
        load_optimizer(self.optimizer, self.trained, parts.get("optimizer", {}), meta["optimizer"])
        if "average" in parts:
            self.average = {
                name: like(p, parts["average"][name]) for name, p in self.trained.items()
            }
        for name in PROGRESS:
            setattr(self, name, meta[name])
        self.sums.copy_(parts["epoch"]["sums"])
        with self._exchanged():
            kept = parts.get("kept", self._clones())
        self.kept = {name: t.to(device) for name, t in kept.items()}
        self.scheduler = LambdaLR(self.optimizer, self.factor, last_epoch=self.step - 1)
        self.monitor.resume(self.history)
        self.bar.update(self.step - self.bar.n)


def check_batch(
    model: nn.Module, x: Tensor, y: Tensor, config: SPATConfig, training: TrainConfig
) -> int:
    """The number of classes; DataError or ConfigError for a batch that cannot be trained on."""
    x, y = prepare(x, y, config, validate=True)
    if training.augment != "none":
        checks.check_images(x.shape)
    eager = torch.compiler.set_stance("force_eager")  # this pass is the only one of its kind
    with eager, attack_state(unwrap(model), fork=x.device) as module, torch.no_grad():
        classes = logits_of(module, x).shape[1]
    check_label_values(y, classes)
    return classes
