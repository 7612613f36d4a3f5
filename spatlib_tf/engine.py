"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``keras.Model.fit``."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib.config import SPATConfig, Threat, TrainConfig
from spatlib.core import survivors as core
from spatlib.core.target import hard_labels
from spatlib.data import is_pair
from spatlib.engines import by_itself as together  # noqa: F401
from spatlib.errors import asking, checked, require
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor

from . import attack, ops
from .batches import as_dataset, batches, check_batch
from .loop import Loop, Trainer, load_weights, weights  # noqa: F401  # an engine has the last two
from .models import MODELS

CHANNELS_FIRST = False
threads = tf.config.threading.get_intra_op_parallelism_threads
# For each model in training, the graphs of its validation, which is the same in every epoch. Other
# evaluations trace anew: before them a model may have changed in ways that a graph does not see.
_graphs: dict[keras.Model, dict[Any, Callable[..., Any]]] = {}


def build_model(name: str, seed: int, **network: Any) -> keras.Model:
    """See :class:`spatlib.engines.Engine`."""
    return MODELS[checked("model", name, tuple(MODELS))](seed=seed, **network)


def fit(
    model: keras.Model, data: Any, config: SPATConfig, monitor: Monitor, optimizer: Any = None
) -> list[dict[str, float]]:
    """See :class:`spatlib.engines.Engine`."""
    training = monitor.training
    what = "be 'float32' for tf (build the model under keras.mixed_precision.set_global_policy)"
    require(training.precision == "float32", "precision", what, training.precision)
    if training.deterministic:  # TensorFlow has no public way back
        tf.config.experimental.enable_op_determinism()
    check(model, data, config, training)
    what = "have weights to train (set trainable on some of its layers)"
    require(bool(model.trainable_weights), "model", what, model.name)
    if monitor.ordinary:  # cross-entropy, whatever the loss
        config = replace(config, loss="pgd", rectify=0)
    trainer = Trainer(monitor, model, config)
    strategy = trainer.distribute_strategy
    replicas, clip = strategy.num_replicas_in_sync, training.clip_grad_norm
    what = f"be a multiple of the {replicas} replicas, which share a batch"
    require(training.batch_size % replicas == 0, "batch_size", what, training.batch_size)
    what = "be left out under tf.distribute, where Keras clips before it adds up replicas"
    require(replicas == 1 or clip is None, "clip_grad_norm", what, clip)
    dataset = as_dataset(data, training)
    _graphs[model] = {}
    try:
        with strategy.scope(), tf.device(training.device):
            # "auto": Keras compiles where there is a GPU.
            made = _optimizer(optimizer, training, model)
            trainer.compile(made, jit_compile=training.compile or "auto")
            return Loop(trainer, dataset, monitor).run()
    finally:
        del _graphs[model]


def _optimizer(given: Any, training: TrainConfig, model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer asked for, else SGD, with the settings of ``training`` that are not its own."""
    if given is None:
        decay = training.weight_decay or None
        given = keras.optimizers.SGD(training.lr, training.momentum, weight_decay=decay)
        if not training.bias_decay:
            flat = [weight for weight in model.trainable_weights if len(weight.shape) < 2]
            given.exclude_from_weight_decay(var_list=flat)
    what = "be a new keras.optimizers.Optimizer, or a function without arguments that returns one"
    with asking("optimizer", what):
        found = given() if callable(given) else given
    new = isinstance(found, keras.optimizers.Optimizer) and not found.built
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
) -> Iterator[tuple[Any, int, dict[str, core.Verdict]]]:
    """See :class:`spatlib.engines.Engine`."""
    ops.check_device(device)
    threat, classes, count, separable = evaluation.threat, 0, 0, None
    call, predict = partial(_called, _graphs.get(model, {})), partial(ops.logits_of, model)
    net = core.Attacked(ops, partial(attack.vjp, model, False), predict, threat)
    with tf.device(device), attack.unmoved(model):
        for x, y in batches(model, data, batch_size, threat):
            classes = check_batch(model, x, y, threat, classes)
            y, clean = hard_labels(ops, y), call(core.read, net, x)
            if separable is None and len(x) > 1:
                with attack.unmoved(model):  # by a pass of another size
                    separable = core.separable(net, x, clean)
            starts = evaluation.starts(count, x.shape, ops.CHANNEL_AXIS)
            begins = (tf.cast(start, x.dtype) for start in starts)
            count += len(x)
            batch, how = (x, y, clean, ops.one_hot(y, clean)), (separable, call)
            found = core.survivors(net, evaluation, batch, begins, *how, partial(_foreign, model))
            yield y, classes, found


def _called(graphs: dict[Any, Any], function: Any, net: core.Attacked, *arguments: Any) -> Any:
    """Call it as a graph for any N, which is traced at the first call."""
    arguments = tuple(map(tf.convert_to_tensor, arguments))
    specs = [tf.TensorSpec((None,) * bool(v.ndim) + v.shape[1:], v.dtype) for v in arguments]
    key = function, net.threat, net.name, *specs
    if key not in graphs:
        # Without autograph, which would hide our errors behind its own.
        own = partial(function, net)
        graphs[key] = tf.function(own, input_signature=specs, autograph=False)
    return graphs[key](*arguments)


def _foreign(model: keras.Model, key: str, call: Any, x: Any, y: Any) -> Any:
    """x' of a user's attack."""
    with attack.unmoved(model, foreign=True):
        return tf.cast(ops.as_tensor(f"x_adv of {key}", call(model, x, y)), x.dtype)


def check(model: keras.Model, data: Any, threat: Threat, training: TrainConfig) -> None:
    """See :class:`spatlib.engines.Engine`."""
    ops.check_model(model)
    ops.check_device(training.device)
    parts, classes = batches(model, data, training.batch_size, threat), 0
    with tf.device(training.device), attack.unmoved(model):
        for x, y in islice(parts, None if is_pair(data) else 1):
            classes = check_batch(model, x, y, threat, classes)


def perturb(
    model: keras.Model, data: Any, config: SPATConfig, count: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """See :class:`spatlib.engines.Engine`."""
    x, y = (part[:count] for part in next(batches(model, data, count, config)))
    source = keras.random.SeedGenerator(seed)
    found = attack.attacked(model, x, y, config, source=source, check=True)
    return map(np.asarray, (x, y, found.x, tf.ones_like(x) if found.mask is None else found.mask))


def logits(model: keras.Model, x: Any, batch_size: int = 256) -> np.ndarray:
    """See :class:`spatlib.engines.Engine`."""
    rows = range(0, len(x), batch_size)
    parts = (tf.cast(x[k : k + batch_size], model.variable_dtype) for k in rows)
    with attack.unmoved(model):
        return np.concatenate([ops.logits_of(model, part).numpy() for part in parts])


def vjp(model: keras.Model, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """See :class:`spatlib.engines.Engine`."""
    with attack.unmoved(model):
        z, pull = attack.vjp(model, False, tf.cast(x, model.variable_dtype))
    return tf.cast(z, tf.float64).numpy(), lambda c: pull(tf.cast(c, z.dtype)).numpy()
