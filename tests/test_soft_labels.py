"""Soft labels beside hard ones, and weights of examples, in every way of training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import ConfigError, DataError, Mask, SPATConfig
from spatlib.core.ops import Array, Ops
from spatlib.core.target import ascent, stalled

from .backends import Backend
from .test_errors import check
from .test_looks import (
    BATCH,
    CLASSES,
    CONFIG,
    TRAINING,
    arrays,
    network,
    over_frameworks,
    spat,
    train,
    weights,
)
from .test_target import Case, cases, exact_log_softmax

MASKED = replace(CONFIG, steps=2, mask=Mask(classes=2), smoothing=0.3)
LOSSES = ["pgd", "trades", "mart"]
pytestmark = pytest.mark.usefixtures("one_attack")


def soft(count: int = 3 * BATCH) -> np.ndarray:
    """Labels mixed of the hard ones (N, K) in float32; no two classes have equal shares."""
    rows = np.eye(CLASSES, dtype=np.float32)[arrays()[1][:count]]
    return 0.7 * rows + 0.3 * np.roll(rows, 1, axis=0)


def call(
    framework: str, name: str, model: Any, x: Any, y: Any, config: SPATConfig, **more: Any
) -> Any:
    """A function of an engine, with a generator of the same seed each time."""
    if framework == "torch":
        more = {k: torch.as_tensor(v) if k == "weights" else v for k, v in more.items()}
        more["generator"] = torch.Generator().manual_seed(0)
        found = getattr(spatlib_torch, name)(model, *map(torch.as_tensor, (x, y)), config, **more)
        return found.detach().numpy()
    more["generator"] = keras.random.SeedGenerator(0)
    return getattr(spatlib_tf, name)(model, x, y, config, **more).numpy()


@pytest.mark.verifies
@pytest.mark.parametrize("guard", [False, True])
@given(case=cases())
def test_soft_labels_are_b_and_their_largest_entry_is_the_label(
    backend: Backend, guard: bool, case: Case
) -> None:
    """Then ascent is that from the same b of another source, which equals the oracle."""
    clean = exact_log_softmax(case.z[::-1] if case.clean is None else case.clean)
    label = np.exp(clean).astype(case.z.dtype)
    label[label < 1e-37] = 0  # which TensorFlow flushes
    hard = np.eye(case.classes, dtype=label.dtype)[label.argmax(axis=1)]
    rest = case.log_p.astype(case.z.dtype), case.smoothing, guard

    def from_logarithms(ops: Ops, label: Array, hard: Array, *rest: Any) -> Array:
        base = ops.where(label > 0, ops.log(ops.maximum(label, 1e-38)), -np.inf)
        return ascent(ops, base, hard, *rest)

    expected = backend.call(from_logarithms, label, hard, *rest)
    np.testing.assert_array_equal(backend.call(ascent, None, label, *rest), expected)
    counted = (backend.call(stalled, rows, *rest[:2]) for rows in (label, hard))
    np.testing.assert_array_equal(*counted)


@over_frameworks
@pytest.mark.parametrize("loss", LOSSES)
def test_one_hot_rows_are_hard_labels_to_the_bit(framework: str, loss: str) -> None:
    (x, y), config = arrays(framework), replace(MASKED, loss=loss)
    model, eye = network(framework), np.eye(CLASSES)[y]
    for name in ("perturb", "spat_loss", "shared_mask"):
        expected = call(framework, name, model, x, y, config)
        for rows in (eye, eye.astype(np.float16), eye.astype(np.int64)):
            found = call(framework, name, model, x, rows, config)
            np.testing.assert_array_equal(found, expected)


def test_one_hot_rows_train_as_hard_labels_do() -> None:
    (x, y), hard, rows = arrays("torch"), network("torch"), network("torch")  # see test_tf_model
    history = train("torch", hard, (x, y)).history
    found = train("torch", rows, (x, np.eye(CLASSES)[y])).history
    assert weights(rows) == weights(hard)
    for ours, theirs in zip(found, history, strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}


SOURCES: dict[str, Callable[[Any, Any], Any]] = {
    "torch arrays": lambda x, y: (x, y),
    "torch items": lambda x, y: torch.utils.data.StackDataset(*map(torch.as_tensor, (x, y))),
    "torch loader": lambda x, y: torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*map(torch.as_tensor, (x, y))), BATCH
    ),
    "tf arrays": lambda x, y: (x, y),
    "tf dataset": lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH),
}


@pytest.mark.parametrize("source", SOURCES)
def test_soft_labels_train_from_data_of_every_form(source: str) -> None:
    """The loss has the soft labels, accuracies (of the training data too) their largest entries."""
    framework = source.split()[0]
    (x, _), model = arrays(framework), network(framework)
    z = spatlib.engines.load_engine(framework).logits(model, x)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    right = (z.argmax(axis=1) == soft().argmax(axis=1)).mean()
    still = replace(TRAINING, epochs=1, lr=1e-9)
    how: dict[str, Any] = {"config": SPATConfig(eps=1e-9, steps=1), "training": still}
    result = spatlib.train(model, SOURCES[source](x, soft()), backend=framework, **how)
    assert result.history[0]["loss"] == pytest.approx(-(soft() * log_p).sum(axis=1).mean(), 1e-5)
    assert result.history[0]["adv_accuracy"] == pytest.approx(right)
    assert result.metrics["clean"] == pytest.approx(right)


SPOILT = {"sum": (0.9, "got 0.9 to 1"), "negative": (-1, "got -1 to 1"), "nan": (np.nan, "got nan")}


@over_frameworks
@pytest.mark.parametrize("kind", SPOILT)
def test_a_bad_row_of_a_later_batch_stops_the_training(framework: str, kind: str) -> None:
    x, _ = arrays(framework)
    model, rows = network(framework), soft()
    before = weights(model)
    rows[BATCH + 1] *= SPOILT[kind][0]
    parts = [(x[i : i + BATCH], rows[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    with pytest.raises(DataError, match=f"batch 2: y must hold rows that sum .* {SPOILT[kind][1]}"):
        train(framework, model, parts)
    assert weights(model) == before
    with pytest.raises(DataError, match="rows that sum to 1"):
        train(framework, model, (x, rows))
    assert weights(model) == before
    assert np.isnan(call(framework, "spat_loss", model, x, rows, CONFIG, validate=False))


@over_frameworks
def test_mart_refuses_soft_labels(framework: str) -> None:
    (x, _), config, model = arrays(framework), replace(CONFIG, loss="mart"), network(framework)
    before, words = weights(model), "one-hot for loss='mart', got 0.[35]"
    check(
        DataError,
        "one-hot for loss='mart', got 0.5 to 1",
        lambda: train(framework, model, (x, soft()), config),
    )
    hard = np.eye(CLASSES)[arrays()[1]]
    parts = [
        (x[:BATCH], hard[:BATCH]),
        (x[BATCH:], np.full((len(x) - BATCH, CLASSES), 1 / CLASSES)),
    ]
    with pytest.raises(DataError, match=f"batch 2: y must .* {words}"):
        train(framework, model, parts, config)
    assert weights(model) == before
    assert np.isnan(call(framework, "spat_loss", model, x, soft(), config, validate=False))


@over_frameworks
def test_rounded_rows_are_labels(framework: str) -> None:
    x, _ = arrays(framework)
    for dtype in (np.float16, tf.bfloat16.as_numpy_dtype):
        rows = (soft() + 0.01) / (1 + 0.01 * CLASSES)
        rounded = rows.astype(dtype).astype(np.float32)
        assert not (rounded.sum(axis=1) == 1).all()
        assert np.isfinite(call(framework, "spat_loss", network(framework), x, rounded, CONFIG))


def test_without_a_budget_soft_labels_train_as_in_keras() -> None:
    (x, _), model, expected = arrays(), spat(config=SPATConfig(eps=1e-9, steps=1)), network("tf")
    expected.compile(
        "sgd", keras.losses.CategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    model.compile("sgd", metrics=["accuracy"])
    how: dict[str, Any] = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    importance = np.linspace(0, 2, len(x))
    ours = model.fit(x, soft(), sample_weight=importance, **how).history
    theirs = expected.fit(x, soft(), sample_weight=importance, **how).history
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    for mine, other in zip(weights(model.base), weights(expected), strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-6)
    logs = model.evaluate(x, soft(), verbose=0, return_dict=True)
    clean = expected.evaluate(x, soft(), verbose=0, return_dict=True)
    assert logs["loss"] == pytest.approx(clean["loss"], rel=1e-5)
    assert logs["accuracy"] == clean["accuracy"] == logs["adv_accuracy"]


def test_without_a_budget_the_loss_is_that_of_torch() -> None:
    (x, _), model = arrays("torch"), network("torch")
    z, rows = model(torch.as_tensor(x)), torch.as_tensor(soft())
    expected = torch.nn.functional.cross_entropy(z, rows, reduction="none").detach().numpy()
    each = partial(
        call, "torch", "spat_loss", model, x, soft(), SPATConfig(eps=1e-9), reduction="none"
    )
    np.testing.assert_allclose(each(), expected, rtol=1e-6)


@over_frameworks
@pytest.mark.parametrize("loss", LOSSES)
def test_weights_multiply_the_losses_and_the_mean_is_over_all_examples(
    framework: str, loss: str
) -> None:
    (x, y), model = arrays(framework), network(framework)
    found = partial(call, framework, "spat_loss", model, x, y, replace(MASKED, loss=loss))
    losses, importance = found(reduction="none"), np.arange(len(x)) % 3
    assert losses.shape == (len(x),)
    np.testing.assert_allclose(found(), losses.mean(), rtol=1e-6)
    weighted = found(weights=importance, reduction="none")
    np.testing.assert_allclose(weighted, importance * losses, rtol=1e-6)
    np.testing.assert_allclose(found(weights=importance), weighted.mean(), rtol=1e-6)


BAD_WEIGHTS = {
    "negative": (-np.ones(BATCH), r"weights must hold finite values in \[0, inf\], got -1 to -1"),
    "nan": (np.full(BATCH, np.nan), "weights must hold finite values .* got nan"),
    "infinite": (np.full(BATCH, np.inf), "weights must hold finite values .* got inf"),
    "column": (np.ones((BATCH, 1)), r"weights must have the shape \(6,\)"),
    "short": (np.ones(BATCH - 1), r"weights must have the shape \(6,\)"),
}


@over_frameworks
@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_refused_before_the_attack(framework: str, kind: str) -> None:
    x, y = (part[:BATCH] for part in arrays(framework))
    model = network(framework)
    for labels in (y, soft(BATCH)):
        with pytest.raises(DataError, match=BAD_WEIGHTS[kind][1]):
            call(framework, "spat_loss", model, x, labels, CONFIG, weights=BAD_WEIGHTS[kind][0])
    with pytest.raises(ConfigError, match="reduction must be one of 'mean', 'none', got 'sum'"):
        call(framework, "spat_loss", model, x, y, CONFIG, reduction="sum")
    assert model.calls == []


FORMS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda z: {"loss": 0 * z, "logits": z},
    "tuple": lambda z: (z,),
    "list": lambda z: [z],
}


@over_frameworks
@pytest.mark.parametrize("form", FORMS)
def test_outputs_may_be_a_dict_with_logits_or_the_only_item(framework: str, form: str) -> None:
    (x, y), model = arrays(framework), network(framework, FORMS[form])
    plain = network(framework)
    expected = call(framework, "spat_loss", plain, x, y, CONFIG)
    np.testing.assert_array_equal(call(framework, "spat_loss", model, x, y, CONFIG), expected)
    if framework == "torch":
        assert train(framework, model, (x, y)).metrics == train(framework, plain, (x, y)).metrics
