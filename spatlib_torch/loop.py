"""One training run: its steps, its state, and how it is saved and taken up."""

import math
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

from spatlib.config import SPATConfig, fold, warmed_up
from spatlib.core.calls import alone
from spatlib.core.target import check_mass, hard_labels, label_mass, mass_limits
from spatlib.data import is_pair
from spatlib.engines import unpack
from spatlib.errors import LEAVE, DataError, NonFiniteError, check_range, check_weights, require
from spatlib.monitor import MEANS, READ_EVERY, Monitor, check_repeated, show
from spatlib.runs import CHECKPOINT

from . import attack, ops, state
from .distributed import agreeing, collected, step_alike
from .graphs import Replayed
from .loaders import Batch, Batches, Epoch, Rows, augment
from .state import ATTACK, AUGMENT, STEP, Named, bare, clones, fill, packed, seed_globals, tensors

PROGRESS = ("history", "step", "done", "count", "seconds", "sums")  # the numbers in a checkpoint
LEAST = 1e-4  # the scale of a loss in float16 falls below it where no gradient is finite


@dataclass(eq=False)
class Loop:
    """The state of a training run, from its checkpoint on; :meth:`run` takes it to its end."""

    model: nn.Module
    batches: Batches
    config: SPATConfig
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    monitor: Monitor
    bar: Any

    def __post_init__(self) -> None:
        self.training = training = self.monitor.training
        self.trained = {n: p for n, p in bare(self.model).named_parameters() if p.requires_grad}
        self.average = clones(self.trained if training.ema else {})
        self.history: list[dict[str, float]] = []
        # Steps so far; of this epoch steps, examples, seconds, and sums of MEANS over the examples.
        self.step, self.done, self.count, self.seconds, self.sums = 0, 0, 0, 0.0, [0.0] * len(MEANS)
        # Numbers in the epoch, limits of labels; on the device MEANS, extremes, examples.
        self.seen: list[tuple[int, Any, Tensor]] = []
        self.scaler = GradScaler(self.batches.device.type, enabled=training.precision == "float16")
        kind, device = getattr(torch, training.precision), self.batches.device
        self.casting = torch.autocast(device.type, kind, kind != torch.float32)
        # In training mode a model may choose on the host, by chance, what a graph would repeat.
        fixed = training.compile and self.config.attack_mode == "eval" and not self.monitor.ordinary
        self.attack = Replayed(self._attacked, self.model, device, fixed)
        self.calls = attack.calls_of(compile=self.attack.on)  # a CPU saves little
        self.kept = self._restored() or clones(tensors(self.model) | self.average)  # to go back to

    def run(self) -> list[dict[str, float]]:
        """All epochs that are left; after a DataError the model is as after the last whole one."""
        try:
            first, rest = self._begun()
            while not self.monitor.stopped(self.history):
                self._epoch(first, rest)
                first, rest = (), self.batches.epoch(self.training.seed, len(self.history))
        except DataError:  # a NonFiniteError is one
            fill(tensors(self.model), self.kept)
            raise
        fill(self.trained, self.average)
        return self.history

    def _begun(self) -> tuple[Iterable[Batch], Epoch]:
        """The next batch, looked at before anything is written (not of arrays), and the rest."""
        count, device = self.batches.count, self.batches.device
        epoch = partial(self.batches.epoch, self.training.seed, len(self.history))
        over, rest = self.monitor.stopped(self.history), epoch(self.done)
        with agreeing(device):
            if self.step and count is None and not over:
                check_repeated(epoch)
            first = [*islice(rest, 0 if over or is_pair(self.batches.data) else 1)]
            for x, y, _, weights in first:
                attack.looked_at(self.model, x, y, self.config)
                if weights is not None:
                    check_weights(weights, x, values=True)
        with agreeing(device):
            for x, y, *_ in first if count is None else ():
                self.batches.check_own(x, y)
            self.monitor.begin(self.history)
        return iter(first), rest  # the iterator lets go of the batch

    def _epoch(self, first: Iterable[Batch], rest: Epoch) -> None:
        """A new epoch, or the rest of one that was interrupted; its row, validation and files."""
        self.began = time.perf_counter() - self.seconds
        with closing(rest):
            for batch in chain(first, rest):
                with alone(bare(self.model)):
                    self.train_on(*batch)
                if self.step % READ_EVERY == 0 or (self.batches.size == 1 and self.monitor.due()):
                    self._look()
                    if self._due():
                        self.monitor.save(self._checkpoint())
        rate = float(self.rates[0])
        row = {"epoch": len(self.history) + 1, **self._look(), "lr": rate, "seconds": self.seconds}
        self.history.append(row)
        self.done, self.count, self.seconds, self.sums = 0, 0, 0.0, [0.0] * len(MEANS)
        self.kept = clones(tensors(self.model) | self.average)
        raw = clones(self.trained if self.average else {})
        latest = partial(packed, bare(self.model).state_dict() | raw)
        averaged = (lambda: packed(bare(self.model).state_dict())) if self.average else None
        fill(self.trained, self.average)
        try:
            self.monitor.epoch(self.history, self.model, latest, averaged)
        finally:
            fill(self.trained, raw)
        if self.monitor.run is not None:
            self._due()
            self.monitor.save(self._checkpoint())

    def _due(self) -> bool:
        """Whether to save now: all processes do if one has to, and obey the same signal."""
        facts = [self.monitor.due(), self.monitor.signal or 0]
        all_facts = torch.stack(collected(torch.tensor(facts, device=self.batches.device)))
        due, number = all_facts.amax(dim=0).tolist()
        self.monitor.signal = self.monitor.signal or number or None
        return bool(due)

    def train_on(self, x: Tensor, y: Tensor, rows: Rows, weights: Tensor | None) -> None:
        """One step, on these rows of the batch of all processes. Reads no value on the host."""
        training, model, device = self.training, self.model, self.batches.device
        config = warmed_up(self.config, training.eps_warmup, len(self.history))
        seed = partial(fold, training.seed, len(self.history), self.done)
        seed_globals(seed(STEP, *rows[:1]), device)
        source = torch.Generator(device).manual_seed(seed(AUGMENT))
        moved = augment(x, training.augment, config.bounds[0], attack.Draws(source, *rows))
        moved, y = ops.prepare(moved, y, config, validate=False)
        x_adv, *rates = self.attack(seed(ATTACK), (config, rows, len(self.history)), moved, y)
        own = partial(attack.averaged, model, own=self.average) if config.rectify else None
        with self.casting:
            losses, logits = attack.outer(model, moved, x_adv, y, config, average=own)
            losses = losses if weights is None else losses * weights.to(losses.dtype)
            loss = losses.mean() * (len(y) / rows[1])  # the part of the mean of all processes
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        step_alike(bare(model))
        self.scaler.unscale_(self.optimizer)
        if training.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.trained.values(), training.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._schedule()
        if self.average:  # from the weights after the first update on
            move = get_ema_multi_avg_fn(training.ema if self.step else 0.0)  # type: ignore[no-untyped-call]
            move(list(self.average.values()), list(self.trained.values()), 0)
        self.step, self.done = self.step + 1, self.done + 1
        accuracy = (logits.argmax(dim=1) == hard_labels(ops, y)).to(losses.dtype).mean()
        ends = *torch.aminmax(x), *torch.aminmax(label_mass(ops, y, config.loss))
        count = loss.new_full((), len(y))  # a new_tensor would wait for the device
        ends = *ends, *((count, count) if weights is None else torch.aminmax(weights))
        values = losses.detach().mean(), accuracy, *rates, *ends, count
        self.seen.append((self.done, mass_limits(y, logits.shape[1]), torch.stack(values)))

    def _attacked(self, source: torch.Generator, how: Any, x: Tensor, y: Tensor) -> Any:
        """x' and the mean rates; what is cast of the weights is kept until its end."""
        config, rows, _ = how  # the epoch, as what is called between two may change the model
        if self.monitor.ordinary:
            return x, *[x.new_zeros(())] * 2
        with self.casting:
            draws = attack.Draws(source, *rows)
            found = self.calls.attacked(self.model, x, y, config, source=draws)
        return found.x, found.stalls.mean(), found.holes.mean()

    def _schedule(self) -> None:
        self.rates = self.scheduler.get_last_lr()  # of the step that is done
        self.scheduler.step()

    def _look(self) -> dict[str, float]:
        """The epoch's means so far; raises for what went wrong. The only wait for the device."""
        seen = collected(torch.stack([row for *_, row in self.seen])) if self.seen else []
        self.seconds = time.perf_counter() - self.began
        each = (rows.tolist() for rows in seen)  # of each process
        for (number, limits, _), *rows in zip(self.seen, *each, strict=True):
            try:
                for row in rows:
                    check_range(row[4:6], self.config.bounds)
                    check_mass(row[6:8], limits)
                    check_range(row[8:10], (0.0, math.inf), "weights", LEAVE)
            except DataError as error:
                where = f"epoch {len(self.history) + 1}, batch {number}"
                raise DataError(f"{where}: {error}") from None
            if not all(math.isfinite(row[0]) for row in rows):
                raise NonFiniteError(self.step - self.done + number, self.history)
            for *row, count in rows:
                self.count += count
                self.sums = [s + count * new for s, new in zip(self.sums, row, strict=False)]
        # In the largest parameter a gradient shows that was not finite, though the loss was.
        finite = nn.utils.get_total_norm(self.trained.values(), math.inf).isfinite()
        if not finite or self.scaler.get_scale() < LEAST:
            raise NonFiniteError(self.step, self.history)
        self.seen = []
        means = {name: n / self.count for name, n in zip(MEANS, self.sums, strict=True)}
        show(self.bar, self.step, (self.history[-1] if self.history else {}) | means)
        return means

    def _checkpoint(self) -> Iterator[bytes]:
        module, meta = bare(self.model), {name: getattr(self, name) for name in PROGRESS}
        moments, optimizer = state.optimizer_state(self.optimizer, self.trained)
        parts: dict[str, Named] = {"model": module.state_dict(), "average": self.average}
        parts |= {"buffers": dict(module.named_buffers()), "optimizer": moments}
        parts["kept"] = self.kept if self.done else {}
        named = {f"{part}.{name}": t for part, own in parts.items() for name, t in own.items()}
        meta |= {"device": self.batches.device.type, "scaler": self.scaler.state_dict()}
        return packed(named, meta | {"optimizer": optimizer})

    def _restored(self) -> dict[str, Tensor]:
        """Take up the checkpoint, if there is one; what an epoch that was interrupted kept."""
        with agreeing(self.batches.device):
            content = self.monitor.checkpoint()
        if content is None:
            return {}
        named, meta = unpack(safetensors.torch.load, content, CHECKPOINT)
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for path, tensor in named.items():
            part, _, name = path.partition(".")
            parts[part][name] = tensor
        state.put(self.model, parts["model"], CHECKPOINT)
        began, device = meta["device"], self.batches.device.type
        what = f"be {began!r}, where the run began: other kinds of device draw other numbers"
        require(began == device, "device", what, device)
        for name in PROGRESS:
            setattr(self, name, meta[name])
        with warnings.catch_warnings(action="ignore"):  # of steps of no optimizer before them
            for _ in range(self.step):
                self._schedule()
        state.load_optimizer(self.optimizer, self.trained, parts["optimizer"], meta["optimizer"])
        self.scaler.load_state_dict(meta["scaler"])
        fill(tensors(self.model), parts["buffers"])  # those of no state dict too
        fill(self.average, parts["average"])
        show(self.bar, self.step, {})
        return parts["kept"]
