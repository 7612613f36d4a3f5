"""The PyTorch engine: the training loop behind ``spatlib.train(backend="torch")``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from spatlib.config import SPATConfig, Threat
from spatlib.core.attack import is_correct
from spatlib.core.attack import survivors as core
from spatlib.errors import ConfigError, require_choice
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor
from spatlib.training import TrainConfig, check_length

from . import ops
from .attack import BatchLoss, Draws, attacked, batch_loss
from .attack import vjp as attack_vjp
from .inputs import check_label_values, check_tensor, logits_of, one_hot, prepare
from .loaders import CPU, Batches, device_of, keeping_globals
from .loop import Loop, check_batch
from .models import MODELS
from .state import attack_state, compiled, load_weights, unwrap, weights

__all__ = [
    "CHANNELS_FIRST",
    "build_model",
    "check",
    "fit",
    "load_weights",
    "logits",
    "perturb",
    "survivors",
    "vjp",
    "weights",
]

CHANNELS_FIRST = True


def build_model(
    name: str, seed: int, *, shape: Sequence[int], classes: int, mean: Any, std: Any
) -> nn.Module:
    """See :class:`spatlib.engines.Engine`; the global generator stays as it was."""
    require_choice("model", name, MODELS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name](shape, classes, mean, std)
    # The first convolution gives its output this format, and so do the layers after it.
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def fit(
    model: nn.Module,
    data: Any,
    config: SPATConfig,
    training: TrainConfig,
    label: str,
    monitor: Monitor | None = None,
    *,
    ordinary: bool = False,
    optimizer: Any = None,
) -> list[dict[str, float]]:
    """Train in place, return the history; see :func:`spatlib.train`.

    After a DataError the model has the weights of the last whole epoch: those from the start, if
    there was none.
    """
    device = device_of(model, training.device)
    model.to(device)
    batches = Batches(data, training.batch_size, model, device, config.bounds)
    total = training.epochs * len(batches)
    check_length(training.schedule, total)
    modes = [(module, module.training) for module in model.modules()]
    hidden = None if training.progress else True  # None: shown in a terminal only
    bar = tqdm(total=total or None, desc=label, unit="step", leave=False, disable=hidden)
    monitor, loss = monitor or Monitor(training), standard_loss if ordinary else batch_loss
    with keeping_globals(device), compiled(unwrap(model), training.compile), bar:
        if batches.in_arrays:
            _check(model, batches, config, training)
        made = _optimizer(model, training, optimizer)
        try:
            model.train()
            return Loop(model, batches, config, training, loss, made, monitor, bar).run()
        finally:
            for module, flag in modes:
                module.training = flag


def _optimizer(model: nn.Module, training: TrainConfig, make: Any) -> torch.optim.Optimizer:
    """The one that was asked for, else SGD, of the parameters that are to be trained."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError("model has no parameters to train: set requires_grad on some of them")
    if any(map(nn.parameter.is_lazy, parameters)):
        raise ConfigError("model has parameters without a shape: call it on a batch first")
    if make is None:
        make = partial(
            torch.optim.SGD,
            lr=training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,
        )
    made = make(parameters) if callable(make) else make
    if made is make or not isinstance(made, torch.optim.Optimizer):
        raise ConfigError(
            "optimizer must be a function from parameters to a torch.optim.Optimizer, as in "
            f"lambda p: torch.optim.AdamW(p, lr=1e-3), got {type(made).__name__}"
        )
    held = {id(p) for group in made.param_groups for p in group["params"]}
    if not held <= set(map(id, parameters)):
        raise ConfigError(
            "optimizer must be made of the parameters that the function is given, got others: "
            "they would stay as they are, and those of the model untrained"
        )
    return made


def _check(model: nn.Module, batches: Batches, config: SPATConfig, training: TrainConfig) -> None:
    """Raise DataError for bad arrays before the model changes."""
    classes = 0
    for x, y in batches:
        classes = classes or check_batch(model, x, y, config, training)
        x, y = prepare(x, y, config, validate=True)
        check_label_values(y, classes)


def standard_loss(
    model: nn.Module, x: Tensor, y: Tensor, config: SPATConfig, source: torch.Generator
) -> BatchLoss:
    """Ordinary cross-entropy: the baseline."""
    logits = logits_of(model, x)
    loss = -(one_hot(y, logits) * ops.log_softmax(logits)).sum(dim=1).mean()
    return BatchLoss(loss, logits.detach(), loss.new_zeros(()))


def survivors(
    model: nn.Module, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
) -> tuple[list[np.ndarray], int]:
    """See :class:`spatlib.engines.Engine`."""
    where = device_of(model, device)
    model.to(where)
    sources = [torch.Generator(where).manual_seed(number) for number in evaluation.seeds]
    table, classes = [], 0
    with keeping_globals(where):  # a loader draws from them
        for x, y in Batches(data, batch_size, model, where, evaluation.threat.bounds):
            x, y = prepare(x, y, evaluation.threat, validate=True)
            with attack_state(unwrap(model), fork=where) as module:
                verdicts, classes = _judge(module, x, y, evaluation, sources)
            rows = [verdicts[key] for key in evaluation.keys]
            table.append(torch.stack([y, *rows]).numpy(force=True))  # one read for all
    return table, classes


def check(data: Any, threat: Threat) -> None:
    """Go through the data once: a DataError now rather than after the training."""
    with keeping_globals(CPU):  # a loader draws from them
        for x, y in Batches(data, 1024, nn.Identity(), CPU, threat.bounds):
            prepare(x, y, threat, validate=True)


def perturb(
    model: nn.Module, x: Any, y: Any, config: SPATConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """See :class:`spatlib.engines.Engine`."""
    device = device_of(model, None)
    x, y = next(iter(Batches((x, y), len(x), model, device, config.bounds)))
    x, y = prepare(x, y, config, validate=True)
    source = torch.Generator(device).manual_seed(seed)
    found = attacked(model, x, y, config, source=source, check=True)
    mask = None if found.mask is None else found.mask.float().numpy(force=True)
    return found.x.float().numpy(force=True), mask


def logits(model: nn.Module, x: Any, batch_size: int = 256) -> np.ndarray:
    """See :class:`spatlib.engines.Engine`."""
    device = device_of(model, None)
    batches = Batches((x, torch.zeros(len(x))), batch_size, model, device, (0, 1))
    with attack_state(unwrap(model), fork=device) as module, torch.no_grad():
        found = torch.cat([logits_of(module, z) for z, _ in batches])
    return found.numpy(force=True)


def vjp(model: nn.Module, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """See :class:`spatlib.engines.Engine`."""
    like = next(model.parameters(), torch.zeros(()))
    with attack_state(unwrap(model)) as module:
        z, pull = attack_vjp(module, torch.as_tensor(x).to(like))

    def gradient(cotangent: np.ndarray) -> np.ndarray:
        return pull(torch.as_tensor(cotangent).to(z)).numpy(force=True)

    return z.double().numpy(force=True), gradient


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Put back what attack_state takes as fixed: a callable may set BatchNorm to training mode."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _judge(
    model: nn.Module, x: Tensor, y: Tensor, evaluation: Evaluation, sources: list[torch.Generator]
) -> tuple[dict[str, Tensor], int]:
    """Boolean verdicts (N,) under every attack, and the number of classes; inside attack_state."""
    threat, predict = evaluation.threat, torch.no_grad()(partial(logits_of, model))
    clean = predict(x)
    check_label_values(y, clean.shape[1])
    label = one_hot(y, clean)
    own = partial(attack_vjp, model), predict
    verdicts = core(ops, *own, evaluation.named, threat, (x, clean, label), map(Draws, sources))
    for key, attack in evaluation.callables.items():
        # The callable's own traces are removed as well.
        with _same_buffers(model), attack_state(model, fork=x.device):
            found = attack(model, x.clone(), y.clone())
        found = torch.as_tensor(found) if isinstance(found, np.ndarray) else found
        check_tensor(f"x_adv of {key}", found)
        found = found.detach().to(x)
        before, after = (part.cpu().double().numpy() for part in (x, found))
        evaluation.check_inside(key, before, after, ops.mantissa_bits(x))
        verdicts[key] = verdicts["clean"] & is_correct(ops, predict(found), label)
    return verdicts, clean.shape[1]
