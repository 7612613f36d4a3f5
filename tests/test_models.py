"""The networks are twins in the two frameworks, and those of the literature."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from torch import nn

from spatlib import ConfigError
from spatlib_tf import engine as tf_engine
from spatlib_tf import models as tf_models
from spatlib_torch import engine as torch_engine
from spatlib_torch import models as torch_models

from .entry import to_last
from .test_errors import check

MEAN, STD = (0.2, 0.5, 0.8), (0.1, 0.2, 0.3)
NARROW = "preact_resnet18_narrow"
PARAMETERS = {  # name: (shape, figure for 10 classes)
    "small_cnn": ((1, 8, 8), 151_306),
    "mnist_cnn": ((1, 28, 28), 312_202),  # SmallCNN in the code of TRADES
    # kuangliu's 11,171,146 and the last BatchNorm, which Rice et al. have
    "preact_resnet18": ((3, 32, 32), 11_171_146 + 2 * 512),
    NARROW: ((3, 32, 32), 701_018),
    "wrn34_10": ((3, 32, 32), 46_160_474),
}
TWINS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "small": ("small_cnn", {}, (3, 9, 7)),
    "mnist": ("mnist_cnn", {}, (3, 28, 28)),
    "mnist, odd sides": ("mnist_cnn", {}, (3, 17, 22)),
    "preact": ("preact_resnet", {"widths": (16, 32, 64, 128), "stem": 16}, (3, 32, 32)),
    "preact, odd sides": (
        "preact_resnet",
        {"widths": (8, 8, 12), "blocks": 1, "stem": 6},
        (3, 15, 9),
    ),
    "wide": ("wide_resnet", {"depth": 16, "width": 1}, (3, 16, 16)),
    "wide, one pixel": ("wide_resnet", {"depth": 10, "width": 2}, (3, 1, 1)),
}


def last(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[1:], shape[0])


def images(shape: tuple[int, ...], dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(6, *shape)).astype(dtype)


def twins(case: str, mean: Any, std: Any) -> tuple[nn.Module, keras.Model]:
    """One network in both frameworks, with equal weights drawn at random."""
    name, settings, shape = TWINS[case]
    theirs = getattr(torch_models, name)(shape, 7, mean, std, **settings)
    ours = getattr(tf_models, name)(last(shape), 7, mean, std, **settings)
    modules = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    generator = torch.Generator().manual_seed(0)
    channels = 0  # of what the next linear layer flattens
    weighted = [layer for layer in ours.layers if layer.weights]
    for module, layer in zip(modules, weighted, strict=True):
        if module.bias is not None:
            nn.init.normal_(module.bias, 0, 0.3, generator=generator)
        values = [p.detach() for p in module.parameters()]
        if isinstance(module, nn.BatchNorm2d):
            for p in (module.weight, module.running_var):
                nn.init.uniform_(p, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.running_mean, 0, 0.3, generator=generator)
            values += [module.running_mean, module.running_var]
        elif isinstance(module, nn.Conv2d):
            channels = module.out_channels
            values[0] = values[0].permute(2, 3, 1, 0)
        else:
            rows = module.out_features
            values[0] = values[0].reshape(rows, channels, -1).permute(2, 1, 0).reshape(-1, rows)
            channels = 1
        layer.set_weights([value.numpy() for value in values])
    return theirs, ours


@pytest.fixture
def policy(request: pytest.FixtureRequest) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("case", TWINS)
def test_equal_weights_give_equal_logits_and_statistics(case: str, training: bool) -> None:
    theirs, ours = twins(case, MEAN, STD)
    x = images(TWINS[case][2])
    logits = theirs.train(training)(torch.as_tensor(x)).detach().numpy()
    assert logits.shape == (len(x), 7)
    result = ours(to_last(x), training=training).numpy()
    np.testing.assert_allclose(result, logits, rtol=0, atol=1e-5 * np.abs(logits).max())
    assert np.ptp(logits, axis=0).max() > 0.01
    means = [m.running_mean.numpy() for m in theirs.modules() if isinstance(m, nn.BatchNorm2d)]
    moved = [v.numpy() for v in ours.weights if v.name == "moving_mean"]
    np.testing.assert_allclose(np.hstack(moved or [0]), np.hstack(means or [0]), atol=1e-5)


@pytest.mark.parametrize("policy", ["float64"], indirect=True)
@pytest.mark.parametrize("case", TWINS)
def test_gradients_to_the_input_are_equal_in_double_precision(case: str, policy: None) -> None:
    theirs, ours = twins(case, None, None)
    x = images(TWINS[case][2], dtype="float64")
    leaf, variable = torch.as_tensor(x).requires_grad_(), tf.Variable(to_last(x))
    (theirs.double().eval()(leaf) ** 2).sum().backward()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(ours(variable, training=False) ** 2)
    expected = to_last(leaf.grad.numpy())
    assert (np.abs(expected).max(axis=(1, 2, 3)) > 1e-3).all()
    np.testing.assert_allclose(
        tape.gradient(loss, variable).numpy(), expected, rtol=0, atol=1e-11 * np.abs(expected).max()
    )


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_those_of_the_literature(name: str) -> None:
    shape, figure = PARAMETERS[name]
    with torch.device("meta"):
        theirs = torch_models.MODELS[name](shape, 10)
        assert theirs(torch.empty(2, *shape)).shape == (2, 10)
    assert sum(p.numel() for p in theirs.parameters()) == figure
    ours = tf_models.MODELS[name](last(shape), 10)
    assert sum(int(np.prod(w.shape)) for w in ours.trainable_weights) == figure
    assert (ours.input_shape, ours.output_shape) == ((None, *last(shape)), (None, 10))


def test_names_are_the_same_in_both_frameworks() -> None:
    assert list(torch_models.MODELS) == list(tf_models.MODELS) == list(PARAMETERS)


ENGINES: dict[str, tuple[Any, Callable[[Any, np.ndarray], np.ndarray]]] = {
    "torch": (torch_engine, lambda model, x: model.eval()(torch.as_tensor(x)).detach().numpy()),
    "tf": (tf_engine, lambda model, x: model(to_last(x), training=False).numpy()),
}


def build(engine: Any, name: str, seed: int = 0, **settings: Any) -> Any:
    shape = (3, 18, 18) if engine.CHANNELS_FIRST else (18, 18, 3)
    given = {"shape": shape, "classes": 5, "mean": None, "std": None} | settings
    return engine.build_model(name, seed, **given)


@pytest.mark.parametrize("name", ["small_cnn", "mnist_cnn", NARROW])
@pytest.mark.parametrize("framework", ENGINES)
def test_normalisation_is_the_first_layer(framework: str, name: str) -> None:
    (engine, logits), x = ENGINES[framework], images((3, 18, 18))
    mean, std = (np.float32(values).reshape(3, 1, 1) for values in (MEAN, STD))
    expected = logits(build(engine, name), (x - mean) / std)
    model = build(engine, name, mean=MEAN, std=STD)
    np.testing.assert_allclose(logits(model, x), expected, atol=1e-5 * np.abs(expected).max())
    assert np.abs(logits(build(engine, name), x) - expected).max() > 0.01


@pytest.mark.parametrize("name", ["small_cnn", "mnist_cnn", NARROW])
@pytest.mark.parametrize("framework", ENGINES)
def test_seed_alone_decides_the_weights(framework: str, name: str) -> None:
    (engine, logits), x = ENGINES[framework], images((3, 18, 18))
    before = torch.get_rng_state().tolist(), random.getstate()
    first = logits(build(engine, name), x)
    assert (torch.get_rng_state().tolist(), random.getstate()) == before
    torch.rand(1), random.random()
    assert np.array_equal(logits(build(engine, name), x), first)
    for seed in (1, 20260101, 2**40 + 3):
        assert not np.allclose(logits(build(engine, name, seed), x), first, atol=1e-3)


@pytest.mark.parametrize("name", ["mnist_cnn", NARROW])
def test_initial_weights_have_the_variance_of_he(name: str) -> None:
    theirs, ours = (build(engine, name) for engine, _ in ENGINES.values())
    kernels = [m.weight.detach().numpy() for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    kernels += [
        layer.kernel.numpy().transpose(3, 2, 0, 1)
        for layer in ours.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    for kernel in kernels:
        fan_out = kernel[:, 0].size
        assert kernel.std() == pytest.approx((2 / fan_out) ** 0.5, rel=4 / kernel.size**0.5)
    assert len({float(kernel.flat[0]) for kernel in kernels}) == len(kernels)
    head = ours.layers[-1].kernel.numpy()
    for matrix in (list(theirs.modules())[-1].weight.detach().numpy(), head):
        assert 0.9 < np.abs(matrix).max() * len(head) ** 0.5 <= 1
    biases = [p.detach().numpy() for n, p in theirs.named_parameters() if n.endswith("bias")]
    for bias in biases + [v.numpy() for v in ours.weights if v.name == "bias"]:
        assert (bias == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_channels_last_and_a_whole_graph_give_the_same_logits(dtype: torch.dtype) -> None:
    model = build(torch_engine, NARROW, mean=MEAN, std=STD).to(dtype).eval()
    x = torch.as_tensor(images((3, 18, 18))).to(dtype)
    expected = model(x)
    whole = torch.compile(model, backend="eager", fullgraph=True)(x)
    fast = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for logits in (whole, fast):
        assert logits.dtype == dtype
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["small_cnn", "mnist_cnn", NARROW])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"], indirect=True)
def test_saved_models_load_without_our_code(name: str, policy: None, tmp_path: Path) -> None:
    model, x = build(tf_engine, name, mean=MEAN, std=STD), to_last(images((3, 18, 18)))
    model.save(tmp_path / "model.keras")
    expected = model(x, training=False).numpy()
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert np.array_equal(loaded(x, training=False).numpy(), expected)
    assert {type(layer).__module__.partition(".")[0] for layer in loaded.layers} == {"keras"}
    (layer,) = [la for la in model.layers if isinstance(la, keras.layers.Normalization)]
    normalised = keras.Model(model.inputs[0], layer.output)(x).numpy()
    np.testing.assert_allclose(normalised, (x - MEAN) / STD, rtol=0, atol=1e-5)
    assert expected.dtype == np.float32


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown name": ("resnet", {}, "'wrn34_10'"),
    "a vector": (NARROW, {"shape": (12,)}, "(12,)"),
    "no channel axis": (NARROW, {"shape": (28, 28)}, "channel axis"),
    "too small": ("mnist_cnn", {"shape": (15, 15, 15)}, "16 x 16"),
    "one class": (NARROW, {"classes": 1}, "classes"),
    "a mean of another image": (NARROW, {"mean": (0.5,), "std": (0.5,)}, "mean"),
    "a mean alone": (NARROW, {"mean": MEAN}, "std"),
    "a number for the mean": (NARROW, {"mean": 0.5, "std": 0.5}, "mean"),
    "no deviation": (NARROW, {"mean": MEAN, "std": (0.1, 0.2, 0)}, "std"),
}


@pytest.mark.parametrize("framework", ENGINES)
@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused(case: str, framework: str) -> None:
    name, settings, word = BAD[case]
    check(ConfigError, word, lambda: build(ENGINES[framework][0], name, **settings))


@pytest.mark.parametrize("models", [torch_models, tf_models], ids=["torch", "tf"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("wide_resnet", {"depth": 12}),
        ("wide_resnet", {"depth": 4}),
        ("wide_resnet", {"width": 0}),
        ("preact_resnet", {"widths": ()}),
        ("preact_resnet", {"widths": 64}),
        ("preact_resnet", {"widths": (8, 0)}),
        ("preact_resnet", {"blocks": 0}),
        ("preact_resnet", {"stem": 0}),
    ],
)
def test_impossible_layouts_are_refused(name: str, settings: Any, models: Any) -> None:
    check(
        ConfigError, next(iter(settings)), lambda: getattr(models, name)((3, 3, 3), 5, **settings)
    )
