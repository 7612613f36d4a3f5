"""The PyTorch engine: the training loop behind ``spatlib.train(backend="torch")``."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spatlib.config import SPATConfig, TrainConfig
from spatlib.errors import ConfigError, NonFiniteError
from spatlib.schedule import lr_factor

from . import ops
from .batches import Batches, device_of
from .evaluation import check, evaluate
from .inputs import check_label_values, logits_of, one_hot, prepare
from .losses import BatchLoss, batch_loss
from .models import MODELS
from .state import attack_state, unwrap

__all__ = ["CHANNELS_FIRST", "build_model", "check", "evaluate", "fit"]

CHANNELS_FIRST = True
READ_EVERY = 50  # steps between two looks at the device: whether all was finite, progress
STANDARD = SPATConfig()  # ordinary training uses its bounds only


def build_model(recipe: str, seed: int) -> nn.Module:
    """The recipe's model; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[recipe]()


def fit(
    model: nn.Module, data: Any, config: SPATConfig | None, training: TrainConfig, label: str
) -> list[dict[str, float]]:
    """Train in place, return the history; see :func:`spatlib.train`.

    The update of a step whose loss or gradient is not finite is left out on the device, together
    with the module's buffers (BatchNorm statistics); the host learns of it at the next look.
    """
    device = device_of(model, training.device)
    model.to(device)
    batches = Batches(data, training.batch_size, model, device)
    total = training.epochs * len(batches)
    if total == 0 and training.schedule != "constant":
        raise ConfigError("schedule", expected="'constant' for data of unknown length",
                          received=repr(training.schedule),
                          fix="Set schedule='constant', or give the data a __len__.")  # fmt: skip
    if batches.arrays is not None:
        _check(model, batches, config or STANDARD)
    devices = [device] if device.type == "cuda" else []
    modes = [(module, module.training) for module in model.modules()]
    with (
        torch.random.fork_rng(devices=devices),
        tqdm(total=total or None, desc=label, unit="step", leave=False,
             disable=None if training.progress else True) as bar,
    ):  # fmt: skip
        _seed_dropout(training.seed, device)
        model.train()
        try:
            return _Loop(model, batches, config, training, total, bar).run()
        finally:
            for module, flag in modes:
                module.training = flag


class _Loop:
    """The state of one training run."""

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        config: SPATConfig | None,
        training: TrainConfig,
        total: int,
        bar: Any,
    ) -> None:
        self.model, self.batches, self.bar = model, batches, bar
        self.config, self.training, self.total = config, training, total
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ConfigError("model", expected="parameters to train", received="none",
                              fix="Set requires_grad on some of them.")  # fmt: skip
        # fused: the one implementation that can leave an update out without asking the host.
        self.optimizer = torch.optim.SGD(self.parameters, lr=training.lr, fused=True,
                                         momentum=training.momentum,
                                         weight_decay=training.weight_decay)  # fmt: skip
        device = batches.device
        self.order = torch.Generator().manual_seed(training.seed)
        self.starts = torch.Generator(device).manual_seed(training.seed)
        self.step = 0
        self.first_bad = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far
        self.history: list[dict[str, float]] = []

    def run(self) -> list[dict[str, float]]:
        for epoch in range(1, self.training.epochs + 1):
            began = time.perf_counter()
            sums, count = torch.zeros(3, dtype=torch.float64, device=self.batches.device), 0
            for x, y in self.batches.go_through(self.order):
                sums += self._train_on(
                    x, y, validate=epoch == 1 and self.batches.arrays is None
                ) * len(y)
                count += len(y)
                if self.step % READ_EVERY == 0:
                    self._look(sums, count)
            loss, accuracy, stall_rate = self._look(sums, count)
            self.history.append({
                "epoch": epoch, "loss": loss, "adv_accuracy": accuracy, "stall_rate": stall_rate,
                "lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - began,
            })  # fmt: skip
        return self.history

    def _train_on(self, x: Tensor, y: Tensor, *, validate: bool) -> Tensor:
        """One step; returns loss, accuracy on the training inputs and stall rate, unread."""
        self._set_lr()
        buffers = [(b, b.detach().clone()) for b in self.model.buffers()]
        if self.config is None:
            outcome = _standard_loss(self.model, x, y, validate)
        else:
            outcome = batch_loss(self.model, x, y, self.config, generator=self.starts,
                                 validate=validate)  # fmt: skip
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(outcome.loss)
        self.step += 1
        grads = [p.grad for p in self.parameters if p.grad is not None]
        finite = torch.isfinite(outcome.loss.detach() + nn.utils.get_total_norm(grads))
        bad = torch.where(finite, 0, self.step)
        self.first_bad = torch.where(self.first_bad > 0, self.first_bad, bad)
        self._gated_update(buffers)
        accuracy = (outcome.logits.argmax(dim=1) == y).double().mean()
        return torch.stack([outcome.loss.detach().double(), accuracy, outcome.stall_rate.double()])

    def _gated_update(self, buffers: list[tuple[Tensor, Tensor]]) -> None:
        stopped = self.first_bad > 0
        # What torch.amp.GradScaler does: a fused optimizer skips its update where this is 1.
        self.optimizer.found_inf = stopped.float()  # type: ignore[attr-defined]
        self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.optimizer.step()
        for buffer, before in buffers:
            buffer.copy_(torch.where(stopped, before, buffer))

    def _set_lr(self) -> None:
        factor = lr_factor(self.training.schedule, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.lr * factor

    def _look(self, sums: Tensor, count: int) -> list[float]:
        """Read the running means and the flag; the only wait for the device."""
        first_bad, *means = torch.cat([self.first_bad.double()[None], sums / count]).tolist()
        if first_bad:
            error = NonFiniteError("loss", expected="a finite loss and gradient",
                                   received=f"NaN or infinity at step {int(first_bad)}",
                                   fix="The model holds the weights from before that step. "
                                   "Lower lr, or look at the data of that step.")  # fmt: skip
            error.history = self.history
            raise error
        self.bar.update(self.step - self.bar.n)
        self.bar.set_postfix(loss=f"{means[0]:.3f}", adv_accuracy=f"{means[1]:.3f}")
        return means


def _check(model: nn.Module, batches: Batches, config: SPATConfig) -> None:
    """Go through the data once before the model changes: a DataError comes at once."""
    with attack_state(unwrap(model), "eval", batches.device, keep_rng=True), torch.no_grad():
        for x, y in batches.go_through():
            x, y = prepare(x, y, config, validate=True)
            check_label_values(y, logits_of(unwrap(model), x[:1]).shape[1])


def _seed_dropout(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _standard_loss(model: nn.Module, x: Tensor, y: Tensor, validate: bool) -> BatchLoss:
    """Ordinary cross-entropy: the baseline."""
    x, y = prepare(x, y, STANDARD, validate)
    logits = logits_of(model, x)
    if validate:
        check_label_values(y, logits.shape[1])
    loss = -(one_hot(y, logits) * ops.log_softmax(logits)).sum(dim=1).mean()
    return BatchLoss(loss, logits.detach(), loss.new_zeros(()))
