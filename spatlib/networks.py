"""The networks by name, each said once for both engines. A layer is one of

- ``("conv", channels, padding)``: 3 x 3 convolution, ReLU;
- ``("pool",)``: 2 x 2 max-pooling; ``("flatten",)``; ``("dense", units)``: linear, ReLU;
- ``("stem", channels)``: 3 x 3 convolution, padding 1, no bias;
- ``("block", channels, stride)``: BatchNorm, ReLU, 3 x 3 convolution, twice, added to the input
  (arXiv:1603.05027, fig. 1b) or, where the shape changes, to a 1 x 1 convolution of its activation;
- ``("mean",)``: BatchNorm, ReLU, mean over the pixels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from .errors import checked, require

Shape = Sequence[int]
Numbers = Sequence[float] | None


class Layout(NamedTuple):
    """The layers between normalisation and logits. Weights begin uniform in +-1 / sqrt(fan_in)."""

    layers: list[tuple[Any, ...]]
    least: int = 1  # pixels per side
    he: bool = True  # convolutions begin normal, variance 2 / fan_out (He et al. 2015), biases at 0

    def check(self, shape: Shape, classes: int, mean: Any, std: Any, channels_first: bool) -> None:
        """ConfigError unless there is such a network for images of this shape."""
        checked("classes", classes, 2)
        sides, axis = (shape[1:], 0) if channels_first else (shape[:-1], -1)
        layout, n = "(C, H, W)" if channels_first else "(H, W, C)", self.least
        what = f"be {layout}, a channel axis and at least {n} x {n} pixels"
        require(len(shape) == 3 and min(sides) >= n, "shape", what, tuple(shape))
        what = f"be {shape[axis]} numbers, one per channel (those of these data, or None for both)"
        for name, values in (("mean", mean), ("std", std)):
            if mean is not None or std is not None:
                valid = isinstance(values, tuple | list) and len(values) == shape[axis]
                require(valid, name, what, values)
                for value in values:
                    checked(name, value, "(0, inf)" if name == "std" else "(-inf, inf)")


def small_cnn() -> Layout:
    """Two convolutions, pooling, a hidden layer; 151,306 parameters for the digits."""
    convolutions = [("conv", 32, 1), ("conv", 64, 1)]
    return Layout([*convolutions, ("pool",), ("flatten",), ("dense", 128)], least=2, he=False)


def mnist_cnn() -> Layout:
    """The CNN of TRADES (arXiv:1901.08573, and its code) without dropout; 312,202 for MNIST."""
    convolutions = [*[("conv", 32, 0)] * 2, ("pool",), *[("conv", 64, 0)] * 2, ("pool",)]
    return Layout([*convolutions, ("flatten",), ("dense", 200), ("dense", 200)], least=16)


def preact_resnet(widths: Any = (64, 128, 256, 512), blocks: Any = 2, stem: Any = 64) -> Layout:
    """Pre-activation residual network for small images (He et al. 2016, arXiv:1603.05027).

    It has ``blocks`` blocks per entry of ``widths``, with stride 2 at the start of all but the
    first. The default is PreActResNet-18: 11,172,170 parameters for 3 channels and 10 classes.
    """
    valid = isinstance(widths, tuple | list) and len(widths) > 0
    require(valid, "widths", "be the channels of each stage, as in (64, 128, 256, 512)", widths)
    for name, value in (("blocks", blocks), ("stem", stem), *(("widths", w) for w in widths)):
        checked(name, value, 1)
    sizes = [(w, 2 if i and not n else 1) for i, w in enumerate(widths) for n in range(blocks)]
    return Layout([("stem", stem), *(("block", *size) for size in sizes), ("mean",)])


def wide_resnet(depth: Any = 34, width: Any = 10) -> Layout:
    """WRN-depth-width (arXiv:1605.07146, table 1) without dropout; 34-10: 46,160,474 parameters."""
    checked("width", width, 1)
    checked("depth", depth, 10)
    require(depth % 6 == 4, "depth", "be 6 n + 4 for n blocks per stage (10, 16, 22, ...)", depth)
    return preact_resnet((16 * width, 32 * width, 64 * width), (depth - 4) // 6, stem=16)


NETWORKS: dict[str, Callable[..., Layout]] = {
    "small_cnn": small_cnn,
    "mnist_cnn": mnist_cnn,
    "preact_resnet18": preact_resnet,
    "preact_resnet18_narrow": partial(preact_resnet, (16, 32, 64, 128), stem=16),  # for CPUs
    "wrn34_10": wide_resnet,
}
