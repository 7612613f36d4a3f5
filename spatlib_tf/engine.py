"""The TensorFlow engine: ``spatlib.train(backend="tf")`` by way of ``keras.Model.fit``."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib.config import SPATConfig, Threat, TrainConfig
from spatlib.core import labels
from spatlib.core.attack import Verdict, judge
from spatlib.data import is_pair
from spatlib.engines import by_itself as together  # noqa: F401
from spatlib.errors import checked, require
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
_graphs: dict[keras.Model, Callable[..., Any]] = {}


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
    check(model, data, config, training)
    what = "have weights to train (set trainable on some of its layers)"
    require(bool(model.trainable_weights), "model", what, model.name)
    if monitor.ordinary:  # cross-entropy, whatever the loss
        config = replace(config, loss="pgd")
    trainer = Trainer(monitor, model, config)
    strategy = trainer.distribute_strategy
    replicas, clip = strategy.num_replicas_in_sync, training.clip_grad_norm
    what = f"be a multiple of the {replicas} replicas, which share a batch"
    require(training.batch_size % replicas == 0, "batch_size", what, training.batch_size)
    what = "be left out under tf.distribute, where Keras clips before it adds up replicas"
    require(replicas == 1 or clip is None, "clip_grad_norm", what, clip)
    dataset = as_dataset(data, training)
    _graphs[model] = cache(partial(_graph, model))
    try:
        with strategy.scope(), tf.device(training.device):
            # "auto": Keras compiles where there is a GPU.
            trainer.compile(_optimizer(optimizer, training), jit_compile=training.compile or "auto")
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
) -> Iterator[tuple[Any, int, dict[str, Verdict]]]:
    """See :class:`spatlib.engines.Engine`."""
    ops.check_device(device)
    graph = _graphs.get(model) or cache(partial(_graph, model))
    threat, named = evaluation.threat, tuple(evaluation.named.items())
    classes, count = 0, 0
    with tf.device(device), attack.unmoved(model):
        for x, y in batches(model, data, batch_size, threat):
            classes = check_batch(model, x, y, threat, classes)
            y = labels.hard(ops, y)
            starts, found = evaluation.starts(count, x.shape, ops.CHANNEL_AXIS), dict[str, Any]()
            for start in chain(starts, () if named else [0 * x]):
                known = [x, y, *found.get("clean", ())]  # of a restart but the first the verdicts
                specs = (tf.TensorSpec((None, *v.shape[1:]), v.dtype) for v in known)
                own = (found,) if found else ()
                found = graph(threat, named, *specs)(x, y, [tf.cast(start, x.dtype)], *own)
            count += len(x)
            for key, call in evaluation.callables.items():
                with attack.unmoved(model, foreign=True):
                    x_adv = tf.cast(ops.as_tensor(f"x_adv of {key}", call(model, x, y)), x.dtype)
                before, after = (tf.cast(part, tf.float64).numpy() for part in (x, x_adv))
                evaluation.check_inside(key, before, after, ops.mantissa_bits(x))
                z = ops.logits_of(model, x_adv)
                found[key] = found["clean"].then(ops, x_adv, *judge(ops, z, ops.one_hot(y, z)))
            yield y, classes, found


def _graph(model: keras.Model, threat: Any, named: Any, x: Any, y: Any, *verdict: Any) -> Any:
    """The named attacks as a graph (x, y, [start], known) -> verdicts (N,), for any N."""
    known = [dict.fromkeys(("clean", *dict(named)), Verdict(*verdict))] if verdict else []
    judge = partial(attack.survivors_of, model, threat, dict(named))
    # Without autograph, which would hide our errors behind its own.
    return tf.function(judge, input_signature=[x, y, [x], *known], autograph=False)


def check(model: keras.Model, data: Any, threat: Threat, training: TrainConfig) -> None:
    """See :class:`spatlib.engines.Engine`."""
    ops.check_device(training.device)
    parts, classes = batches(model, data, training.batch_size, threat), 0
    with tf.device(training.device), attack.unmoved(model):
        for x, y in islice(parts, None if is_pair(data) else 1):
            classes = check_batch(model, x, y, threat, classes)


def perturb(
    model: keras.Model, x: Any, y: Any, config: SPATConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """See :class:`spatlib.engines.Engine`."""
    x, y = next(batches(model, (x, y), len(x), config))
    source = keras.random.SeedGenerator(seed)
    found = attack.attacked(model, x, y, config, source=source, check=True)
    return found.x.numpy(), None if found.mask is None else found.mask.numpy()


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
