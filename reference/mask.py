"""The shared-pixel mask of one example, from a full table of saliencies.

Our reading of "pixels that are shared among all classes" (Lee, Lee & Lee, 2020,
arXiv:2009.10978). With g_k = d(z_k - mean_j z_j)/dx, channels first, the saliency of pixel u is

    s_k(u) = sum over channels c of |g_k[c, u]|, divided by its mean over pixels,

and the score is min_k s_k ("min"), mean_k s_k ("mean"), -max_k s_k ("neutral"), or for "rms" the
root of the mean over probes v of sum over channels of (sum_k v_k g_k[c, u])^2, not normalised.
Pixels on which none of the compared classes depends rank last and are never kept, unless there is
no other.
"""

import math
from collections.abc import Sequence

import numpy as np

from .arrays import Array, pixel_count


def centred(gradients: Array) -> Array:
    """Return g_k - mean_j g_j over all K classes: (K, D) -> (K, D)."""
    mean: Array = gradients.sum(axis=0) / gradients.shape[0]
    return gradients - mean


def class_cohort(y: int, classes: int, offsets: Sequence[int] | None) -> list[int]:
    """Return the compared classes (y + o) mod K for o = 0 and the offsets; all K for None."""
    if offsets is None:
        return list(range(classes))
    return [(y + offset) % classes for offset in (0, *offsets)]


def saliency_table(gradients: Array, channels: int) -> list[list[float]]:
    """Return a row of P saliencies of mean 1 for each class (R, D) whose saliency is not zero."""
    pixels = pixel_count(gradients.shape[1], channels)
    table: list[list[float]] = []
    for gradient in gradients.tolist():
        row = [
            math.fsum(abs(gradient[c * pixels + u]) for c in range(channels)) for u in range(pixels)
        ]
        mean = math.fsum(row) / pixels
        if mean > 0.0:
            table.append([value / mean for value in row])
    return table


def shared_score(gradients: Array, channels: int, score: str) -> Array | None:
    """Return the score of every pixel, (P,), or None when no class takes part.

    gradients (R, D): those of the compared classes, centred, for "min", "mean" and "neutral"; for
    "rms" those of the probes, sum_k v_k g_k.
    """
    pixels = pixel_count(gradients.shape[1], channels)
    if score == "rms":
        probes = gradients.reshape(-1, channels, pixels)
        squares = [math.fsum((probes[:, :, u] ** 2).flat) for u in range(pixels)]
        return np.array([math.sqrt(square / len(probes)) for square in squares])
    table = saliency_table(gradients, channels)
    if not table:
        return None
    columns = [[row[u] for row in table] for u in range(pixels)]
    if score == "min":
        return np.array([min(column) for column in columns])
    if score == "mean":
        return np.array([math.fsum(column) / len(column) for column in columns])
    if score == "neutral":
        return np.array([-max(column) for column in columns])
    raise ValueError(f'score must be "min", "mean", "rms" or "neutral", not {score!r}')


def used_pixels(gradients: Array, channels: int) -> list[bool]:
    """Return for each of the P pixels whether any of the gradients (R, D) reaches it."""
    pixels = pixel_count(gradients.shape[1], channels)
    return [bool(np.any(gradients[:, u::pixels] != 0.0)) for u in range(pixels)]


def keep_best(scores: Array, keep: float, floor: float) -> Array:
    """Return 1 on the n of P pixels with the highest scores, `floor` elsewhere.

    n = max(1, floor(keep P + 1/2)). Ties at the threshold are all kept.
    """
    n = max(1, math.floor(keep * scores.size + 0.5))
    threshold = sorted(scores.tolist(), reverse=True)[n - 1]
    return np.array([1.0 if value >= threshold else floor for value in scores.tolist()])


def shared_mask(gradients: Array, channels: int, score: str, keep: float, floor: float) -> Array:
    """Return the mask (P,): :func:`keep_best` of the scores, but `floor` on every unused pixel.

    All ones when no class takes part.
    """
    scores = shared_score(gradients, channels, score)
    used = used_pixels(gradients, channels)
    if scores is None or not any(used):
        return np.ones(len(used))
    ranked = np.array(
        [value if seen else -math.inf for value, seen in zip(scores, used, strict=True)]
    )
    kept = keep_best(ranked, keep, floor)
    return np.array([value if seen else floor for value, seen in zip(kept, used, strict=True)])
