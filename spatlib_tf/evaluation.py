"""Who survives the attacks of an evaluation, and what an attack makes of a few examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spatlib.config import SPATConfig, Threat
from spatlib.core.survivors import is_correct
from spatlib.core.survivors import survivors as core
from spatlib.evaluate import Evaluation

from . import ops
from .attack import attacked
from .attack import vjp as attack_vjp
from .batches import batches
from .inputs import (
    as_tensor,
    check_device,
    check_label_values,
    check_model,
    logits_of,
    one_hot,
    prepare,
)
from .random import draw_start, next_seed

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


def robust_on(model: keras.Model, x: Tensor, y: Tensor, threat: SPATConfig, source: Any) -> Tensor:
    """(N,) whether the label survives clean, at one start and at the end of PGD from it."""
    return _survivors(model, x, y, threat, {"pgd": "pgd"}, [next_seed(source, x)])["pgd"]


def _judge(
    graphs: dict[Any, Any], model: keras.Model, evaluation: Evaluation, x: Tensor, y: Tensor
) -> Any:
    """The named attacks as a graph (x, y, one seed per restart) -> verdicts (N,), for any N."""
    threat, named, count = evaluation.threat, evaluation.named, len(evaluation.seeds)
    batch = [tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in (x, y)]
    key = (id(model), threat, tuple(named.items()), count, *batch)
    if key not in graphs:

        def judge(x: Tensor, y: Tensor, seeds: Tensor) -> dict[str, Tensor]:
            return _survivors(model, x, y, threat, named, tf.unstack(seeds))

        signature = [*batch, tf.TensorSpec((count, 2), tf.int32)]
        # Without autograph, which would hide our errors behind its own. The graph keeps the
        # model, so its id stays its own.
        graphs[key] = tf.function(judge, input_signature=signature, autograph=False)
    return graphs[key]


def _survivors(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    threat: SPATConfig,
    named: Mapping[str, str],
    seeds: Sequence[Tensor],
) -> dict[str, Tensor]:
    clean = logits_of(model, x)
    batch, starts = (x, clean, one_hot(y, clean)), (draw_start(x, threat, seed) for seed in seeds)
    own = partial(attack_vjp, model, False), partial(logits_of, model)
    return core(ops, *own, named, threat, batch, starts)
