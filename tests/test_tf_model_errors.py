"""What SPATModel refuses: other losses, settings of another kind."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from spatlib import ConfigError, Threat, TrainConfig
from spatlib_tf import SPATModel, perturb, shared_mask, spat_loss

from .test_errors import check
from .test_tf_errors import BATCH, CONFIG, network

LOSSES: dict[str, Any] = {
    "name": "sparse_categorical_crossentropy",
    "of probabilities": keras.losses.SparseCategoricalCrossentropy(),
    "another": keras.losses.MeanSquaredError(),
    "smoothed": keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    "of some classes": keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0),
    "a sum": keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_other_than_cross_entropy_from_logits_is_refused(case: str) -> None:
    model = SPATModel(network(), CONFIG)
    error = check(ConfigError, "loss must", lambda: model.compile("sgd", LOSSES[case]))
    assert "from_logits=True" in str(error)


@pytest.mark.parametrize("kind", ["Sparse", ""])
def test_cross_entropy_from_logits_is_accepted(kind: str) -> None:
    loss = getattr(keras.losses, f"{kind}CategoricalCrossentropy")(from_logits=True, name="mine")
    model = SPATModel(network(), CONFIG)
    model.compile("sgd", loss)
    assert np.isfinite(model.train_on_batch(*BATCH.values())).all()


def test_settings_have_to_be_given() -> None:
    with pytest.raises(TypeError, match="config"):
        SPATModel(network())


@pytest.mark.parametrize("config", [None, {}, 0.1, TrainConfig(), Threat(eps=0.1)], ids=str)
def test_settings_of_another_kind_are_refused(config: Any) -> None:
    word = "config must be a spatlib.SPATConfig, got " + repr(config)[:80]
    check(ConfigError, word, lambda: SPATModel(network(), config))
    for function in (perturb, spat_loss, shared_mask):
        check(ConfigError, word, lambda f=function: f(network(), *BATCH.values(), config))
