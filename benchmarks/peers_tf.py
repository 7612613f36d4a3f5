"""PGD adversarial training without us in TensorFlow: by hand, and with ART if it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from spatlib import SPATConfig

from .ours_tf import BATCH, SHAPE, data, network, sgd, stream

Tensor = Any


def by_hand(
    name: str,
    config: SPATConfig,
    classes: int = 10,
    steps: int = 1,
    xla: bool = False,
    unrolled: bool = False,
) -> Callable[[], float]:
    """The tightest loop that we can write: nothing checked, counted or kept.

    Input-only gradient, BatchNorm in inference mode during the attack, a graph loop or an
    unrolled one, one compiled function per step.
    """
    model, optimizer = network(name, classes), sgd()
    optimizer.build(model.trainable_variables)
    lower, upper = config.bounds
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits

    def ascend(x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_adv)
            loss = tf.reduce_sum(entropy(y, model(x_adv, training=False)))
        moved = x_adv + config.alpha * tf.sign(tape.gradient(loss, x_adv))
        moved = tf.clip_by_value(moved, x - config.eps, x + config.eps)
        return tf.clip_by_value(moved, lower, upper)

    @tf.function(jit_compile=xla, reduce_retracing=True, autograph=False)
    def step(x: Tensor, y: Tensor) -> Tensor:
        x_adv = x + tf.random.uniform(tf.shape(x), -config.eps, config.eps)
        x_adv = tf.clip_by_value(tf.ensure_shape(x_adv, x.shape), lower, upper)
        if unrolled:
            for _ in range(config.steps):
                x_adv = ascend(x, y, x_adv)
        else:
            (x_adv,) = tf.while_loop(
                lambda _: True,
                lambda d: (ascend(x, y, d),),
                (x_adv,),
                maximum_iterations=config.steps,
            )
        x_adv = tf.stop_gradient(x_adv)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(entropy(y, model(x_adv, training=True)))
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    batches = stream(name, classes, same_size=True)

    def run() -> float:
        for _ in range(steps):
            loss = step(*next(batches))
        return float(loss)

    return run


def art(name: str, config: SPATConfig) -> Callable[[], Any]:
    """ART (adversarial-robustness-toolbox): its classifier, PGD and trainer, on one batch.

    Its training step is passed: its own would be traced anew in every call.
    """
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    model, optimizer = network(name), sgd()
    optimizer.build(model.trainable_variables)
    entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def train_step(model: keras.Model, x: Tensor, y: Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = entropy(y, model(x, training=True))
        weights = model.trainable_variables
        optimizer.apply(tape.gradient(loss, weights), weights)

    classifier = TensorFlowV2Classifier(
        model,
        nb_classes=10,
        input_shape=SHAPE,
        loss_object=entropy,
        train_step=train_step,
        clip_values=config.bounds,
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=config.eps,
        eps_step=config.alpha,
        max_iter=config.steps,
        num_random_init=1,
        batch_size=BATCH[name],
        verbose=False,
    )
    trainer = AdversarialTrainer(classifier, attack, ratio=1.0)
    return lambda: trainer.fit(*data(BATCH[name]), batch_size=BATCH[name], nb_epochs=1)
