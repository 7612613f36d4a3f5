"""Robustness of one example: no mask, no smoothing, no guard, hard labels."""

from collections.abc import Iterable

import numpy as np

from .arrays import Array
from .losses import runner_up
from .models import Classifier
from .target import one_hot


def robust(model: Classifier, x: Array, y: int, adversarial: Iterable[Array]) -> bool:
    """Return whether argmax_k z_k is y at the clean x and at every given x', all (D,)."""
    return all(int(np.argmax(model.logits(point))) == y for point in (x, *adversarial))


def margin_gradient(model: Classifier, x: Array, y: int) -> Array:
    """Return dJ/dz of the margin J = max_{k != y} z_k - z_y, (K,): +1 at the maximum, -1 at y."""
    z = model.logits(x)
    return one_hot(runner_up(z, y), z.size) - one_hot(y, z.size)
