"""Networks by name; each takes inputs in their own units and normalises them itself.

Every builder has the arguments ``(shape, classes, mean, std)``: the shape (C, H, W) of one input,
the number of classes K, and per-channel mean and standard deviation in the units of the inputs (or
None). It returns a module from (N, C, H, W) to logits (N, K) with as many parameters as its Keras
twin, or raises ConfigError. The global generator decides the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from spatlib.networks import RESIDUAL, check_images, residual, wide

Shape = Sequence[int]
Numbers = Sequence[float] | None


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model: eps and bounds keep the inputs' units."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def small_cnn(shape: Shape, classes: int, mean: Numbers = None, std: Numbers = None) -> nn.Module:
    """Two 3 x 3 convolutions, pooling, a hidden layer; 151,306 parameters for the digits."""
    entry, (channels, height, width) = _entry(shape, classes, mean, std, least=2), shape
    return nn.Sequential(
        *entry,
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * (height // 2) * (width // 2), 128),
        nn.ReLU(),
        nn.Linear(128, classes),
    )


def mnist_cnn(shape: Shape, classes: int, mean: Numbers = None, std: Numbers = None) -> nn.Module:
    """The CNN of TRADES on MNIST (arXiv:1901.08573, and its code) without dropout.

    Four 3 x 3 convolutions without padding, two poolings, two hidden layers of 200; 312,202
    parameters for MNIST. At least 16 x 16 pixels.
    """
    entry, (channels, *sides) = _entry(shape, classes, mean, std, least=16), shape
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    return _initialised(
        nn.Sequential(
            *entry,
            *(nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()),
            nn.MaxPool2d(2),
            nn.Flatten(),
            *(nn.Linear(64 * height * width, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU()),
            nn.Linear(200, classes),
        )
    )


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm, in inference mode on a CPU as a product and a sum per channel.

    PyTorch's own CPU kernels for it, backward above all, take a fifth of a training step
    (docs/performance.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        mean, var, plain = self.running_mean, self.running_var, input.device.type == "cpu"
        if self.training or mean is None or var is None or not plain or input.dtype != var.dtype:
            return super().forward(input)
        scale = torch.rsqrt(var + self.eps) * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], input, scale[:, None, None])


class Block(nn.Module):
    """BatchNorm, ReLU, 3 x 3 convolution, twice, added to the input (arXiv:1603.05027, fig. 1b).

    Where the shape changes, a 1 x 1 convolution of the first activation stands for the input.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = BatchNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = BatchNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        residual: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(activated))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def preact_resnet(
    shape: Shape,
    classes: int,
    mean: Numbers = None,
    std: Numbers = None,
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    blocks: int = 2,
    stem: int = 64,
) -> nn.Module:
    """Pre-activation residual network for small images (He et al. 2016, arXiv:1603.05027).

    A 3 x 3 stem of ``stem`` channels, ``blocks`` blocks per entry of ``widths`` (stride 2
    from the second on), a last BatchNorm and ReLU, the mean over the pixels. The default is
    PreActResNet-18: 11,172,170 parameters for 3 channels and 10 classes (11,171,146 in
    code that leaves out the last BatchNorm).
    """
    entry, layout = _entry(shape, classes, mean, std), residual(widths, blocks, stem)
    return _initialised(
        nn.Sequential(
            *entry,
            nn.Conv2d(shape[0], stem, 3, padding=1, bias=False),
            *(Block(*sizes) for sizes in layout),
            *(BatchNorm(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(widths[-1], classes),
        )
    )


def wide_resnet(
    shape: Shape,
    classes: int,
    mean: Numbers = None,
    std: Numbers = None,
    *,
    depth: int = 34,
    width: int = 10,
) -> nn.Module:
    """WRN-depth-width without dropout (Zagoruyko & Komodakis 2016, arXiv:1605.07146).

    WRN-34-10 has 46,160,474 parameters for 3 channels and 10 classes.
    """
    return preact_resnet(shape, classes, mean, std, **wide(depth, width))


def _entry(
    shape: Shape, classes: int, mean: Numbers, std: Numbers, least: int = 1
) -> list[nn.Module]:
    """The layer that normalises, if any; ConfigError for what no network takes."""
    check_images(shape, channels_first=True, classes=classes, mean=mean, std=std, least=least)
    return [] if mean is None or std is None else [Normalize(mean, std)]


def _initialised(model: nn.Module) -> nn.Module:
    """Convolutions normal with variance 2 / fan_out (He et al. 2015), no bias.

    Linear layers keep PyTorch's weights: uniform in +-1 / sqrt(fan_in).
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "mnist_cnn": mnist_cnn,
    **{name: partial(preact_resnet, **layout) for name, layout in RESIDUAL.items()},
}
