"""The TensorFlow engine refuses what the PyTorch engine refuses, by the same errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from torch import Tensor, nn

import spatlib
from spatlib import ConfigError, DataError, Mask, SPATConfig, TrainConfig
from spatlib_tf import SPATModel, perturb, shared_mask, spat_loss

from . import test_data
from .entry import to_last
from .test_data import ARRAYS, BAD_CALLS, BAD_DATA, QUICK, Endless
from .test_errors import BAD_BATCHES, BAD_BUDGETS, BAD_EXAMPLES, CLASSES, SHAPE, N, X, Y, check

IMAGE = (*SHAPE[2:], 1)


def network(
    shape: tuple[int, ...] = IMAGE, classes: int = CLASSES, trainable: bool = True
) -> keras.Model:
    dense = layers.Dense(classes, kernel_initializer=keras.initializers.GlorotUniform(0))
    return keras.Sequential([layers.Input(shape), layers.Flatten(), dense], trainable)


def translated(value: Any) -> Any:
    """What the PyTorch table holds, as an array with its channels last."""
    value = value.numpy() if isinstance(value, Tensor) else value
    return to_last(value) if getattr(value, "ndim", 0) == 4 else value


BATCH = {"x": translated(X), "y": translated(Y)}

# Keras users have arrays, and labels as columns and one-hot rows.
WELCOME = {"numpy", "numpy labels", "label column"}


class Wrong(keras.Model):
    """A network whose output is not what is asked for."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.change = network(), change

    def call(self, x: Any, training: bool | None = None) -> Any:
        return self.change(self.inner(x))


CONFIG = SPATConfig(eps=0.1, mask=Mask())
OWN_BATCHES: dict[str, tuple[dict[str, Any], str]] = {
    "one-hot of too few": ({"y": np.eye(CLASSES)[Y[:3]]}, "got shape (3, 3)"),
    "several inputs": ({"x": {"a": BATCH["x"], "b": BATCH["x"]}}, "got 2: wrap the model"),
    "labels of three axes": ({"y": np.zeros((N, CLASSES, 1))}, "float64"),
    "strings": ({"x": np.full(BATCH["x"].shape, "a")}, "string"),
    "objects": ({"x": np.full(BATCH["x"].shape, None)}, "array"),
    "3-D logits": ({"model": Wrong(lambda z: z[..., None])}, "(N, K)"),
    "logits without batch": ({"model": Wrong(lambda z: tf.reduce_sum(z, axis=0))}, "(N, K)"),
    "fewer logits than inputs": ({"model": Wrong(lambda z: z[:2])}, "(2, 3)"),
    "one logit": ({"model": Wrong(lambda z: z[:, :1])}, "K >= 2"),
    "a flat logit": ({"model": Wrong(lambda z: z[:, 0])}, "[-z / 2, z / 2] for one logit z"),
    "tuple": ({"model": Wrong(lambda z: (z, z))}, "got tuple: wrap it in a model"),
    "no gradient": ({"model": Wrong(tf.stop_gradient)}, "remove stop_gradient"),
}
TABLE = OWN_BATCHES | {
    name: ({key: translated(value) for key, value in wrong.items()}, word)
    for name, (wrong, word) in BAD_BATCHES.items()
    if name not in WELCOME and "model" not in wrong
}


@pytest.mark.parametrize("function", [perturb, spat_loss, shared_mask])
@pytest.mark.parametrize("case", TABLE)
def test_bad_batches_are_refused(case: str, function: Callable[..., Any]) -> None:
    wrong, word = TABLE[case]
    arguments = {"model": network(), "config": CONFIG, **BATCH} | wrong
    error = DataError if arguments["config"] else ConfigError
    found = check(error, "", lambda: function(**arguments))
    assert word in str(found).replace(f"({N}, K)", "(N, K)")
    assert str(found).split()[0] in {*wrong, "classes"}, "the argument at fault comes first"


def test_no_case_of_the_table_is_left_out() -> None:
    models = {name for name, (wrong, _) in BAD_BATCHES.items() if "model" in wrong}
    assert set(BAD_BATCHES) > WELCOME
    assert models - {"detached"} < set(OWN_BATCHES)  # "no gradient" here
    for name in WELCOME:
        wrong = {key: translated(value) for key, value in BAD_BATCHES[name][0].items()}
        assert perturb(network(), config=CONFIG, **BATCH | wrong).shape == (N, *IMAGE)


@pytest.mark.parametrize("case", [name for name in BAD_BUDGETS if "numpy" not in name])
def test_bad_start_or_mask_is_refused(case: str) -> None:
    ((name, value),) = BAD_BUDGETS[case].items()
    given = {name: translated(value)}
    error = check(DataError, name, lambda: perturb(network(), *BATCH.values(), CONFIG, **given))
    assert str(error).startswith(name)


EXAMPLES = {name: translated(value) for name, value in BAD_EXAMPLES.items() if name not in WELCOME}
EXAMPLES["strings"] = np.full(BATCH["x"].shape, "a")


@pytest.mark.parametrize("case", EXAMPLES)
def test_perturbed_examples_that_are_not_those_of_the_batch_are_refused(case: str) -> None:
    given = {"config": CONFIG, "x_adv": EXAMPLES[case]}
    error = check(DataError, "x_adv", lambda: spat_loss(network(), *BATCH.values(), **given))
    assert str(error).startswith("x_adv must ")


@pytest.mark.parametrize("model", ["resnet", None, Wrong, layers.Dense])
@pytest.mark.parametrize("function", [perturb, spat_loss, shared_mask])
def test_what_is_no_keras_model_is_refused(function: Callable[..., Any], model: Any) -> None:
    word = "model must be a keras.Model that returns logits"
    check(ConfigError, word, lambda: function(model, *BATCH.values(), CONFIG))
    check(ConfigError, word, lambda: SPATModel(model, CONFIG))


@pytest.mark.parametrize("case", ["no gradient", "one logit", "tuple"])
def test_errors_keep_their_class_in_a_graph(case: str) -> None:
    wrong, word = OWN_BATCHES[case]

    @tf.function(autograph=False)  # which would wrap every error in one of its own
    def attack() -> Any:
        return perturb(wrong["model"], *BATCH.values(), CONFIG)

    check(DataError, word, attack)


def ours() -> keras.Model:
    """For the data of the PyTorch table as they stand."""
    return network(SHAPE[1:])


def train(model: Any = None, data: Any = ARRAYS, **arguments: Any) -> Any:
    settings = {"config": CONFIG, "training": QUICK, "backend": "tf"}
    return spatlib.train(model, data, **settings | arguments)


def evaluate(model: Any = None, data: Any = ARRAYS, **arguments: Any) -> Any:
    return spatlib.evaluate(model, data, **{"threat": CONFIG} | arguments)


@pytest.mark.parametrize("function", [train, evaluate])
@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused(case: str, function: Callable[..., Any]) -> None:
    make, word = BAD_DATA[case]
    check(DataError, word, lambda: function(ours(), make()))


TORCH_ONLY = {"nothing to train", "one logit"}  # their networks are PyTorch's: see below


@pytest.mark.parametrize("case", [name for name in BAD_CALLS if name not in TORCH_ONLY])
def test_bad_calls_are_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, function in (("train", train), ("evaluate", evaluate), ("network", ours)):
        monkeypatch.setattr(test_data, name, function)
    error, act, word = BAD_CALLS[case]
    check(error, word, act)


DEVICE = "device must be one of 'CPU:0'"
OWN_CALLS: dict[str, tuple[Any, Callable[[], Any], str]] = {
    "nothing to train": (
        ConfigError,
        lambda: train(network(SHAPE[1:], trainable=False)),
        "model must have weights to train (set trainable",
    ),
    "a network of torch": (ConfigError, lambda: train(nn.Linear(4, 2)), "model must be a keras"),
    "one logit": (DataError, lambda: train(network(SHAPE[1:], classes=1)), "K >= 2"),
    "one logit to evaluate": (DataError, lambda: evaluate(network(SHAPE[1:], classes=1)), "K >= 2"),
    "one-hot of another width": (
        DataError,
        lambda: train(ours(), (ARRAYS[0], np.eye(4)[Y])),
        "(N, 3), one column per output",
    ),
    "no gradient": (DataError, lambda: evaluate(Without()), "remove stop_gradient"),
    "unknown device": (ConfigError, lambda: evaluate(ours(), device="cuda"), DEVICE),
    "absent device": (
        ConfigError,
        lambda: train(ours(), training=TrainConfig(device="TPU:7")),
        DEVICE,
    ),
}


class Without(keras.Model):
    """Logits that do not depend on the input."""

    def call(self, x: Any, training: bool | None = None) -> Any:
        return tf.zeros((tf.shape(x)[0], CLASSES))


@pytest.mark.parametrize("case", OWN_CALLS)
def test_bad_calls_of_keras_users_are_refused(case: str) -> None:
    error, act, word = OWN_CALLS[case]
    check(error, word, act)


def test_a_device_of_this_machine_is_accepted_by_any_of_its_names() -> None:
    model = ours()
    for name in ("CPU:0", "/CPU:0", "/device:CPU:0", "cpu:0"):
        assert evaluate(model, device=name).count == N


def test_refused_data_leave_the_model_as_it_was() -> None:
    model = ours()
    before = model.get_weights()
    check(DataError, "3", lambda: train(model, [(X, Y), (X, Y + 1)]))
    check(ConfigError, "'constant'", lambda: train(model, Endless(), training=TrainConfig()))
    assert all(map(np.array_equal, model.get_weights(), before))
