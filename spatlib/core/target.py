"""What the training-time attack ascends: cross-entropy to a smoothed, guarded target.

Our reading of arXiv:2009.10978 (only its abstract was at hand): the target is softened towards
all classes, so that ascent pushes every other class less, and down if it has less than a / K.
"""

from __future__ import annotations

from .ops import Array, Ops, divisor, rivals

GUARD = 0.5  # c: the guarded weight p_y - q_y of the label stays at most half of p_y - b_y


def smoothed_target(
    ops: Ops, b: Array, one_hot: Array, log_p: Array, smoothing: float, guard: bool
) -> Array:
    """q = (1 - a) b + a / K with a = smoothing, or with the guarded a_n of each example.

    a_n = min(a, c max(b_y - p_y, 0) / (b_y - 1/K)) with c = 1/2, and 0 where b_y <= 1/K. With
    it p_y - q_y <= max(p_y - b_y, 0): ascent never raises the label of a one-hot b.

    Args:
        b: Base target (N, K): the one-hot label, or the clean probabilities (TRADES).
        one_hot: The label (N, K).
        log_p: Log-probabilities at the current iterate (N, K), used as constants.
        smoothing: a in [0, 1).
        guard: Whether to shrink a per example.

    Returns:
        q (N, K), non-negative, each row summing to 1.
    """
    if not smoothing:
        return b
    classes = int(b.shape[1])
    if not guard:
        return (1 - smoothing) * b + smoothing / classes
    b_y = ops.sum(b * one_hot, axis=1, keepdims=True)
    p_y = ops.exp(ops.sum(log_p * one_hot, axis=1, keepdims=True))
    excess = b_y - 1 / classes
    ratio = GUARD * ops.maximum(b_y - p_y, 0.0) / divisor(ops, excess)
    a = ops.where(excess > 0, ops.minimum(ratio, smoothing), 0.0)
    return (1 - a) * b + a / classes


def objective(ops: Ops, log_p: Array, q: Array) -> Array:
    """J = -sum_k q_k log p_k, summed over the batch; log_p and q are (N, K)."""
    return -ops.sum(q * log_p, axis=(0, 1))


def stalled(ops: Ops, one_hot: Array, log_p: Array, smoothing: float) -> Array:
    """(N,) 1 where p_y > 1 - a + a / K: unguarded ascent would pull the example back, else 0."""
    classes = int(log_p.shape[1])
    p_y = ops.exp(ops.sum(log_p * one_hot, axis=1))
    return ops.cast(p_y > 1 - smoothing + smoothing / classes, like=log_p)


def attack_loss(ops: Ops, name: str, logits: Array, one_hot: Array, goal: Array = None) -> Array:
    """What an evaluation attack ascends, (N,).

    ``"margin"`` is :func:`margin`, ``"targeted"`` :func:`targeted`, ``"apgd-t"``
    :func:`targeted_ratio`; other names stand for the cross-entropy.
    """
    if name == "margin":
        return margin(ops, logits, one_hot)
    if name == "targeted":
        return targeted(ops, logits, one_hot, goal)
    if name == "apgd-t":
        return targeted_ratio(ops, logits, one_hot, goal)
    return -ops.sum(one_hot * ops.log_softmax(logits), axis=1)


def margin(ops: Ops, logits: Array, one_hot: Array) -> Array:
    """max over k != y of z_k, minus z_y, (N,) (Carlini & Wagner 2017)."""
    rival = ops.max(rivals(ops, logits, one_hot), axis=1)
    return rival - ops.sum(logits * one_hot, axis=1)


def targeted(ops: Ops, logits: Array, one_hot: Array, goal: Array) -> Array:
    """z_t - z_y, (N,); label y and target t are one-hot (N, K)."""
    return ops.sum(logits * (goal - one_hot), axis=1)


def targeted_ratio(ops: Ops, logits: Array, one_hot: Array, goal: Array) -> Array:
    """The targeted difference of logits ratio of Croce & Hein (2020, arXiv:2003.01690), (N,).

    (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) with z_(i) the i-th largest logit: it does not
    change when the logits are shifted or scaled. For K < 4, and where the divisor is 0, it is
    z_t - z_y.
    """
    lead = targeted(ops, logits, one_hot, goal)
    if int(logits.shape[1]) < 4:
        return lead
    first, third, fourth = (ops.sum(ops.kth_largest(logits, k), axis=1) for k in (1, 3, 4))
    spread = first - (third + fourth) / 2
    return lead / divisor(ops, spread)
