"""The networks of ``spatlib.recipes`` in Keras' own layers."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import keras
from keras import layers

from spatlib.recipes import NETWORKS, Layout, Numbers, Shape


def build(
    of: Callable[..., Layout],
    shape: Shape,
    classes: int,
    mean: Numbers = None,
    std: Numbers = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> keras.Model:
    """The twin of ``spatlib_torch.models.build``: inputs are (N, H, W, C), ``shape`` (H, W, C).

    Its weights come in the same order and give the same logits; the initial ones follow from
    ``seed``. Under a mixed policy normalisation, first convolution and logits stay in the precision
    of the weights: inputs and logits are not rounded.
    """
    layout = of(**settings)
    layout.check(shape, classes, mean, std, channels_first=False)
    seeds, full = count(1000 * seed), str(keras.config.dtype_policy().variable_dtype)
    x = inputs = layers.Input(tuple(shape), dtype=full)
    if mean is not None and std is not None:
        x = layers.Normalization(mean=[*mean], variance=[s**2 for s in std], dtype=full)(x)
    for number, layer in enumerate(layout.layers):
        how: dict[str, Any] = {"dtype": None if number else full}
        match layer:
            case "conv", width, padding:
                how |= {"activation": "relu", "kernel_initializer": _start(seeds, layout.he)}
                x = layers.Conv2D(width, 3, 1, "same" if padding else "valid", **how)(x)
            case ("pool",):
                x = layers.MaxPooling2D(2)(x)
            case ("flatten",):
                x = layers.Flatten()(x)
            case "dense", width:
                x = layers.Dense(width, activation="relu", kernel_initializer=_start(seeds))(x)
            case "stem", width:
                x = _convolution(x, width, seeds, **how)
            case "block", width, stride:
                activated = _activation(x)
                inner = _convolution(activated, width, seeds, stride=stride)
                inner = _convolution(_activation(inner), width, seeds)
                if stride > 1 or x.shape[-1] != width:
                    x = _convolution(activated, width, seeds, size=1, stride=stride)
                x = layers.Add()([inner, x])
            case ("mean",):
                x = layers.GlobalAveragePooling2D()(_activation(x))
    logits = layers.Dense(classes, kernel_initializer=_start(seeds), dtype=full)
    return keras.Model(inputs, logits(x))


def _activation(x: Any) -> Any:
    return layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(x))  # PyTorch's


def _convolution(
    x: Any, width: int, seeds: Iterator[int], size: int = 3, stride: int = 1, **how: Any
) -> Any:
    if stride > 1 and size > 1:  # where padding="same" pads other sides than PyTorch
        x = layers.ZeroPadding2D(size // 2)(x)
    padding, how = "same" if stride == 1 else "valid", how | {"use_bias": False}
    start = _start(seeds, he=True)
    return layers.Conv2D(width, size, stride, padding, kernel_initializer=start, **how)(x)


def _start(seeds: Iterator[int], he: bool = False) -> keras.initializers.Initializer:
    """The next layer's weights: He's, or uniform as PyTorch's default."""
    scaling = (2.0, "fan_out", "untruncated_normal") if he else (1 / 3, "fan_in", "uniform")
    return keras.initializers.VarianceScaling(*scaling, seed=next(seeds))


MODELS = {name: partial(build, of) for name, of in NETWORKS.items()}
small_cnn, mnist_cnn = MODELS["small_cnn"], MODELS["mnist_cnn"]
preact_resnet, wide_resnet = MODELS["preact_resnet18"], MODELS["wrn34_10"]
