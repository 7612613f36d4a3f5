"""Networks by name; each takes inputs in their own units and normalises them itself.

Every builder has the arguments ``(shape, classes, mean, std)``: the shape (H, W, C) of one input,
the number of classes K, and per-channel mean and standard deviation in the units of the inputs (or
None); and the ``seed`` that decides the weights. It returns a model of stock layers from
(N, H, W, C) to logits (N, K) with as many parameters as its PyTorch twin, or raises ConfigError.
With equal weights the two give equal logits; their weighted layers come in the same order.
Under a mixed policy the normalisation and the logits stay in the precision of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count
from typing import Any

import keras
from keras import layers

from spatlib.networks import RESIDUAL, check_images, residual, wide

Shape = Sequence[int]
Numbers = Sequence[float] | None
Tensor = Any


def small_cnn(
    shape: Shape, classes: int, mean: Numbers = None, std: Numbers = None, *, seed: int = 0
) -> keras.Model:
    """Two 3 x 3 convolutions, pooling, a hidden layer; 151,306 parameters for the digits."""
    entry, seeds = _entry(shape, classes, mean, std, least=2), _seeds(seed)
    convolution = partial(layers.Conv2D, kernel_size=3, padding="same", activation="relu")
    return keras.Sequential(
        [
            *entry,
            convolution(32, kernel_initializer=_uniform(seeds)),
            convolution(64, kernel_initializer=_uniform(seeds)),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu", kernel_initializer=_uniform(seeds)),
            _logits(classes, seeds),
        ]
    )


def mnist_cnn(
    shape: Shape, classes: int, mean: Numbers = None, std: Numbers = None, *, seed: int = 0
) -> keras.Model:
    """The CNN of TRADES on MNIST (arXiv:1901.08573, and its code) without dropout.

    Four 3 x 3 convolutions without padding, two poolings, two hidden layers of 200; 312,202
    parameters for MNIST. At least 16 x 16 pixels.
    """
    entry, seeds = _entry(shape, classes, mean, std, least=16), _seeds(seed)

    def convolution(filters: int) -> keras.Layer:
        return layers.Conv2D(filters, 3, activation="relu", kernel_initializer=_normal(seeds))

    def dense(units: int) -> keras.Layer:
        return layers.Dense(units, activation="relu", kernel_initializer=_uniform(seeds))

    return keras.Sequential(
        [
            *entry,
            *(convolution(32), convolution(32), layers.MaxPooling2D(2)),
            *(convolution(64), convolution(64), layers.MaxPooling2D(2)),
            layers.Flatten(),
            *(dense(200), dense(200), _logits(classes, seeds)),
        ]
    )


def preact_resnet(
    shape: Shape,
    classes: int,
    mean: Numbers = None,
    std: Numbers = None,
    *,
    seed: int = 0,
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: int = 2,
    stem: int = 64,
) -> keras.Model:
    """Pre-activation residual network for small images (He et al. 2016, arXiv:1603.05027).

    A 3 x 3 stem of ``stem`` channels, ``blocks`` blocks per entry of ``widths`` (stride 2
    from the second on), a last BatchNorm and ReLU, the mean over the pixels. The default is
    PreActResNet-18: 11,172,170 parameters for 3 channels and 10 classes.
    """
    entry, layout = _entry(shape, classes, mean, std), residual(widths, blocks, stem)
    seeds = _seeds(seed)
    x = inputs = entry[0]
    for layer in entry[1:]:
        x = layer(x)
    x = _convolution(x, stem, seeds)
    for _, filters, stride in layout:
        x = _block(x, filters, stride, seeds)
    x = layers.GlobalAveragePooling2D()(_activation(x))
    return keras.Model(inputs, _logits(classes, seeds)(x))


def wide_resnet(
    shape: Shape,
    classes: int,
    mean: Numbers = None,
    std: Numbers = None,
    *,
    seed: int = 0,
    depth: int = 34,
    width: int = 10,
) -> keras.Model:
    """WRN-depth-width without dropout (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

    WRN-34-10 has 46,160,474 parameters for 3 channels and 10 classes.
    """
    return preact_resnet(shape, classes, mean, std, seed=seed, **wide(depth, width))


def _block(x: Tensor, filters: int, stride: int, seeds: Iterator[int]) -> Tensor:
    """The Block of spatlib_torch.models."""
    activated = _activation(x)
    inner = _convolution(activated, filters, seeds, stride=stride)
    inner = _convolution(_activation(inner), filters, seeds)
    if stride > 1 or x.shape[-1] != filters:
        x = _convolution(activated, filters, seeds, size=1, stride=stride)
    return layers.Add()([inner, x])


def _activation(x: Tensor) -> Tensor:
    return layers.ReLU()(layers.BatchNormalization(epsilon=1e-5, momentum=0.9)(x))  # PyTorch's


def _convolution(
    x: Tensor, filters: int, seeds: Iterator[int], size: int = 3, stride: int = 1
) -> Tensor:
    if stride > 1 and size > 1:  # where padding="same" pads other sides than PyTorch
        x = layers.ZeroPadding2D(size // 2)(x)
    padding = "same" if stride == 1 else "valid"
    return layers.Conv2D(
        filters, size, stride, padding, use_bias=False, kernel_initializer=_normal(seeds)
    )(x)


def _entry(shape: Shape, classes: int, mean: Numbers, std: Numbers, least: int = 1) -> list[Any]:
    """The input, and a layer that normalises it."""
    check_images(shape, channels_first=False, classes=classes, mean=mean, std=std, least=least)
    inputs = layers.Input(tuple(shape), dtype=_full())
    if mean is None or std is None:
        return [inputs]
    variance = [value**2 for value in std]
    return [inputs, layers.Normalization(mean=list(mean), variance=variance, dtype=_full())]


def _logits(classes: int, seeds: Iterator[int]) -> keras.Layer:
    return layers.Dense(classes, kernel_initializer=_uniform(seeds), dtype=_full())


def _full() -> str:
    """The precision of the weights, which a mixed policy keeps full."""
    return str(keras.config.dtype_policy().variable_dtype)


def _seeds(seed: int) -> Iterator[int]:
    """One for each layer, others for another seed."""
    return count(1000 * seed)


def _normal(seeds: Iterator[int]) -> keras.initializers.Initializer:
    """Variance 2 / fan_out (He et al. 2015)."""
    return keras.initializers.VarianceScaling(
        2.0, "fan_out", "untruncated_normal", seed=next(seeds)
    )


def _uniform(seeds: Iterator[int]) -> keras.initializers.Initializer:
    """In +-1 / sqrt(fan_in), PyTorch's default."""
    return keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform", seed=next(seeds))


MODELS: dict[str, Callable[..., keras.Model]] = {
    "small_cnn": small_cnn,
    "mnist_cnn": mnist_cnn,
    **{name: partial(preact_resnet, **layout) for name, layout in RESIDUAL.items()},
}
