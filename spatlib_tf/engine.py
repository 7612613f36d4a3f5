"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``keras.Model.fit``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf
from tqdm import tqdm

from spatlib.checks import check_images
from spatlib.config import SPATConfig
from spatlib.data import length
from spatlib.errors import ConfigError, require, require_choice
from spatlib.monitor import Monitor
from spatlib.schedule import check_length
from spatlib.train_config import TrainConfig

from .batches import as_dataset, batches
from .evaluation import check, keeping_graphs, logits, perturb, survivors, vjp
from .inputs import check_device, check_label_values, check_model, logits_of, prepare
from .loop import Loop, Trainer, load_weights, weights
from .models import MODELS

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

CHANNELS_FIRST = False


def build_model(
    name: str, seed: int, *, shape: Sequence[int], classes: int, mean: Any, std: Any
) -> keras.Model:
    """See :class:`spatlib.engines.Engine`."""
    require_choice("model", name, MODELS)
    return MODELS[name](shape, classes, mean, std, seed=seed)


def fit(
    model: keras.Model,
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

    Args:
        optimizer: A new keras.optimizers.Optimizer, or a function without arguments that returns
            one, in place of SGD: ``training`` gives its schedule, ema and clip_grad_norm only.
    """
    check_device(training.device)
    if training.precision != "float32":
        raise ConfigError(
            f"precision must be 'float32' for tf, got {training.precision!r}: build the model "
            "under keras.mixed_precision.set_global_policy('mixed_bfloat16') instead"
        )
    check_model(model)
    # Training runs in a graph, where values cannot be checked: do it here.
    for x, y in batches(data, training.batch_size, config.bounds, model.variable_dtype):
        x, y = prepare(x, y, config, validate=True)
        if training.augment != "none":
            check_images(x.shape)
        check_label_values(y, logits_of(model, x[:1]).shape[1])
    if not model.trainable_weights:
        raise ConfigError("model has no weights to train: set trainable on some of its layers")
    dataset = as_dataset(data, training)
    total = training.epochs * (length(dataset) or 0)
    check_length(training.schedule, total)
    trainer = Trainer(
        model, replace(config, loss="pgd") if ordinary else config, training, ordinary
    )
    # "auto": Keras compiles where there is a GPU.
    trainer.compile(_optimizer(optimizer, training), jit_compile=training.compile or "auto")
    hidden = None if training.progress else True  # None: shown in a terminal only
    bar = tqdm(total=total or None, desc=label, unit="step", leave=False, disable=hidden)
    with tf.device(training.device), keeping_graphs(), bar:
        loop = Loop(trainer, dataset, training, total, bar, monitor or Monitor(training))
        done = len(loop.history)
        keras.Model.fit(  # not SPATModel's, which would check the first batch once more
            trainer,
            dataset,
            epochs=done if loop.monitor.stopped(loop.history) else training.epochs,
            initial_epoch=done,
            shuffle=False,
            verbose=0,
            callbacks=[loop],
        )
    return loop.history


def _optimizer(given: Any, training: TrainConfig) -> keras.optimizers.Optimizer:
    """The optimizer asked for, with the settings of ``training`` that are not its own."""
    if given is None:
        return keras.optimizers.SGD(
            training.lr,
            momentum=training.momentum,
            weight_decay=training.weight_decay or None,
            global_clipnorm=training.clip_grad_norm,
            use_ema=training.ema > 0,
            ema_momentum=training.ema,
        )
    found = given() if callable(given) else given
    what = "be a keras.optimizers.Optimizer, or a function without arguments that returns one"
    require(isinstance(found, keras.optimizers.Optimizer), "optimizer", what, found)
    if found.built:
        raise ConfigError(
            "optimizer must be a new one, got one that has trained a network already: pass a "
            "function that returns one, as in lambda: keras.optimizers.Adam(1e-3)"
        )
    inner = getattr(found, "inner_optimizer", found)  # of a LossScaleOptimizer
    if inner.use_ema and inner.ema_momentum != training.ema:
        raise ConfigError(
            f"optimizer must not use_ema itself, got ema_momentum {inner.ema_momentum}: set ema in "
            "TrainConfig, so that the average is validated and saved"
        )
    if training.ema:
        inner.use_ema, inner.ema_momentum = True, training.ema
    if training.clip_grad_norm is not None:
        if any((inner.clipnorm, inner.clipvalue, inner.global_clipnorm)):
            raise ConfigError(
                "optimizer must not clip gradients itself beside clip_grad_norm in TrainConfig: "
                "leave one of them out"
            )
        inner.global_clipnorm = training.clip_grad_norm
    rate = inner.get_config()["learning_rate"]
    if training.schedule != "constant" and not isinstance(rate, float):
        raise ConfigError(
            f"schedule must be 'constant' for an optimizer with a schedule of its own, got "
            f"{training.schedule!r}: change one of them"
        )
    return found
