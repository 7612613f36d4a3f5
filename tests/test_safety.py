"""What keeps a training on the rails: clipping, averages, precision, stopping; quick looks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib
from spatlib import RECIPES, ConfigError, DataError, Mask, SPATConfig, TrainConfig, load_data
from spatlib.core import survivors
from spatlib.engines import load_engine
from spatlib.runs import EMA, LAST, Run

from .test_resume import images, network, values

pytestmark = pytest.mark.usefixtures("without_pictures", "one_attack")
over_frameworks = pytest.mark.parametrize("framework", ["torch", "tf"])
CONFIG = SPATConfig(eps=0.1, steps=1, mask=Mask())
ONE_BATCH = {"batch_size": 80, "schedule": "constant", "momentum": 0.5, "progress": False}


def train(
    framework: str, run_dir: Path | None = None, resume: bool = False, **settings: Any
) -> Any:
    training = TrainConfig(**{**ONE_BATCH, **settings})
    return spatlib.train(
        network(framework),
        images(framework),
        backend=framework,
        config=CONFIG,
        training=training,
        run_dir=run_dir,
        resume=resume,
    )


def trainable(model: Any) -> list[np.ndarray]:
    if isinstance(model, torch.nn.Module):
        return [p.detach().numpy().copy() for p in model.parameters()]
    return [v.numpy() for v in model.trainable_variables]


@over_frameworks
def test_the_gradient_of_all_weights_is_clipped_to_its_norm(framework: str) -> None:
    settings = {"epochs": 1, "lr": 2.0, "weight_decay": 0.0}
    runs = (train(framework, clip_grad_norm=1e-3, **settings), train(framework, **settings))
    before, *after = map(trainable, (network(framework), *(run.model for run in runs)))
    moved, free = ([a - b for a, b in zip(w, before, strict=True)] for w in after)
    length = np.sqrt(sum(np.sum(m.astype(float) ** 2) for m in moved))
    np.testing.assert_allclose(length, 2.0 * 1e-3, rtol=1e-3)
    scale = length / np.sqrt(sum(np.sum(m.astype(float) ** 2) for m in free))
    assert scale < 0.1
    for mine, its in zip(moved, free, strict=True):
        np.testing.assert_allclose(mine, scale * its, rtol=1e-2, atol=1e-7)


@over_frameworks
def test_the_average_of_the_weights_decays_from_the_first_update(
    framework: str, tmp_path: Path
) -> None:
    first = trainable(train(framework, epochs=1).model)
    result = train(framework, tmp_path, epochs=2, ema=0.75)
    engine, last, average = load_engine(framework), network(framework), network(framework)
    engine.load_weights(last, (tmp_path / LAST).read_bytes())
    engine.load_weights(average, (tmp_path / EMA).read_bytes())
    for w1, w2, mean, returned in zip(
        first, *map(trainable, (last, average, result.model)), strict=True
    ):
        np.testing.assert_allclose(mean, 0.75 * w1 + 0.25 * w2, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(returned, mean)
    assert max(np.abs(w2 - w1).max() for w1, w2 in zip(first, trainable(last), strict=True)) > 1e-6


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    seen = set()

    class Watch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network("torch")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = self.inner(x)
            seen.add(out.dtype)
            return out

    training = TrainConfig(epochs=2, precision="bfloat16", progress=False)
    result = spatlib.train(Watch(), images("torch"), config=CONFIG, training=training)
    assert torch.bfloat16 in seen
    assert {p.dtype for p in result.model.parameters()} == {torch.float32}
    assert all(np.isfinite(row["loss"]) for row in result.history)


def test_keras_sets_its_precision_itself() -> None:
    with pytest.raises(ConfigError, match="set_global_policy"):
        train("tf", precision="bfloat16")


def test_auto_is_float32_in_keras_and_a_run_of_before_goes_on_with_it(tmp_path: Path) -> None:
    """As the recipes of CIFAR have it for both frameworks."""
    train("tf", tmp_path, precision="float32", epochs=1)
    result = train("tf", tmp_path, resume=True, precision="auto", epochs=2)
    assert (result.training.precision, len(result.history)) == ("float32", 2)


@over_frameworks
def test_training_stops_early_and_returns_the_best_weights(framework: str, tmp_path: Path) -> None:
    result = train(framework, tmp_path, epochs=40, lr=1e-6, validation=30, patience=2)
    history = result.history
    best = max(history, key=lambda row: row["val_pgd10"])["epoch"]
    assert len(history) == best + 2 < 40
    assert Run(tmp_path, resume=True).history() == history


@over_frameworks
def test_a_quick_look_takes_the_first_examples(framework: str, tmp_path: Path) -> None:
    x, y = images(framework)
    last = x if framework == "tf" else np.moveaxis(x, 1, -1)
    np.savez(tmp_path / "set.npz", x_train=last, y_train=y, x_test=last[:50], y_test=y[:50])
    data = load_data(tmp_path / "set.npz", limit=20)
    settings = {"backend": framework, "config": CONFIG}
    training = TrainConfig(epochs=1, progress=False)
    result = spatlib.train(network(framework), data, training=training, **settings)
    assert result.report.count == 20
    own = ((x[:20], y[:20]), (x[:20], y[:20]))
    alone = spatlib.train(network(framework), own, training=training, **settings)
    for mine, its in zip(values(result.model), values(alone.model), strict=True):
        np.testing.assert_array_equal(mine, its)
    attacks = ("pgd", "margin")[: len(result.metrics) - 2]
    report = spatlib.evaluate(result.model, data, CONFIG, attacks=attacks)
    assert report.metrics == result.metrics == alone.metrics
    whole = spatlib.evaluate(result.model, tmp_path / "set.npz", CONFIG, attacks=("pgd",), steps=1)
    assert whole.count == 50


def test_a_network_of_a_run_comes_back(tmp_path: Path) -> None:
    recipe = RECIPES["digits"].change(epochs=1, baseline=False, progress=False)
    data = load_data("digits", limit=99)
    result = spatlib.train(data=data, recipe=recipe, run_dir=tmp_path)
    model, run = spatlib.load_model(tmp_path)
    assert run.settings["architecture"]["name"] == "small_cnn"
    for mine, its in zip(values(model), values(result.model), strict=True):
        np.testing.assert_array_equal(mine, its)
    with pytest.raises(ConfigError, match=r"weights must be one of \['last'\]"):
        spatlib.load_model(tmp_path, "ema")
    (tmp_path / LAST).write_bytes((tmp_path / LAST).read_bytes()[:-100])
    with pytest.raises(DataError, match=r"last\.safetensors"):
        spatlib.load_model(tmp_path)


def test_a_network_of_ones_own_has_to_be_built_by_its_owner(tmp_path: Path) -> None:
    train("torch", tmp_path, epochs=1)
    with pytest.raises(ConfigError, match=r"model must be given for the run in .*, got None"):
        spatlib.load_model(tmp_path)


def test_the_baseline_of_a_run_has_a_run_of_its_own(tmp_path: Path) -> None:
    recipe = RECIPES["digits"].change(epochs=1, steps=1, progress=False)
    data = load_data("digits", limit=99)
    settings = {"data": data, "recipe": recipe, "run_dir": tmp_path}
    rows: list[dict[str, Any]] = []
    result = spatlib.train(**settings, on_epoch=rows.append)
    assert [row["network"] for row in rows] == ["standard", "PGD-AT", "SPAT"]
    standard, _ = spatlib.load_model(tmp_path / "standard")
    again = spatlib.evaluate(standard, data).metrics
    assert again == result.baselines["standard"].metrics
    both = zip(values(standard), values(result.model), strict=True)
    assert any((mine != its).any() for mine, its in both)
    resumed = spatlib.train(run_dir=tmp_path, resume=True)
    assert resumed.baselines["standard"].metrics == result.baselines["standard"].metrics
    spatlib.train(**settings, overwrite=True)


def test_ordinary_training_keeps_the_bounds() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(40, 1, 6, 6)).astype(np.uint8)
    y = (x[:, 0, 0, 0] > 127).astype(np.int64)
    config = SPATConfig(eps=0.1, steps=1, bounds=(-1, 1))
    training = TrainConfig(epochs=1, progress=False, baseline=True)
    result = spatlib.train("small_cnn", (x, y), config=config, training=training)
    floats = (x.astype(np.float32) / 255) * 2 - 1
    same = spatlib.train("small_cnn", (floats, y), config=config, training=training)
    assert result.baselines["standard"].metrics == same.baselines["standard"].metrics
    assert result.metrics == same.metrics


def test_keras_traces_the_validation_of_a_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced, original = [0], survivors.climbed

    def counted(*arguments: Any) -> Any:
        traced[0] += not tf.executing_eagerly()
        return original(*arguments)

    monkeypatch.setattr(survivors, "climbed", counted)
    counts = []
    for epochs in (1, 3):
        traced[0] = 0
        rows = train("tf", epochs=epochs, validation=20).history
        counts.append(traced[0])
        assert all("val_pgd10" in row for row in rows)
    assert counts[0] == counts[1] > 0
