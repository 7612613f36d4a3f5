"""The array type of the oracle, and how a mask of pixels is laid over the channels.

An example is a vector x of shape (D,), D = channels * P, flattened with the channels first: pixel
u of channel c is coordinate c * P + u.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def per_coordinate(mask: Array, size: int) -> Array:
    """Repeat a mask (P,) for every channel: (D,) with D = size."""
    if mask.ndim != 1 or mask.size == 0 or size % mask.size:
        raise ValueError(f"a mask of shape {mask.shape} does not divide {size} coordinates")
    return np.tile(mask.astype(np.float64), size // mask.size)


def pixel_count(size: int, channels: int) -> int:
    """Return P = D / channels."""
    if channels < 1 or size % channels:
        raise ValueError(f"{size} coordinates do not divide into {channels} channels")
    return size // channels
