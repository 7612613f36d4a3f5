"""Random crops and flips of a training batch."""

from __future__ import annotations

import torch
from torch import Tensor

from spatlib.checks import check_images
from spatlib.train_config import PADDING


def augment(x: Tensor, kind: str, lower: float, generator: torch.Generator) -> Tensor:
    """Each image shifted, and mirrored or not, by a draw of its own; see ``TrainConfig.augment``.

    Args:
        x: Images (N, C, H, W); the result has their dtype and memory format.
        kind: ``"crop"``, ``"crop-flip"`` or ``"none"``.
        lower: What is around the images.
        generator: On the device of x.

    Raises:
        ConfigError: x are no images.
    """
    if kind == "none":
        return x
    check_images(x.shape)
    side = 2 * PADDING + 1
    (n, _, height, width), device = x.shape, x.device
    versions = side**2 * (2 if kind == "crop-flip" else 1)
    version = torch.randint(versions, (n, 1), generator=generator, device=device)
    across, down = version % side, version // side % side
    columns = torch.arange(width, device=device)
    columns = across + torch.where(version < side**2, columns, columns.flip(0))
    rows = down + torch.arange(height, device=device)
    padded = torch.nn.functional.pad(x, (PADDING,) * 4, value=lower).movedim(1, 3)
    examples = torch.arange(n, device=device)[:, None, None]
    moved = padded[examples, rows[:, :, None], columns[:, None, :]]
    return torch.empty_like(x).copy_(moved.movedim(3, 1))
