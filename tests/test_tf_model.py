"""SPATModel is a Keras model like any other: data, labels, weights, logs, bases, configuration."""

from __future__ import annotations

from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from spatlib import Mask, SPATConfig
from spatlib_tf import SPATModel

from .entry_tf import eagerly

COUNT, BATCH, CLASSES, SHAPE = 20, 8, 3, (4, 4, 1)  # the last batch is smaller than the others
CONFIG = SPATConfig(eps=0.1, steps=2, mask=Mask())
NO_BUDGET = SPATConfig(eps=1e-12, steps=1)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
TRAIN_LOGS = {"loss", "adv_accuracy", "stall_rate", "hole_rate"}


def arrays(seed: int = 0, count: int = COUNT) -> tuple[np.ndarray, np.ndarray]:
    """x (N, 4, 4, 1) in [0, 1] with a bright column per class, and y."""
    rng = np.random.default_rng(seed)
    y = rng.integers(CLASSES, size=count)
    x = 0.5 * rng.uniform(size=(count, *SHAPE)).astype(np.float32)
    x[np.arange(count), :, y] += 0.4
    return x, y


@keras.saving.register_keras_serializable(package="tests")
class Subclassed(keras.Model):
    """The same network as ``network``, unbuilt at first, as a class."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flatten = layers.Flatten()
        self.hidden = layers.Dense(8, activation="tanh")
        self.out = layers.Dense(CLASSES)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.out(self.hidden(self.flatten(inputs)))


def network(*end: keras.Layer, **hidden: Any) -> keras.Sequential:
    """A small network with initial weights that are always the same."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input(SHAPE),
            layers.Flatten(),
            layers.Dense(8, activation="tanh", **hidden),
            layers.Dense(CLASSES),
            *end,
        ]
    )


def functional() -> keras.Model:
    model = network()
    inputs = keras.Input(SHAPE)
    outputs = inputs
    for layer in model.layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


def subclassed() -> keras.Model:
    model = Subclassed()
    model(arrays()[0])
    model.set_weights(network().get_weights())
    return model


def spat(
    base: keras.Model | None = None,
    config: SPATConfig = CONFIG,
    *,
    seed: int = 0,
    optimizer: Any = "sgd",
    cls: type[SPATModel] = SPATModel,
    **compiled: Any,
) -> SPATModel:
    model = cls(network() if base is None else base, config, seed=seed, evaluation_steps=2)
    model.compile(optimizer, **compiled)
    return model


def fit(model: keras.Model, data: Any = None, **arguments: Any) -> dict[str, list[float]]:
    """Two epochs in the order of the data; the history."""
    x, y = arrays() if data is None else data
    arguments = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0} | arguments
    return model.fit(x, y, **arguments).history


def same(first: keras.Model, second: keras.Model, atol: float = 0.0) -> bool:
    """Whether all weights are equal (and there are some)."""
    pairs = list(zip(first.get_weights(), second.get_weights(), strict=True))
    return bool(pairs) and all(np.allclose(a, b, rtol=0, atol=atol) for a, b in pairs)


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return -(-COUNT // BATCH)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = arrays()
        return x[index * BATCH : (index + 1) * BATCH], y[index * BATCH : (index + 1) * BATCH]


FORMS = {
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(arrays()).batch(BATCH),
    "dataset of unknown length": lambda: tf.data.Dataset.from_generator(
        lambda: iter(list(Batches())),
        output_signature=(
            tf.TensorSpec((None, *SHAPE), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        ),
    ),
    "PyDataset": Batches,
}


@cache
def trained() -> tuple[SPATModel, dict[str, list[float]]]:
    """What training on arrays gives, and its history."""
    model = spat(metrics=["accuracy"])
    return model, fit(model)


@pytest.mark.parametrize("form", FORMS)
def test_data_of_every_form_train_evaluate_and_predict_alike(form: str) -> None:
    (expected, history), ours = trained(), spat(metrics=["accuracy"])
    assert ours.fit(FORMS[form](), epochs=2, shuffle=False, verbose=0).history == history
    assert same(ours, expected)
    assert not same(ours.base, network())
    loss, accuracy, robust = ours.evaluate(FORMS[form](), verbose=0)
    x, y = arrays()
    logits = ours.predict(FORMS[form](), verbose=0)
    np.testing.assert_array_equal(logits, expected.predict(x, batch_size=BATCH, verbose=0))
    assert loss == pytest.approx(float(CROSS_ENTROPY(y, logits)), rel=1e-5)
    assert accuracy == pytest.approx((logits.argmax(axis=1) == y).mean())
    assert robust <= accuracy


LABELS = {
    "column": lambda y: y[:, None],
    "one-hot": lambda y: np.eye(CLASSES, dtype=np.float32)[y],
    "one-hot integers": lambda y: np.eye(CLASSES, dtype=np.int32)[y],
    "bytes": lambda y: y.astype(np.uint8),
}


@cache
def labelled(form: str, loss: str) -> tuple[SPATModel, dict[str, float], dict[str, float]]:
    """The model after one step with labels of this form, and its logs."""
    x, y = arrays()
    y = LABELS[form](y) if form in LABELS else y
    config = SPATConfig(loss=loss, eps=0.1, steps=1, mask=Mask(classes=2))
    model = spat(config=config, metrics=["accuracy"])
    logs = model.train_on_batch(x, y, return_dict=True)
    return model, logs, model.test_on_batch(x, y, return_dict=True)


@pytest.mark.parametrize(
    ("form", "loss"), [*((form, "mart") for form in LABELS), ("column", "pgd")]
)
def test_labels_of_every_form_give_the_same_training(form: str, loss: str) -> None:
    with eagerly(loss == "mart"):
        ours, theirs = labelled(form, loss), labelled("indices", loss)
    assert same(ours[0], theirs[0], 1e-6)
    for logs, expected in zip(ours[1:], theirs[1:], strict=True):
        assert logs == pytest.approx(expected, rel=1e-6)


WEIGHTS = {
    "none": lambda: None,
    "rising": lambda: np.linspace(0, 2, COUNT),
    "column": lambda: np.linspace(0, 2, COUNT)[:, None],
    "integers": lambda: np.arange(COUNT) % 3,
}
PENALTIES = {
    "none": {},
    "kernel": {"kernel_regularizer": "l2"},
    "activity": {"activity_regularizer": "l2"},
}


@pytest.mark.parametrize(
    ("weights", "penalty"),
    [("rising", "none"), ("column", "none"), ("integers", "activity"), ("none", "kernel")],
)
def test_without_a_budget_loss_and_updates_are_those_of_keras(weights: str, penalty: str) -> None:
    (x, y), settings = arrays(), {"sample_weight": WEIGHTS[weights]()}
    ours, expected = spat(network(**PENALTIES[penalty]), NO_BUDGET), network(**PENALTIES[penalty])
    expected.compile("sgd", CROSS_ENTROPY)
    with eagerly(weights in ("rising", "integers")):
        history = fit(ours, **settings)
        assert history["loss"] == pytest.approx(fit(expected, **settings)["loss"], rel=1e-5)
        assert same(ours.base, expected, 1e-6)
        after = ours.test_on_batch(x, y, return_dict=True, **settings)["loss"]
        assert after == pytest.approx(expected.test_on_batch(x, y, **settings), rel=1e-5)


@pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
def test_examples_of_weight_zero_change_nothing(loss: str) -> None:
    (x, y), config = arrays(), SPATConfig(loss=loss, eps=0.1, steps=1, mask=Mask())
    model = spat(config=config)
    with eagerly(loss != "mart"):
        assert model.train_on_batch(x, y, np.zeros(COUNT), return_dict=True)["loss"] == 0
        assert same(model.base, network())
        model.train_on_batch(x, y, np.float64(np.arange(COUNT) == 0))
        assert not same(model.base, network())


def test_logs_report_training_and_validation_clean_and_under_attack() -> None:
    (x, y), model = arrays(), spat(config=SPATConfig(eps=0.15, mask=Mask()), metrics=["accuracy"])
    y = np.where(np.arange(COUNT) % 7 == 0, (y + 1) % CLASSES, y)  # never all correct
    accuracies = []
    history = fit(
        model,
        (x, y),
        epochs=8,
        validation_data=(x, y),
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_: accuracies.append(
                    (np.argmax(model.base(x), axis=1) == y).mean()
                )
            )
        ],
    )
    validation = {"val_loss", "val_accuracy", "val_adv_accuracy"}
    assert set(history) == {*TRAIN_LOGS, "accuracy", *validation}
    assert history["val_accuracy"] == pytest.approx(accuracies)
    pairs = list(zip(history["val_adv_accuracy"], history["val_accuracy"], strict=True))
    assert all(robust <= clean < 1 for robust, clean in pairs)
    assert any(robust < clean for robust, clean in pairs)
    clean_loss = CROSS_ENTROPY(y, model.base(x))
    assert history["val_loss"][-1] == pytest.approx(float(clean_loss), rel=1e-5)
    assert history["loss"][-1] < history["loss"][0]
    assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.parametrize("given", [{}, {"metrics": []}, {"weighted_metrics": {}}], ids=str)
def test_metrics_are_optional(given: dict[str, Any]) -> None:
    with eagerly(given != {}):
        history = fit(spat(**given), epochs=1, validation_data=arrays())
    assert set(history) == {*TRAIN_LOGS, "val_loss", "val_adv_accuracy"}


def test_base_is_the_bare_model_that_was_trained() -> None:
    (x, y), base = arrays(), network()
    model = spat(base)
    model.train_on_batch(x, y)
    assert model.base is base
    assert not same(base, network())
    np.testing.assert_array_equal(model.predict(x, verbose=0), base.predict(x, verbose=0))


@pytest.mark.parametrize("make", [functional, subclassed])
def test_bases_of_every_kind_train_alike(make: Any) -> None:
    ours, (expected, history) = spat(make(), metrics=["accuracy"]), trained()
    assert fit(ours) == history
    assert same(ours, expected)


def test_an_unbuilt_base_is_built_by_fit() -> None:
    model = spat(Subclassed())
    assert not model.built
    assert np.isfinite(fit(model, epochs=1)["loss"]).all()
    assert model.built
    assert model.predict(arrays()[0], verbose=0).shape == (COUNT, CLASSES)
