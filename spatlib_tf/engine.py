"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``keras.Model.fit``."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib.config import SPATConfig, Threat, TrainConfig
from spatlib.core.attack import is_correct
from spatlib.errors import check_images, checked, require
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor

from . import attack, ops
from .batches import as_dataset, batches
from .loop import Loop, Trainer, load_weights, weights  # noqa: F401  # an engine has the last two
from .models import MODELS
from .ops import as_tensor, check_device, check_label_values, check_model, logits_of, one_hot

CHANNELS_FIRST = False
# For each model in training, the graphs of its validation, which is the same in every epoch. Other
# evaluations trace anew: before them a model may have changed in ways that a graph does not see.
_graphs: dict[keras.Model, Callable[..., Any]] = {}


def build_model(name: str, seed: int, **network: Any) -> keras.Model:
    """See :class:`spatlib.engines.Engine`."""
    return MODELS[checked("model", name, tuple(MODELS))](seed=seed, **network)


def fit(
    model: keras.Model, data: Any, config: SPATConfig, monitor: Monitor, optimizer: Any = None
) -> list[dict[str, float]]:
    """See :class:`spatlib.engines.Engine`."""
    training = monitor.training
    check_device(training.device)
    what = "be 'float32' for tf (build the model under keras.mixed_precision.set_global_policy)"
    require(training.precision == "float32", "precision", what, training.precision)
    # Training runs in a graph, where values cannot be checked: do it here.
    check_model(model)
    for x, y in batches(data, training.batch_size, config, model.variable_dtype):
        if training.augment != "none":
            check_images(x.shape)
        check_label_values(y, logits_of(model, x[:1]).shape[1])
    what = "have weights to train (set trainable on some of its layers)"
    require(bool(model.trainable_weights), "model", what, model.name)
    if monitor.ordinary:  # cross-entropy, whatever the loss
        config = replace(config, loss="pgd")
    trainer = Trainer(monitor, model, config)
    # "auto": Keras compiles where there is a GPU.
    trainer.compile(_optimizer(optimizer, training), jit_compile=training.compile or "auto")
    dataset = as_dataset(data, training)
    _graphs[model] = cache(partial(_graph, model))
    try:
        with tf.device(training.device):
            return Loop(trainer, dataset, monitor).run()
    finally:
        del _graphs[model]


def _optimizer(given: Any, training: TrainConfig) -> keras.optimizers.Optimizer:
    """The optimizer asked for, else SGD, with the settings of ``training`` that are not its own."""
    if given is None:
        decay = training.weight_decay or None
        given = keras.optimizers.SGD(training.lr, training.momentum, weight_decay=decay)
    found = given() if callable(given) else given
    new = isinstance(found, keras.optimizers.Optimizer) and not found.built
    what = "be a new keras.optimizers.Optimizer, or a function without arguments that returns one"
    require(new, "optimizer", what, found)
    inner = getattr(found, "inner_optimizer", found)  # of a LossScaleOptimizer
    ours = not inner.use_ema or inner.ema_momentum == training.ema
    what = "be left out (set ema in TrainConfig, whose average is validated and saved)"
    require(ours, "ema_momentum of optimizer", what, inner.ema_momentum)
    if training.ema:
        inner.use_ema, inner.ema_momentum = True, training.ema
    if training.clip_grad_norm is not None:
        clips = [inner.clipnorm, inner.clipvalue, inner.global_clipnorm]
        what = "not clip gradients beside clip_grad_norm in TrainConfig (leave one out)"
        require(not any(clips), "optimizer", what, clips)
        inner.global_clipnorm = training.clip_grad_norm
    free = isinstance(inner.get_config()["learning_rate"], float) or training.schedule == "constant"
    require(free, "schedule", "be 'constant' for an optimizer with its own", training.schedule)
    return found


def survivors(
    model: keras.Model, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
) -> tuple[list[np.ndarray], int]:
    """See :class:`spatlib.engines.Engine`."""
    check_device(device)
    check_model(model)
    sources = [keras.random.SeedGenerator(number) for number in evaluation.seeds]
    graph = _graphs.get(model) or cache(partial(_graph, model))
    attacks = evaluation.threat, tuple(evaluation.named.items()), len(sources)
    table, classes = [], 0
    with tf.device(device), attack.unmoved(model):
        for x, y in batches(data, batch_size, evaluation.threat, model.variable_dtype):
            classes = logits_of(model, x[:1]).shape[1]
            check_label_values(y, classes)
            y = tf.argmax(y, axis=1) if len(y.shape) == 2 else y
            batch = (tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (x, y))
            seeds = tf.stack([attack.next_seed(source) for source in sources])
            verdicts = graph(*attacks, *batch)(x, y, seeds)
            for key, call in evaluation.callables.items():
                with attack.unmoved(model):
                    found = call(model, x, y)
                found = tf.cast(as_tensor(f"x_adv of {key}", found), x.dtype)
                before, after = (tf.cast(part, tf.float64).numpy() for part in (x, found))
                evaluation.check_inside(key, before, after, ops.mantissa_bits(x))
                moved = logits_of(model, found)
                verdicts[key] = verdicts["clean"] & is_correct(ops, moved, one_hot(y, moved))
            rows = [tf.cast(verdicts[key], y.dtype) for key in evaluation.keys]
            table.append(tf.stack([y, *rows]).numpy())  # one read for all verdicts
    return table, classes


def _graph(
    model: keras.Model, threat: Any, named: tuple[tuple[str, str], ...], count: int, *batch: Any
) -> Any:
    """The named attacks as a graph (x, y, one seed per restart) -> verdicts (N,), for any N."""

    def judge(x: Any, y: Any, seeds: Any) -> dict[str, Any]:
        return attack.survivors_of(model, x, y, threat, dict(named), tf.unstack(seeds))

    signature = [*batch, tf.TensorSpec((count, 2), tf.int32)]
    # Without autograph, which would hide our errors behind its own.
    return tf.function(judge, input_signature=signature, autograph=False)


def check(data: Any, threat: Threat) -> None:
    """Go through the data once: a DataError now rather than after the training."""
    for _ in batches(data, 1024, threat, keras.config.floatx()):
        pass


def perturb(
    model: keras.Model, x: Any, y: Any, config: SPATConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """See :class:`spatlib.engines.Engine`."""
    x, y = next(batches((x, y), len(x), config, model.variable_dtype))
    source = keras.random.SeedGenerator(seed)
    found = attack.attacked(model, x, y, config, source=source, check=True)
    return found.x.numpy(), None if found.mask is None else found.mask.numpy()


def logits(model: keras.Model, x: Any, batch_size: int = 256) -> np.ndarray:
    """See :class:`spatlib.engines.Engine`."""
    rows = range(0, len(x), batch_size)
    parts = (tf.cast(x[k : k + batch_size], model.variable_dtype) for k in rows)
    with attack.unmoved(model):
        return np.concatenate([logits_of(model, part).numpy() for part in parts])


def vjp(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """See :class:`spatlib.engines.Engine`."""
    with attack.unmoved(model):
        z, pull = attack.vjp(model, False, tf.cast(x, model.variable_dtype))
    return tf.cast(z, tf.float64).numpy(), lambda c: pull(tf.cast(c, z.dtype)).numpy()
