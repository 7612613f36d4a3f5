"""Accuracy, clean and under attack."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig
from spatlib.core import target
from spatlib.core.projection import feasible_box
from spatlib.core.step import initial
from spatlib.result import Report

from . import ops
from .attack import ascend
from .batches import batches
from .inputs import check_device, check_label_values, logits_of, one_hot, prepare
from .random import draw_start, next_seed

Tensor = Any


def evaluate(
    model: keras.Model,
    data: Any,
    config: SPATConfig,
    *,
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """See :func:`spatlib.evaluate`; the attacks take ``steps`` steps of 2.5 eps / steps."""
    check_device(device)
    threat = config.evaluation(steps)
    names = {f"pgd{steps}": "cross-entropy", f"margin{steps}": "margin"}
    # One source per restart: more of them repeat the fewer and add to them.
    sources = [keras.random.SeedGenerator(seed + 7919 * r) for r in range(restarts)]

    # Without autograph, which would hide our errors behind its own.
    @tf.function(reduce_retracing=True, autograph=False)  # type: ignore[untyped-decorator]
    def judge(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        verdicts = {"clean": correct_on(model, x, y)}
        for name, objective in names.items():
            robust = verdicts["clean"]
            for source in sources:
                robust &= robust_on(model, x, y, threat, objective, source)
            verdicts[name] = robust
        return verdicts

    correct = dict.fromkeys(("clean", *names), 0)
    count = 0
    with tf.device(device):
        for x, y in batches(data, batch_size):
            x, y = prepare(x, y, threat, validate=True)
            check_label_values(y, logits_of(model, x[:1]).shape[1])
            count += int(x.shape[0])
            for name, verdict in judge(x, y).items():
                correct[name] += int(tf.math.count_nonzero(verdict))
    metrics = {name: number / count for name, number in correct.items()}
    return Report(metrics=metrics, count=count, config=config, restarts=restarts)


def check(data: Any, config: SPATConfig) -> None:
    """Go through the data once: a DataError now rather than after the training."""
    for x, y in batches(data, 1024):
        prepare(x, y, config, validate=True)


def correct_on(model: keras.Model, x: Tensor, y: Tensor) -> Tensor:
    """(N,) whether the largest logit is the label's."""
    logits = logits_of(model, x)
    return is_correct(logits, y)


def is_correct(logits: Tensor, y: Tensor) -> Tensor:
    """(N,) whether the largest logit is the label's."""
    label = tf.argmax(y, axis=1) if len(y.shape) == 2 else y
    return tf.argmax(logits, axis=1) == label


def robust_on(
    model: keras.Model,
    x: Tensor,
    y: Tensor,
    threat: SPATConfig,
    objective: str,
    generator: keras.random.SeedGenerator,
) -> Tensor:
    """(N,) whether the label survives clean, at one start and at the end of the attack from it."""

    def ascent(logits: Tensor) -> tuple[Tensor, Tensor]:
        value = target.attack_loss(ops, objective, logits, one_hot(y, logits))
        return value, tf.zeros((), logits.dtype)

    lower, upper = feasible_box(ops, x, None, threat.eps, threat.bounds)
    start = draw_start(x, threat, next_seed(generator, x))
    d = initial(ops, start, None, lower, upper, threat.eps, threat.norm)
    x_adv, _ = ascend(model, x, d, None, lower, upper, threat, ascent)
    started = ops.clip(x + d, *threat.bounds)
    return correct_on(model, x, y) & correct_on(model, started, y) & correct_on(model, x_adv, y)
