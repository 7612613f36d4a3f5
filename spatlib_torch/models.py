"""The networks of ``spatlib.recipes`` as PyTorch modules."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spatlib.recipes import NETWORKS, Layout, Numbers, Shape


class Normalize(nn.Module):
    """(x - mean) / std per channel, inside the model: eps and bounds keep the inputs' units."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean = nn.Buffer(torch.tensor(mean).reshape(-1, 1, 1))
        self.std = nn.Buffer(torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm, in inference mode on a CPU as a product and a sum per channel.

    PyTorch's own CPU kernels, backward above all, take a fifth of a step (docs/performance.md).
    """

    def forward(self, input: Tensor) -> Tensor:
        mean, var, plain = self.running_mean, self.running_var, input.device.type == "cpu"
        if self.training or mean is None or var is None or not plain or input.dtype != var.dtype:
            return super().forward(input)
        scale = torch.rsqrt(var + self.eps) * self.weight
        shift = self.bias - mean * scale
        return torch.addcmul(shift[:, None, None], input, scale[:, None, None])


def _low(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which autocast would have a layer compute: without it, that of the weights."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    # It casts no float64; weights that are in half precision have nothing to keep.
    return torch.get_autocast_dtype(kind) if on and weight.dtype == torch.float32 else weight.dtype


class Conv(nn.Conv2d):
    """A convolution that under autocast does not round the network's inputs.

    In bfloat16 pixels near 1 are 1/256 apart, half a step of 2/255, and trainings on rounded ones
    ended less robust (docs/performance.md). What is in the lower precision already goes as ever.
    """

    def forward(self, input: Tensor) -> Tensor:
        if (low := _low(input, self.weight)) in (input.dtype, self.weight.dtype):
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float()).to(low)


class Logits(nn.Linear):
    """The last layer, under autocast in the float32 of its weights, as in the twin for Keras."""

    def forward(self, input: Tensor) -> Tensor:
        if _low(input, self.weight) == self.weight.dtype:
            return super().forward(input)
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


class Block(nn.Module):
    """A ``("block", outputs, stride)`` after ``inputs`` channels."""

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


LAYERS: dict[str, Callable[..., list[nn.Module]]] = {  # from the number of channels on
    "conv": lambda inputs, out, padding: [Conv(inputs, out, 3, padding=padding), nn.ReLU()],
    "pool": lambda _: [nn.MaxPool2d(2)],
    "flatten": lambda _: [nn.Flatten()],
    "dense": lambda inputs, out: [nn.Linear(inputs, out), nn.ReLU()],
    "stem": lambda inputs, out: [Conv(inputs, out, 3, padding=1, bias=False)],
    "block": lambda inputs, out, stride: [Block(inputs, out, stride)],
    "mean": lambda n: [BatchNorm(n), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
}


def build(
    of: Any, shape: Shape, classes: int, mean: Numbers = None, std: Numbers = None, **settings: Any
) -> nn.Module:
    """The network of the layout ``of(**settings)``, from (N, C, H, W) to logits (N, K).

    ``shape`` is (C, H, W), ``classes`` K; ``mean`` and ``std`` are per channel in the units of the
    inputs, or None. The global generator decides the weights. Raises ConfigError.
    """
    layout: Layout = of(**settings)
    layout.check(shape, classes, mean, std, channels_first=True)
    layers: list[nn.Module] = [] if mean is None or std is None else [Normalize(mean, std)]
    width = shape[0]
    for kind, *numbers in layout.layers:
        layers += LAYERS[kind](width, *numbers)
        width = numbers[0] if numbers else width
        if kind == "flatten":
            width = nn.Sequential(*layers)(torch.zeros(1, *shape)).shape[1]
    model = nn.Sequential(*layers, Logits(width, classes))
    for module in model.modules() if layout.he else ():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return model


MODELS = {name: partial(build, of) for name, of in NETWORKS.items()}
small_cnn, mnist_cnn = MODELS["small_cnn"], MODELS["mnist_cnn"]
preact_resnet, wide_resnet = MODELS["preact_resnet18"], MODELS["wrn34_10"]
