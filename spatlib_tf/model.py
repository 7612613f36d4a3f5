"""A Keras model that trains adversarially; Keras owns the loop."""

from dataclasses import asdict
from functools import partial
from inspect import signature
from itertools import chain, islice
from types import GeneratorType
from typing import Any

import keras
import tensorflow as tf

from spatlib.config import SPATConfig, plain_pgd
from spatlib.core.attack import Adversarial
from spatlib.core.feasible import random_start
from spatlib.core.survivors import Attacked, climbed, judge, placed
from spatlib.core.target import hard_labels, label_rows, sound_rows
from spatlib.errors import checked, only, require, warn_of_holes
from spatlib.monitor import READ_EVERY

from . import ops
from .attack import Draws, attacked, averaged, averages, next_seed, outer, unmoved, vjp
from .batches import Seen, check_batch
from .ops import Tensor


@keras.saving.register_keras_serializable(package="spatlib")
class SPATModel(keras.Model):  # type: ignore[misc]  # keras ships no types
    """``base``, trained by semantics-preserving adversarial training.

    Calling, predicting and saving are those of ``base``. ``fit`` perturbs every batch and descends
    the outer loss of ``config.loss``; ``evaluate`` (and validation) reports ``loss`` and compiled
    metrics on clean inputs, and ``adv_accuracy``: the share of examples correct clean, at the start
    and at the end of PGD (cross-entropy, full eps, one start). A loss that is not finite is logged
    (see keras.callbacks.TerminateOnNaN). Inputs out of bounds and labels that name no class are a
    DataError: in a first batch at once, later in ``fit`` within 50 steps, which are not undone.

    Args:
        base: A keras.Model (else ConfigError): logits (N, K) of inputs (N, ...) in the bounds.
        config: A SPATConfig (else ConfigError); graphs are traced anew when another one is set.
        seed: Fixes the random starts and the mask's draws.
        evaluation_steps: Steps of the evaluation attack, of 2.5 eps / steps each.
    """

    def __init__(
        self,
        base: keras.Model,
        config: SPATConfig,
        *,
        seed: int | None = None,
        evaluation_steps: int = 20,
        **kwargs: Any,
    ) -> None:
        ops.check_model(base)
        strategy = base.distribute_strategy
        inside = all(strategy.extended.variable_created_in_scope(v.value) for v in base.variables)
        require(inside, "model", "be made inside the scope of the strategy to train in", base.name)
        with strategy.scope():  # wherever it is wrapped
            super().__init__(**kwargs)
            self.base, self.config = base, config
            self.seed = None if seed is None else checked("seed", seed, 0)
            self.evaluation_steps = evaluation_steps
            self.seed_generator = keras.random.SeedGenerator(self.seed)
            # Separate from seed_generator, so that validation does not change the training.
            self.evaluation_seeds = keras.random.SeedGenerator(self.seed)
            rates = map(keras.metrics.Mean, ("adv_accuracy", "stall_rate", "hole_rate"))
            self.adv_accuracy, self.stall_rate, self.hole_rate = rates
            self.seen, self.built = Seen(config), base.built

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "config":
            require(isinstance(value, SPATConfig), name, "be a spatlib.SPATConfig", value)
        elif name == "evaluation_steps":
            value = checked(name, value, 1)
        constant = name in ("config", "evaluation_steps")  # of the graphs
        stale = constant and self.compiled and value != getattr(self, name)
        super().__setattr__(name, value)
        if stale:
            self.make_train_function(force=True)
            self.make_test_function(force=True)

    def build(self, input_shape: Any) -> None:
        if not self.base.built:
            self.base(keras.KerasTensor(input_shape))
        self.built = True

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.base(inputs, training=training)

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **kwargs: Any) -> None:
        """As keras.Model.compile; ConfigError for a loss that is not cross-entropy from logits."""
        kind, kinds = type(loss), keras.losses
        known = kind in (kinds.SparseCategoricalCrossentropy, kinds.CategoricalCrossentropy)
        plain = kind(from_logits=True, name=loss.name).get_config() if known else None
        what = "be left out (config.loss chooses it), or plain cross-entropy with from_logits=True"
        require(loss is None or (known and loss.get_config() == plain), "loss", what, loss)
        own = {name: kwargs.get(name) or None for name in ("metrics", "weighted_metrics")}
        self.has_compiled_metrics = any(own.values())
        super().compile(optimizer=optimizer, loss=None, **kwargs | own)

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.export, of ``base``."""
        return self.base.export(*args, **kwargs)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.fit; DataError for bad values, of a first batch before all else."""
        given = signature(super().fit).bind(*args, **kwargs).arguments
        callbacks = [each for each in keras.tree.flatten(given.get("callbacks")) if each]
        for callback in callbacks:
            if getattr(callback, "monitor", None) in ("adv_accuracy", "val_adv_accuracy"):
                callback.mode = callback.mode.replace("auto", "max")  # which Keras cannot infer

        def look(batch: int, logs: Any = None) -> None:
            if batch % READ_EVERY < self.steps_per_execution:
                self.seen.result()

        # After a batch Keras would wait for the device each time.
        own = keras.callbacks.LambdaCallback(on_train_batch_begin=look)
        given["callbacks"], size = [*callbacks, own], given.get("batch_size")
        if (held := given.get("validation_data")) is not None:
            held, *rest = keras.utils.unpack_x_y_sample_weight(held)
            given["validation_data"] = self._looked(held, rest[0], size), *rest
        given["x"] = self._looked(given.get("x"), given.get("y"), size)
        found = super().fit(**given)
        warn_of_holes(max(found.history.get("hole_rate", [0.0])), "the steps of an epoch")
        return found

    def evaluate(self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.evaluate; DataError for bad values, of a first batch before all else."""
        if not isinstance(kwargs.get("callbacks"), keras.callbacks.CallbackList):  # not in fit
            x = self._looked(x, y, args[0] if args else kwargs.get("batch_size"))
        found = super().evaluate(x, y, *args, **kwargs)
        warn_of_holes(float(self.hole_rate.result()), "the examples")
        return found

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.train_on_batch; DataError, after the step, for bad values."""
        return self.seen.result(super().train_on_batch(*args, **kwargs))

    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        """As keras.Model.test_on_batch; DataError for bad values."""
        return self.seen.result(super().test_on_batch(*args, **kwargs))

    def _looked(self, x: Any, y: Any, size: int | None) -> Any:
        """x, after a look at the first batch: what comes later is known after its step only."""
        first: Any = []
        if y is not None:
            first = [(only(x)[: size or 32], y[: size or 32])]
        elif isinstance(x, keras.utils.PyDataset | tf.data.Dataset) or hasattr(x, "dataset"):
            first = islice(x, 1)
        elif isinstance(x, GeneratorType):
            first = [*islice(x, 1)]
            x = (each for each in chain(first, x))
        for batch in first:
            some, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
            batch = ops.prepare(some, labels, self.config, validate=True)
            with unmoved(self.base):
                check_batch(self.base, *batch, self.config)
        return x

    def train_step(self, data: Any) -> Any:
        raw, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x, labels = ops.prepare(raw, y, self.config, validate=False)
        if not self.built:
            self(x)  # the attack calls the base only
        attack = self._attack(x, labels)
        loss_scale = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        floats = [v for v in self.base.non_trainable_variables if loss_scale and "float" in v.dtype]
        kept = [(v, tf.identity(v.value)) for v in floats]
        weights, average = self.trainable_weights, None
        if self.config.rectify:
            own = averages(self.optimizer, weights)
            average = partial(averaged, self.base, own=own)
        with tf.GradientTape() as tape:
            losses, logits = outer(self.base, x, attack.x, labels, self.config, average=average)
            loss = _total(losses, weight, self.losses)
            # Replicas add up their gradients: each contributes its share of the mean.
            replicas = self.distribute_strategy.num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)

        def update(grads: list[Tensor]) -> None:
            self.optimizer.apply(grads, weights)

        # TensorFlow never lets go of a graph in which an optimizer is applied: so of a small one.
        alone = not (tf.distribute.has_strategy() or tf.executing_eagerly())
        (tf.function(update, autograph=False) if alone else update)(tape.gradient(scaled, weights))
        for v, before in kept:  # a step that loss scaling skips must not ruin statistics either
            v.assign(tf.where(tf.reduce_all(tf.math.is_finite(v.value)), v.value, before))
        right, _ = judge(ops, logits, ops.one_hot(hard_labels(ops, labels), logits))
        self._record(loss, right, raw, labels, logits.shape[1])
        self.stall_rate.update_state(attack.stalls)
        self.hole_rate.update_state(attack.holes)
        if self.has_compiled_metrics:  # of clean inputs, in training as in validation
            with unmoved(self.base):
                clean = ops.logits_of(self.base, x) if attack.clean is None else attack.clean
            self.compute_metrics(x, y, clean, sample_weight=weight)
        return self.get_metrics_result()

    def test_step(self, data: Any) -> Any:
        raw, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x, labels = ops.prepare(raw, y, self.config, validate=False)
        logits = ops.logits_of(self.base, x)
        label = sound_rows(ops, label_rows(ops, labels, logits), self.config.loss)
        losses = -ops.sum(label * ops.log_softmax(logits), axis=-1)
        loss = _total(losses, weight, self.losses)  # with penalties of the clean pass
        threat = plain_pgd(self.config, self.evaluation_steps)
        start = random_start(ops, x, threat, Draws(next_seed(self.evaluation_seeds, x)))
        own = partial(vjp, self.base, False), partial(ops.logits_of, self.base)
        net, hard = Attacked(ops, *own, threat), ops.one_hot(hard_labels(ops, labels), logits)
        with unmoved(self.base):
            d, _, *begin = placed(net, x, hard, start)
            _, *end = climbed(net, x, hard, hard, d)
        right, sound = map(tf.stack, zip(judge(ops, logits, hard), begin, end, strict=True))
        self._record(loss, tf.reduce_all(right, axis=0), raw, labels, logits.shape[1])
        holes = ~tf.reduce_all(sound, axis=0)
        self.hole_rate.update_state(tf.cast(holes, tf.float32))
        results = self.compute_metrics(x, y, logits, sample_weight=weight)
        return {k: v for k, v in results.items() if k not in ("stall_rate", "hole_rate")}

    def _attack(self, x: Tensor, labels: Tensor) -> Adversarial:
        return attacked(self.base, x, labels, self.config, source=self.seed_generator)

    def _record(self, loss: Tensor, right: Tensor, *seen: Any) -> None:
        tracker = next(metric for metric in self.metrics if metric.name == "loss")  # Keras' own
        tracker.update_state(loss, sample_weight=tf.size(right))
        self.adv_accuracy.update_state(tf.cast(right, tf.float32))
        self.seen.config = self.config
        self.seen.update_state(*seen)

    def save_own_variables(self, store: Any) -> None:  # Keras saves no generator's state
        store["seed"] = self.seed_generator.state.numpy()
        store["evaluation_seed"] = self.evaluation_seeds.state.numpy()

    def load_own_variables(self, store: Any) -> None:
        self.seed_generator.state.assign(store["seed"])
        self.evaluation_seeds.state.assign(store["evaluation_seed"])

    def compile_from_config(self, config: dict[str, Any]) -> None:
        # Without this, Keras would not compile a loaded model that overrides compile.
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def get_config(self) -> dict[str, Any]:
        own = {"seed": self.seed, "evaluation_steps": self.evaluation_steps}
        base, config = keras.saving.serialize_keras_object(self.base), asdict(self.config)
        return {**super().get_config(), "base": base, "config": config, **own}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "SPATModel":
        base = keras.saving.deserialize_keras_object(config["base"], custom_objects=custom_objects)
        return cls(**config | {"base": base, "config": SPATConfig.from_dict(config["config"])})


def _total(losses: Tensor, weight: Tensor | None, penalties: list[Tensor]) -> Tensor:
    """The mean over the batch of losses times weights, and the penalties."""
    if weight is not None:  # (N,) or a column
        losses *= tf.reshape(tf.cast(weight, losses.dtype), tf.shape(losses))
    # A replica may get no example of a last, small batch: its mean is 0.
    mean = tf.math.divide_no_nan(tf.reduce_sum(losses), tf.cast(tf.size(losses), losses.dtype))
    return sum((tf.cast(penalty, mean.dtype) for penalty in penalties), mean)
