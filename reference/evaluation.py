"""Robustness of one example: no mask, no smoothing, no guard, hard labels."""

from collections.abc import Iterable

import numpy as np

from .arrays import Array
from .models import Classifier


def robust(model: Classifier, x: Array, y: int, adversarial: Iterable[Array]) -> bool:
    """Return whether argmax_k z_k is y at the clean x and at every given x', all (D,)."""
    return all(int(np.argmax(model.logits(point))) == y for point in (x, *adversarial))
