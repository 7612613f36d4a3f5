"""The attack on one example, and the mask it is confined to.

x and start are (D,) with D = channels * P, the mask is (P,), y is a class or probabilities (K,).
"""

from collections.abc import Sequence

import numpy as np

from .arrays import Array, pixel_count
from .mask import centred, class_cohort, keep_best, shared_mask
from .models import Classifier
from .projection import feasible_box
from .step import initial, step
from .target import (
    base_target,
    most_probable,
    objective_gradient,
    smoothed_target,
    softmax,
    stalled,
)


def attack(
    model: Classifier,
    x: Array,
    y: int | Array,
    *,
    loss: str,
    eps: float,
    step_size: float,
    steps: int,
    norm: str,
    bounds: tuple[float, float],
    smoothing: float,
    guard: bool,
    mask: Array,
    channels: int,
    start: Array,
) -> tuple[Array, float]:
    """Projected gradient ascent on J = -sum_k q_k log p_k(x + d) over d in B(x, m).

    q is taken at the current iterate and held constant; for "trades" p(x) is that of the clean x.
    Returns x' (D,) and the share of the steps that were stalled where they began (0 for no steps).
    """
    if mask.shape != (pixel_count(x.size, channels),):
        raise ValueError(f"expected a mask of {x.size} / {channels} pixels, got {mask.shape}")
    lo, hi = bounds
    x = np.clip(x, lo, hi)  # an input may leave the range by rounding
    b, label = base_target(loss, y, softmax(model.logits(x))), most_probable(y)
    lower, upper = feasible_box(x, mask, eps, bounds)
    d = initial(start, mask, lower, upper, eps, norm)
    stalls = 0
    for _ in range(steps):
        moved = np.clip(x + d, lo, hi)
        z = model.logits(moved)
        p = softmax(z)
        stalls += stalled(p, label, smoothing)
        q = smoothed_target(b, p, label, smoothing, guard)
        g = objective_gradient(z, q) @ model.input_gradients(moved)
        d = step(d, g, mask, lower, upper, eps, step_size, norm)
    return np.clip(x + d, lo, hi), stalls / max(steps, 1)


def mask_at(
    model: Classifier,
    x: Array,
    y: int | Array,
    *,
    channels: int,
    score: str | None,
    keep: float,
    floor: float,
    offsets: Sequence[int] | None,
    probes: Array | None,
    noise: Array | None = None,
) -> Array:
    """Return the shared-pixel mask at x, (P,).

    probes (n_probes, K) are the signs of "rms", noise (P,) the scores of "random". All ones when
    score is None, keep is 1 or floor is 1.
    """
    pixels = pixel_count(x.size, channels)
    if score is None or keep == 1 or floor == 1:
        return np.ones(pixels)
    if score == "random":
        if noise is None or noise.shape != (pixels,):
            raise ValueError('score="random" needs noise of shape (P,)')
        return keep_best(noise, keep, floor)
    gradients = model.input_gradients(x)
    if score == "rms":
        if probes is None:
            raise ValueError('score="rms" needs probes of shape (n_probes, K)')
        # sum_k v_k (g_k - mean g) = sum_k (v_k - mean v) g_k. The right-hand side is exactly 0 for
        # a probe of one sign; the left-hand side is rounding noise, of which no mask can be made.
        compared = np.stack([(probe - probe.mean()) @ gradients for probe in probes])
    else:
        compared = centred(gradients)[class_cohort(most_probable(y), len(gradients), offsets)]
    return shared_mask(compared, channels, score, keep, floor)
