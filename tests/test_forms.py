"""Forms of inputs, outputs, labels and numbers that users have; networks of a fixed batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import torch
from keras import layers
from torch import nn

import spatlib
import spatlib_tf
import spatlib_torch
from spatlib import DataError, SPATConfig
from spatlib_tf import SPATModel

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

pytestmark = pytest.mark.usefixtures("one_attack")

FORMS: dict[str, Callable[[Any], Any]] = {
    "a dict": lambda x: {"pixel_values": x},
    "a tuple": lambda x: (x,),
    "a list": lambda x: [x],
}


@over_frameworks
def test_one_array_in_a_container_and_outputs_with_logits_are_themselves(framework: str) -> None:
    (x, y), engine = arrays(framework), spatlib_torch if framework == "torch" else spatlib_tf
    batch = (torch.as_tensor(x), torch.as_tensor(y)) if framework == "torch" else (x, y)
    config = SPATConfig(eps=0.1, steps=1, random_start="none")
    expected = float(engine.spat_loss(network(framework), *batch, config))
    wrapped = network(framework, lambda z: SimpleNamespace(logits=z))
    assert float(engine.spat_loss(wrapped, *batch, config)) == expected
    trained = weights(train(framework, network(framework), [(x, y)]).model)
    for form in FORMS.values():
        found = engine.spat_loss(network(framework), form(batch[0]), batch[1], config)
        assert float(found) == expected
        assert weights(train(framework, network(framework), [(form(x), y)]).model) == trained


@pytest.mark.parametrize("form", FORMS)
def test_keras_own_loops_take_one_array_in_a_container(form: str) -> None:
    (x, y), ours, expected = arrays(), spat(), spat()
    expected.fit(x, y, verbose=0, shuffle=False)
    if form == "a dict":  # as a functional model names its input
        inputs = keras.Input((3, 3, 2))
        model = keras.Model({"pixel_values": inputs}, ours.base(inputs))
        ours = spat(model)
    history = ours.fit(FORMS[form](x), y, verbose=0, shuffle=False).history
    assert history["loss"][0] > 0
    assert [w.tolist() for w in ours.get_weights()] == weights(expected)
    check(DataError, "got 2: wrap", lambda: ours.fit({"a": x, "b": x}, y, verbose=0))


@over_frameworks
def test_one_call_on_a_whole_batch_is_the_look_at_the_model(framework: str) -> None:
    (x, y), model = arrays(framework, 600), network(framework)
    spatlib.evaluate(model, (x, y), CONFIG, attacks=("pgd",), steps=1, batch_size=200)
    if framework == "tf":
        assert model.calls == [200, 67]  # a graph, and whether a smaller batch gives the same
    model.calls.clear()
    with pytest.raises(DataError, match="labels"):
        train(framework, model, (x, np.where(np.arange(600) == 599, CLASSES, y)))
    assert model.calls == [BATCH]


def test_networks_of_a_fixed_batch_train_and_are_measured() -> None:
    stateful = [layers.Input(batch_shape=(BATCH, 3, 6)), layers.LSTM(2, stateful=True)]
    (x, y), config = arrays(), SPATConfig(eps=0.1, steps=1)
    x = x.reshape(-1, 3, 6)
    parts = [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    base = keras.Sequential([*stateful, layers.Dense(CLASSES)])
    assert train("tf", base, parts).report.count == len(x)
    assert train("tf", base, ((x, y), (x[:BATCH], y[:BATCH]))).report.count == BATCH
    for data in ((x[:-1], y[:-1]), ((x, y), (x[1:], y[1:]))):
        with pytest.raises(DataError, match=f"batches of {BATCH}, .* got {BATCH - 1} examples"):
            train("tf", base, data)
    assert spatlib.evaluate(base, (x, y), config, batch_size=BATCH, steps=1).count == len(x)
    history = spat(base).fit(x, y, batch_size=BATCH, verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_torch_networks_of_a_fixed_batch_train_on_arrays(tmp_path: Path) -> None:
    def whole(z: torch.Tensor) -> torch.Tensor:
        return z.reshape(BATCH, CLASSES)

    (x, y), model = arrays("torch"), network("torch", whole)
    how = {"config": CONFIG, "training": TRAINING, "run_dir": tmp_path}
    assert spatlib.train(model, (x, y), **how).report.count == len(x)
    assert {*model.calls} == {BATCH, BATCH // 3}  # which an evaluation tries once
    assert model.calls.count(BATCH // 3) == 1


def test_torch_batchnorm_without_running_statistics_trains() -> None:
    norm = nn.BatchNorm2d(2, track_running_stats=False)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(18, CLASSES))
    assert train("torch", model, arrays("torch")).report.count == 3 * BATCH


@over_frameworks
def test_counts_and_seeds_may_be_integers_of_numpy(framework: str) -> None:
    one, data, model = np.int64(1), arrays(framework), network(framework)
    settings = {"attacks": ("pgd",), "steps": one, "restarts": one, "seed": one}
    report = spatlib.evaluate(model, data, CONFIG, batch_size=np.int32(7), **settings)
    assert list(report.metrics) == ["clean", "pgd1", "worst"]
    x, y = data
    assert spatlib.audit(model, x, x, y, batch_size=np.int16(7)).count == len(y)
    given = {"seed": np.int64(3), "evaluation_steps": np.int8(2)}
    found = SPATModel(network("tf"), CONFIG, **given)
    assert [type(getattr(found, name)) for name in given] == [int, int]


@over_frameworks
def test_pixels_of_an_audit_have_to_be_floats(framework: str) -> None:
    (x, y), model = arrays(framework), network(framework)
    for pair in ((np.uint8(9 * x), x), (x, np.uint8(9 * x))):
        check(DataError, "must hold floats", lambda pair=pair: spatlib.audit(model, *pair, y))
