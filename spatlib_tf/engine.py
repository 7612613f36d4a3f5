"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``keras.Model.fit``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from spatlib.config import SPATConfig, Threat
from spatlib.core.attack import is_correct
from spatlib.data import length
from spatlib.errors import ConfigError, check_images, require, require_choice
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor
from spatlib.training import TrainConfig, check_length

from . import ops
from .attack import attacked, survivors_of
from .attack import vjp as attack_vjp
from .batches import as_dataset, batches
from .inputs import (
    as_tensor,
    check_device,
    check_label_values,
    check_model,
    logits_of,
    one_hot,
    prepare,
)
from .loop import Loop, Trainer, load_weights, weights
from .models import MODELS
from .random import next_seed

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


Tensor = Any
_graphs: ContextVar[dict[Any, Any] | None] = ContextVar("graphs", default=None)


@contextmanager
def keeping_graphs() -> Iterator[None]:
    """Inside, an evaluation like an earlier one of the same model is not traced again.

    For a training run, which validates alike in every epoch. Elsewhere each evaluation traces
    anew: between two of them a model may have changed in ways that a graph does not see.
    """
    token = _graphs.set({})
    try:
        yield
    finally:
        _graphs.reset(token)


def survivors(
    model: keras.Model, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
) -> tuple[list[np.ndarray], int]:
    """See :class:`spatlib.engines.Engine`."""
    check_device(device)
    check_model(model)
    sources = [keras.random.SeedGenerator(number) for number in evaluation.seeds]
    graphs, threat = _graphs.get(), evaluation.threat
    graphs = {} if graphs is None else graphs
    table, classes = [], 0
    with tf.device(device):
        for x, y in batches(data, batch_size, threat.bounds, model.variable_dtype):
            x, y = prepare(x, y, threat, validate=True)
            classes = logits_of(model, x[:1]).shape[1]
            check_label_values(y, classes)
            labels = tf.argmax(y, axis=1) if len(y.shape) == 2 else y
            judge = _judge(graphs, model, evaluation, x, y)
            verdicts = judge(x, y, tf.stack([next_seed(source) for source in sources]))
            for key, attack in evaluation.callables.items():
                found = tf.cast(as_tensor(f"x_adv of {key}", attack(model, x, labels)), x.dtype)
                pair = tf.cast(x, tf.float64).numpy(), tf.cast(found, tf.float64).numpy()
                evaluation.check_inside(key, *pair, ops.mantissa_bits(x))
                moved = logits_of(model, found)
                verdicts[key] = verdicts["clean"] & is_correct(ops, moved, one_hot(y, moved))
            rows = [tf.cast(verdicts[key], labels.dtype) for key in evaluation.keys]
            table.append(tf.stack([labels, *rows]).numpy())  # one read for all verdicts
    return table, classes


def check(data: Any, threat: Threat) -> None:
    """Go through the data once: a DataError now rather than after the training."""
    for x, y in batches(data, 1024, threat.bounds, keras.config.floatx()):
        prepare(x, y, threat, validate=True)


def perturb(
    model: keras.Model, x: Any, y: Any, config: SPATConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """See :class:`spatlib.engines.Engine`."""
    x, y = next(batches((x, y), len(x), config.bounds, model.variable_dtype))
    x, y = prepare(x, y, config, validate=True)
    source = keras.random.SeedGenerator(seed)
    found = attacked(model, x, y, config, source=source, check=True)
    return found.x.numpy(), None if found.mask is None else found.mask.numpy()


def logits(model: keras.Model, x: Any, batch_size: int = 256) -> np.ndarray:
    """See :class:`spatlib.engines.Engine`."""
    rows = range(0, len(x), batch_size)
    parts = (tf.cast(x[k : k + batch_size], model.variable_dtype) for k in rows)
    found: np.ndarray = tf.concat([logits_of(model, part) for part in parts], axis=0).numpy()
    return found


def vjp(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """See :class:`spatlib.engines.Engine`."""
    z, pull = attack_vjp(model, False, tf.cast(x, model.variable_dtype))

    def gradient(cotangent: np.ndarray) -> np.ndarray:
        found: np.ndarray = pull(tf.cast(cotangent, z.dtype)).numpy()
        return found

    return tf.cast(z, tf.float64).numpy(), gradient


def _judge(
    graphs: dict[Any, Any], model: keras.Model, evaluation: Evaluation, x: Tensor, y: Tensor
) -> Any:
    """The named attacks as a graph (x, y, one seed per restart) -> verdicts (N,), for any N."""
    threat, named, count = evaluation.threat, evaluation.named, len(evaluation.seeds)
    batch = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (x, y)]
    key = (id(model), threat, tuple(named.items()), count, *batch)
    if key not in graphs:

        def judge(x: Tensor, y: Tensor, seeds: Tensor) -> dict[str, Tensor]:
            return survivors_of(model, x, y, threat, named, tf.unstack(seeds))

        signature = [*batch, tf.TensorSpec((count, 2), tf.int32)]
        # Without autograph, which would hide our errors behind its own. The graph keeps the
        # model, so its id stays its own.
        graphs[key] = tf.function(judge, input_signature=signature, autograph=False)
    return graphs[key]
