"""One training run: its steps, its state, and how it is saved and taken up."""

from __future__ import annotations

import copy
import time
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spatlib import tensors
from spatlib.config import SPATConfig
from spatlib.errors import ConfigError, DataError, NonFiniteError
from spatlib.monitor import SHOWN, Monitor
from spatlib.run import CHECKPOINT
from spatlib.schedule import lr_factor, warmed_up
from spatlib.train_config import TrainConfig

from . import ops
from .augment import augment
from .batches import Batches
from .checkpoint import copies, put, weights
from .inputs import check_label_values, logits_of, one_hot, prepare
from .losses import BatchLoss, batch_loss
from .state import unwrap

READ_EVERY = 50  # steps between two reads from the device
PROGRESS = ("history", "step", "done", "count", "seconds")  # the numbers in a checkpoint


class Loop:
    """The state of a training run; :meth:`run` takes it to its end."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        config: SPATConfig,
        training: TrainConfig,
        total: int,
        bar: Any,
        monitor: Monitor,
        ordinary: bool,
    ) -> None:
        self.model, self.batches, self.bar, self.monitor = model, batches, bar, monitor
        self.config, self.training, self.total = config, training, total
        self.attack = config  # the epoch's settings: eps is smaller during the warm-up
        self.loss = _standard_loss if ordinary else batch_loss
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError("model has no parameters to train: set requires_grad on some of them")
        # Only the fused implementation can leave an update out without a read by the host.
        self.optimizer = torch.optim.SGD(
            self.parameters,
            training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.average = copy.deepcopy(unwrap(model)).requires_grad_(False) if training.ema else None
        device = batches.device
        self.order = torch.Generator().manual_seed(training.seed)
        self.starts = torch.Generator(device).manual_seed(training.seed)
        # So far from the seeds in use that crops never draw what starts or the order draw.
        self.crops = torch.Generator(device).manual_seed(training.seed + 2**40)
        self.step = 0
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far
        self.history: list[dict[str, float]] = []
        # Of the current epoch: batches done, examples in them, sums of what is reported, seconds,
        # and the states of the generators at its beginning.
        self.done, self.count, self.seconds = 0, 0, 0.0
        wide = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(3, dtype=wide, device=device)
        self.began: dict[str, Tensor] = {}

    def run(self) -> list[dict[str, float]]:
        content = self.monitor.checkpoint()
        if content is not None:
            self._restore(content)
        while not self.monitor.stopped(self.history):
            self._finish_epoch()
            self._report()
        if self.average is not None:
            put(self.model, self.average.state_dict(), "average")
        return self.history

    def _finish_epoch(self) -> None:
        """The rest of the epoch that was interrupted, or a new epoch."""
        clock = time.perf_counter() - self.seconds
        first = not self.history and self.batches.arrays is None
        self.attack = warmed_up(self.config, self.training.eps_warmup, len(self.history))
        now = self._generators()
        if self.done:  # repeat the epoch's order and skip the batches that are done
            self._set_generators({**now, **self.began})
        else:
            self.began = {name: now[name] for name in ("order", "global", "loader") if name in now}
        passing = self.batches.go_through(self.order)
        for _ in range(self.done):
            next(passing)
        if self.done:
            self._set_generators(now)
        for x, y in passing:
            x = augment(x, self.training.augment, self.batches.bounds[0], self.crops)
            self.sums += self._train_on(x, y, validate=first) * len(y)
            self.done, self.count = self.done + 1, self.count + len(y)
            if self.step % READ_EVERY == 0:
                self._look()
            if self.monitor.due():
                self._look()
                self.seconds = time.perf_counter() - clock
                self.monitor.save(self._checkpoint())
        self.seconds = time.perf_counter() - clock

    def _report(self) -> None:
        """Close the epoch: its row, validation, files."""
        loss, accuracy, stall_rate = self._look()
        self.history.append(
            {
                "epoch": len(self.history) + 1,
                "loss": loss,
                "adv_accuracy": accuracy,
                "stall_rate": stall_rate,
                "lr": self._lr(self.step - 1),
                "seconds": self.seconds,
            }
        )
        self.done, self.count, self.seconds = 0, 0, 0.0
        self.sums = torch.zeros_like(self.sums)
        average = self.average
        used = self.model if average is None else average
        averaged = None if average is None else lambda: weights(average)
        self.monitor.epoch(self.history, used, lambda: weights(self.model), averaged)
        if self.monitor.run is not None:
            self.monitor.save(self._checkpoint())

    def _train_on(self, x: Tensor, y: Tensor, *, validate: bool) -> Tensor:
        """One step; returns loss, accuracy on the training inputs and stall rate on the device."""
        self._set_lr()
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        low = self.training.precision == "bfloat16"
        with torch.autocast(self.batches.device.type, torch.bfloat16, enabled=low):
            outcome = self.loss(
                self.model, x, y, self.attack, generator=self.starts, validate=validate
            )
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outcome.loss)
        self.step += 1
        grads = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(grads)
        if self.training.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.training.clip_grad_norm, norm)
        finite = torch.isfinite(outcome.loss.detach() + norm)
        bad = torch.where(finite, 0, self.step)
        self.first_bad = torch.where(self.first_bad > 0, self.first_bad, bad)
        self._gated_update(buffers)
        accuracy = (outcome.logits.argmax(dim=1) == y).float().mean()
        parts = (outcome.loss.detach(), accuracy, outcome.stall_rate)
        return torch.stack([part.to(self.sums) for part in parts])

    def _gated_update(self, buffers: list[tuple[Tensor, Tensor]]) -> None:
        stopped = self.first_bad > 0
        # As torch.amp.GradScaler does: a fused optimizer skips its update where found_inf is 1.
        self.optimizer.found_inf = stopped.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        for buffer, before in buffers:
            buffer.copy_(torch.where(stopped, before, buffer))
        if self.average is not None:
            current = unwrap(self.model)
            pairs = (list(module.parameters()) for module in (self.average, current))
            # The average starts at the weights after the first update.
            decay = self.training.ema if self.step > 1 else 0.0
            move = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            move(*pairs, 0)
            for mine, its in zip(self.average.buffers(), current.buffers(), strict=True):
                mine.copy_(its)

    def _set_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr(self.step)

    def _lr(self, step: int) -> float:
        return self.training.lr * lr_factor(self.training.schedule, step, self.total)

    def _look(self) -> list[float]:
        """Read the running means and the flag; the only wait for the device."""
        means = self.sums / self.count
        first_bad, *values = torch.cat([self.first_bad.to(means)[None], means]).tolist()
        if first_bad:
            raise NonFiniteError.at(int(first_bad), self.history)
        self.bar.update(self.step - self.bar.n)
        validated = self.history[-1] if self.history else {}
        shown = {"loss": values[0], "adv_accuracy": values[1]} | {
            name: value for name, value in validated.items() if name in SHOWN
        }
        self.bar.set_postfix({name: f"{value:.3f}" for name, value in shown.items()})
        return values

    def _generators(self) -> dict[str, Tensor]:
        """The state of everything that draws."""
        states = {
            "order": self.order.get_state(),
            "starts": self.starts.get_state(),
            "crops": self.crops.get_state(),
            "global": torch.get_rng_state(),
        }
        if self.batches.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.batches.device)
        if self.batches.device.type == "mps":
            states["mps"] = torch.mps.get_rng_state()
        loader = getattr(self.batches.source, "generator", None)
        if isinstance(loader, torch.Generator):
            states["loader"] = loader.get_state()
        return states

    def _set_generators(self, states: dict[str, Tensor]) -> None:
        self.order.set_state(states["order"])
        self.starts.set_state(states["starts"])
        self.crops.set_state(states["crops"])
        torch.set_rng_state(states["global"])
        if self.batches.device.type == "cuda":
            torch.cuda.set_rng_state(states["cuda"], self.batches.device)
        if self.batches.device.type == "mps":
            torch.mps.set_rng_state(states["mps"])
        if "loader" in states:
            self.batches.source.generator.set_state(states["loader"])

    def _checkpoint(self) -> bytes:
        momentum = {
            str(i): self.optimizer.state[p]["momentum_buffer"]
            for i, p in enumerate(self.parameters)
            if self.optimizer.state[p].get("momentum_buffer") is not None
        }
        parts = {
            "model": unwrap(self.model).state_dict(),
            "momentum": momentum,
            "average": {} if self.average is None else self.average.state_dict(),
            "now": self._generators(),
            "began": self.began,
            "epoch": {"sums": self.sums},
        }
        named = {f"{part}.{name}": t for part, all_ in parts.items() for name, t in all_.items()}
        meta = {name: getattr(self, name) for name in PROGRESS}
        meta["device"] = self.batches.device.type
        return tensors.pack(safetensors.torch.save, copies(named), meta)

    def _restore(self, content: bytes) -> None:
        named, meta = tensors.unpack(safetensors.torch.load, content, CHECKPOINT)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            part, _, rest = name.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        if not parts.keys() >= {"model", "now", "began", "epoch"}:
            raise DataError(f"{CHECKPOINT} must be one of PyTorch: put the file of the run back")
        if meta["device"] != self.batches.device.type:
            raise ConfigError(
                f"device must be {meta['device']!r}, where the run began, got "
                f"{self.batches.device.type!r}: each kind of device draws other random numbers"
            )
        put(self.model, parts["model"], CHECKPOINT)
        if self.average is not None:
            put(self.average, parts["average"], CHECKPOINT)
        for i, buffer in parts.get("momentum", {}).items():
            p = self.parameters[int(i)]
            # A fused optimizer reads raw memory, so the buffer needs the memory format of p.
            self.optimizer.state[p]["momentum_buffer"] = torch.empty_like(p).copy_(buffer)
        for name in PROGRESS:
            setattr(self, name, meta[name])
        self.sums.copy_(parts["epoch"]["sums"])
        self.began = parts["began"]
        self._set_generators(parts["now"])
        self.monitor.resume(self.history)
        self.bar.update(self.step - self.bar.n)


def _standard_loss(
    model: nn.Module, x: Tensor, y: Tensor, config: SPATConfig, *, validate: bool, generator: Any
) -> BatchLoss:
    """Ordinary cross-entropy: the baseline."""
    x, y = prepare(x, y, config, validate)
    logits = logits_of(model, x)
    if validate:
        check_label_values(y, logits.shape[1])
    loss = -(one_hot(y, logits) * ops.log_softmax(logits)).sum(dim=1).mean()
    return BatchLoss(loss, logits.detach(), loss.new_zeros(()))
