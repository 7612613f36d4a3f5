"""The PyTorch engine: the training loop behind ``spatlib.train(backend="torch")``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from spatlib.config import SPATConfig
from spatlib.errors import ConfigError, require_choice
from spatlib.monitor import Monitor
from spatlib.schedule import check_length
from spatlib.train_config import TrainConfig

from . import ops
from .attack import BatchLoss, batch_loss
from .evaluation import check, logits, perturb, survivors, vjp
from .inputs import check_label_values, logits_of, one_hot, prepare
from .loaders import Batches, device_of, keeping_globals
from .loop import Loop, check_batch
from .models import MODELS
from .state import compiled, load_weights, unwrap, weights

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
