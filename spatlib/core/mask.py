"""The shared-pixel mask: which pixels matter to all classes alike.

Our reading of arXiv:2009.10978, "perturbation on the pixels that are shared among all classes".
The saliency of pixel u for class k is the sum over channels of |d(z_k - mean_j z_j) / dx_u|. The
engine computes these gradients, one class (or random probe) after the other, and folds each into
a running score, so that memory does not grow with the number of classes.
"""

from __future__ import annotations

import math

from .ops import Array, Ops, divisor, example_axes, example_size


def class_cotangent(one_hot: Array) -> Array:
    """d(z_k - mean_j z_j) / dz for the class that ``one_hot`` (N, K) names in each row."""
    return one_hot - 1 / int(one_hot.shape[1])


def probe_cotangent(ops: Ops, signs: Array) -> Array:
    """d(sum_k v_k (z_k - mean_j z_j)) / dz for random signs v (N, K)."""
    return signs - ops.sum(signs, axis=1, keepdims=True) / int(signs.shape[1])


def begin(ops: Ops, x: Array, share: str, channel_axis: int | None) -> tuple[Array, Array]:
    """The running score (N, ..., 1 channel) and its scale (N, 1, ..., 1) before any fold."""
    pixels = _pixels(ops, 0 * x, channel_axis)
    scale = ops.sum(pixels, axis=example_axes(pixels), keepdims=True)
    return (pixels + math.inf if share in ("min", "neutral") else pixels), scale


def fold(
    ops: Ops, state: tuple[Array, Array], grad: Array, share: str, channel_axis: int | None
) -> tuple[Array, Array]:
    """Fold one more gradient into the score.

    Args:
        state: From :func:`begin` or an earlier fold.
        grad: Gradient with respect to the input, in its shape: of one class's centred logit
            (``min``, ``mean``, ``neutral``) or of one probe (``rms``).
        share: ``min``: min_k s_k; ``mean``: sum_k s_k; ``neutral``: -max_k s_k, where s_k is
            normalised to sum 1 over the pixels and a class with no saliency takes no part.
            ``rms``: sum over probes of the squared gradient, summed over channels. (A mean over
            as many classes or probes, and its root, rank the pixels of an example alike.)
        channel_axis: Axis of x that the pixels share, or None.
    """
    score, scale = state
    if share == "rms":
        # In units of the largest entry so far: the squares of tiny gradients would vanish.
        largest = ops.max(ops.abs(grad), axis=example_axes(grad), keepdims=True)
        largest = ops.maximum(scale, largest)
        unit = divisor(ops, largest)
        old, new = scale / unit, grad / unit
        return score * old * old + _pixels(ops, new * new, channel_axis), largest
    s = _pixels(ops, ops.abs(grad), channel_axis)
    total = ops.sum(s, axis=example_axes(s), keepdims=True)
    alive = total > 0
    s = s / divisor(ops, total)
    if share == "mean":
        return score + s, scale
    s = -s if share == "neutral" else s
    return ops.minimum(score, ops.where(alive, s, math.inf)), scale


def finish(ops: Ops, state: tuple[Array, Array], keep: float, floor: float) -> Array:
    """The mask: 1 on the pixels with the highest scores, ``floor`` elsewhere.

    n = max(1, floor(keep P + 1/2)) of the P pixels are kept, and every pixel that ties with the
    n-th. Where no class took part all scores tie, so the mask is all ones.

    Returns:
        (N, ...) of the input's shape with one channel.
    """
    score, scale = state
    kept = max(1, math.floor(keep * example_size(score) + 0.5))
    threshold = ops.kth_largest(score, kept)
    # Adding 0 * scale gives the constants the dtype of the score in every framework.
    return ops.where(score >= threshold, 0 * scale + 1.0, 0 * scale + floor)


def _pixels(ops: Ops, x: Array, channel_axis: int | None) -> Array:
    return x if channel_axis is None else ops.sum(x, axis=channel_axis, keepdims=True)
