"""The PyTorch engine: the training loop behind ``spatlib.train(backend="torch")``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from spatlib.checks import check_images
from spatlib.config import SPATConfig
from spatlib.errors import require_choice
from spatlib.monitor import Monitor
from spatlib.schedule import check_length
from spatlib.train_config import TrainConfig

from .batches import Batches, device_of
from .checkpoint import load_weights, weights
from .evaluation import check, evaluate
from .examples import examples, logits
from .inputs import check_label_values, logits_of, prepare
from .loop import Loop
from .models import MODELS
from .state import attack_state, compiled, unwrap

__all__ = [
    "CHANNELS_FIRST",
    "build_model",
    "check",
    "evaluate",
    "examples",
    "fit",
    "load_weights",
    "logits",
    "weights",
]

CHANNELS_FIRST = True


def build_model(
    name: str, seed: int, *, shape: Sequence[int], classes: int, mean: Any, std: Any
) -> nn.Module:
    """See :class:`spatlib.backends.Engine`; the global generator stays as it was."""
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
) -> list[dict[str, float]]:
    """Train in place, return the history; see :func:`spatlib.train`.

    From the first step whose loss or gradient is not finite, the device leaves out every update of
    parameters and buffers; NonFiniteError follows when the host next reads from the device.
    """
    device = device_of(model, training.device)
    model.to(device)
    batches = Batches(data, training.batch_size, model, device, config.bounds)
    total = training.epochs * len(batches)
    check_length(training.schedule, total)
    if batches.arrays is not None:
        _check(model, batches, config, training)
    devices = [device] if device.type == "cuda" else []
    modes = [(module, module.training) for module in model.modules()]
    hidden = None if training.progress else True  # None: shown in a terminal only
    bar = tqdm(total=total or None, desc=label, unit="step", leave=False, disable=hidden)
    with torch.random.fork_rng(devices=devices), bar:
        _seed_dropout(training.seed, device)
        model.train()
        monitor = monitor or Monitor(training)
        try:
            loop = Loop(model, batches, config, training, total, bar, monitor, ordinary)
            # Compile after the loop has made its copy of the model for the moving average.
            with compiled(unwrap(model), training.compile):
                return loop.run()
        finally:
            for module, flag in modes:
                module.training = flag


def _check(model: nn.Module, batches: Batches, config: SPATConfig, training: TrainConfig) -> None:
    """Raise DataError for bad data before the model changes."""
    with attack_state(unwrap(model), "eval", batches.device, keep_rng=True), torch.no_grad():
        for x, y in batches.go_through():
            x, y = prepare(x, y, config, validate=True)
            if training.augment != "none":
                check_images(x.shape)
            check_label_values(y, logits_of(unwrap(model), x[:1]).shape[1])


def _seed_dropout(seed: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
