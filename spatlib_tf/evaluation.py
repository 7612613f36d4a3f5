"""Accuracy, clean and under attack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.evaluate import Evaluation, survivors
from spatlib.evaluate import is_correct as correct
from spatlib.result import Report

from . import ops
from .batches import batches
from .inputs import (
    as_tensor,
    check_device,
    check_gradient,
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
    """Reuse the graph of an evaluation for the same model and attacks, inside this block.

    For a training run, which validates alike in every epoch. Elsewhere each evaluation traces
    anew: between two of them a model may have changed in ways that a graph does not see.
    """
    token = _graphs.set({})
    try:
        yield
    finally:
        _graphs.reset(token)


def evaluate(
    model: keras.Model,
    data: Any,
    config: SPATConfig,
    *,
    attacks: Sequence[Any] = ("pgd", "margin"),
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """See :func:`spatlib.evaluate`."""
    evaluation = Evaluation(config, attacks, steps, restarts, seed)
    check_device(device)
    check_model(model)
    sources = [keras.random.SeedGenerator(number) for number in evaluation.seeds]
    judge = _judge(model, evaluation)
    table, classes = [], 0
    with tf.device(device):
        for x, y in batches(data, batch_size, config.bounds, model.variable_dtype):
            x, y = prepare(x, y, evaluation.threat, validate=True)
            classes = logits_of(model, x[:1]).shape[1]
            check_label_values(y, classes)
            labels = tf.argmax(y, axis=1) if len(y.shape) == 2 else y
            verdicts = judge(x, y, tf.stack([next_seed(source) for source in sources]))
            for key, attack in evaluation.callables.items():
                found = tf.cast(as_tensor(f"x_adv of {key}", attack(model, x, labels)), x.dtype)
                pair = tf.cast(x, tf.float64).numpy(), tf.cast(found, tf.float64).numpy()
                evaluation.check_inside(key, *pair, ops.mantissa_bits(x))
                verdicts[key] = verdicts["clean"] & is_correct(logits_of(model, found), y)
            rows = [tf.cast(verdicts[key], labels.dtype) for key in evaluation.keys]
            table.append(tf.stack([labels, *rows]).numpy())  # one read for all verdicts
    return evaluation.report(table, classes)


def _judge(model: keras.Model, evaluation: Evaluation) -> Any:
    """The named attacks as a graph (x, y, one seed per restart) -> verdicts (N,)."""
    threat, named, graphs = evaluation.threat, evaluation.named, _graphs.get()
    key = (id(model), threat, tuple(named.items()), len(evaluation.seeds))
    if graphs is not None and key in graphs:
        return graphs[key]

    # Autograph would raise its own errors in place of ours.
    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def judge(x: Tensor, y: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        return _survivors(model, x, y, threat, named, tf.unstack(seeds))

    if graphs is not None:
        graphs[key] = judge  # it keeps the model alive, so no other model gets its id
    return judge


def check(data: Any, config: SPATConfig) -> None:
    """Raise DataError for data that :func:`evaluate` would refuse, before training on others."""
    for x, y in batches(data, 1024, config.bounds, keras.config.floatx()):
        prepare(x, y, config, validate=True)


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """(N,) whether the largest logit is the label's."""
    return correct(ops, logits, one_hot(y, logits))


def robust_on(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    threat: SPATConfig,
    objective: str,
    generator: keras.random.SeedGenerator,
) -> Tensor:
    """(N,) whether the label survives clean, at one start and at the end of the attack from it."""
    seeds = [next_seed(generator, x)]
    return _survivors(model, x, y, threat, {objective: objective}, seeds)[objective]


def _survivors(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    threat: SPATConfig,
    named: Mapping[str, str],
    seeds: Sequence[Tensor],
) -> dict[str, Tensor]:
    def slope(z: Tensor, loss: Any) -> tuple[Tensor, Tensor, Tensor]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(z)
            logits = logits_of(model, z)
            values = loss(logits)
        return values, check_gradient(tape.gradient(values, z), x), logits

    clean = logits_of(model, x)
    batch, starts = (x, clean, one_hot(y, clean)), (draw_start(x, threat, seed) for seed in seeds)
    return survivors(ops, threat, named, batch, partial(logits_of, model), slope, starts)
