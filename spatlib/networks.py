"""What the networks of both engines share: the check of their settings, and their layouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import ConfigError, require, require_integer, require_number


def check_images(
    shape: Sequence[int], *, channels_first: bool, classes: int, mean: Any, std: Any, least: int = 1
) -> None:
    """Raise ConfigError unless there is a network for such inputs.

    Args:
        shape: One input, (C, H, W) or (H, W, C).
        channels_first: Which of the two.
        classes: At least 2.
        mean, std: One number per channel in the units of the inputs, std > 0; or both None.
        least: Fewest pixels that the network takes per side.
    """
    require_integer("classes", classes, 2)
    shape = tuple(shape)
    sides = shape[1:] if channels_first else shape[:-1]
    if len(shape) != 3 or min(sides) < least:
        layout = "(C, H, W)" if channels_first else "(H, W, C)"
        raise ConfigError(
            f"shape must be that of images {layout} of at least {least} x {least} pixels, got "
            f"{shape}: give them a channel axis, enlarge them, or pass a network of your own"
        )
    if mean is None and std is None:
        return
    channels = shape[0 if channels_first else -1]
    for name, values in (("mean", mean), ("std", std)):
        if not isinstance(values, tuple | list) or len(values) != channels:
            raise ConfigError(
                f"{name} must be {channels} numbers, one per channel, got {values!r}: pass mean "
                "and std of these data or neither (a recipe's belong to its own images)"
            )
        for value in values:
            number = require_number(name, value)
            require(name == "mean" or number > 0, name, "be above 0", value)


def residual(widths: Any, blocks: Any, stem: Any) -> list[tuple[int, int, int]]:
    """(channels in, channels out, stride) of each block after a stem of ``stem`` channels.

    There are ``blocks`` of them per entry of ``widths``, with stride 2 at the start of every
    entry but the first. Raises ConfigError unless all are positive integers.
    """
    valid = isinstance(widths, tuple | list) and len(widths) > 0
    require(valid, "widths", "be the channels of each stage, as in (64, 128, 256, 512)", widths)
    for name, value in (("blocks", blocks), ("stem", stem), *(("widths", w) for w in widths)):
        require_integer(name, value, 1)
    outputs = [width for width in widths for _ in range(blocks)]
    strides = [2 if i and i % blocks == 0 else 1 for i in range(len(outputs))]
    return list(zip([stem, *outputs], outputs, strides, strict=False))


def wide(depth: int, width: int) -> dict[str, Any]:
    """The layout of WRN-depth-width (arXiv:1605.07146, table 1); ConfigError for another depth."""
    require_integer("width", width, 1)
    require_integer("depth", depth, 10)
    require(depth % 6 == 4, "depth", "be 6 n + 4 for n blocks per stage (10, 16, 22, ...)", depth)
    return {"widths": (16 * width, 32 * width, 64 * width), "blocks": (depth - 4) // 6, "stem": 16}


RESIDUAL: dict[str, dict[str, Any]] = {
    "preact_resnet18": {"widths": (64, 128, 256, 512), "stem": 64},
    "preact_resnet18_narrow": {"widths": (16, 32, 64, 128), "stem": 16},  # for CPUs
    "wrn34_10": wide(34, 10),
}
