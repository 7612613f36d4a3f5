"""Labels, what attacks ascend, as its gradient in the logits, and what training descends.

Labels are class indices (N,), or rows (N, K) of probabilities, one-hot or soft (MART: one-hot).
"""

import math
from collections.abc import Sequence
from typing import Any

from ..errors import expect
from .ops import Array, Ops, divisor, example_axes, ranked, rivals

GUARD = 0.5  # the guarded weight p_y - q_y of the label stays at most half of p_y - b_y
LARGEST_EXPONENT = 60.0  # of a factor that float32 still holds, with room for K and 1 / excess
TARGETED = ("targeted", "apgd-t")  # attacks of an evaluation that try one class after the other
TARGETS = 9  # of them at most, as AutoAttack has
SUM_ROUNDING = 4e-3  # by which a row may miss a sum of 1: bfloat16 rounds by as much


def mass_limits(y: Array, classes: int) -> tuple[float, float]:
    """What :func:`label_mass` has to be in; DataError for rows without a column per class."""
    if len(y.shape) == 1:
        return 0, classes - 1
    what = f"y must hold class indices (N,) or rows (N, {classes}), one column per output"
    expect(y.shape[1] == classes, f"{what} of the model, got shape {tuple(y.shape)}: pass such")
    return 1 - SUM_ROUNDING, 1 + SUM_ROUNDING


def label_mass(ops: Ops, y: Array, loss: str) -> Array:
    """What :func:`mass_limits` bound (N,): class indices as they are; the sum of a row (N, K).

    For ``mart`` it is divided by the number of positive entries; a negative entry is in its place.
    """
    if len(y.shape) == 1:
        return y
    # Not -max(-y): of y in float64, as Keras feeds it, TensorFlow's optimizer makes that of x.
    lowest, total = -ops.max(ops.abs(y) - y, axis=1) / 2, ops.sum(y, axis=1)
    if loss == "mart":
        total = total / divisor(ops, ops.sum(ops.cast(y > 0, like=y), axis=1))
    return ops.where(lowest < 0, lowest, total)


def check_mass(extremes: Sequence[float], limits: tuple[float, float]) -> None:
    """DataError unless the extremes of :func:`label_mass` are in its :func:`mass_limits`."""
    (first, last), (low, high) = map(float, extremes), map(float, limits)
    what, how = f"labels from 0 to {high:g} ({high + 1:g} outputs of the model)", "count from 0"
    if low:
        what = "rows that sum to 1, none with a negative value, one-hot for loss='mart'"
        how = "divide each by its sum, for 'mart' pass class indices"
    inside = low <= first and last <= high  # never with NaN
    expect(inside, f"y must hold {what}, got {first:g} to {last:g}: {how}")


def check_labels(ops: Any, y: Array, classes: int, loss: str) -> None:
    """DataError unless all labels are some for this loss; reads them on the host."""
    check_mass(ops.extremes(label_mass(ops, y, loss)), mass_limits(y, classes))


def label_rows(ops: Any, y: Array, logits: Array) -> Array:
    """Labels (N, K) in the dtype of the logits; zeros where an index names no class."""
    if len(y.shape) == 1:
        return ops.one_hot(y, logits)
    mass_limits(y, int(logits.shape[1]))
    return ops.cast(y, like=logits)


def sound_rows(ops: Ops, label: Array, loss: str) -> Array:
    """The labels (N, K) with NaN, so that the loss is NaN, in rows that are none for this loss."""
    off = ops.abs(label_mass(ops, label, loss) - 1)
    return ops.where(off[:, None] <= SUM_ROUNDING, label, math.nan)


def hard_labels(ops: Any, y: Array) -> Array:
    """The classes (N,): of rows the largest entry's."""
    return y if len(y.shape) == 1 else ops.argmax(y)


def ascent(
    ops: Ops, base: Array | None, label: Array, log_p: Array, smoothing: float, guard: bool
) -> Array:
    """The gradient p - q of the training attack's J = -sum_k q_k log p_k, q held constant.

    q = (1 - a) b + a / K, a = ``smoothing`` or what the guard leaves of it: docs/method.md, our
    reading of arXiv:2009.10978. ``base`` is log b (N, K) of the clean input (TRADES), or None for
    the ``label`` (N, K), whose largest entry is at y; ``log_p`` is finite (N, K), at the iterate.
    Computed in units of exp(m), m the largest logarithm that takes part; p - b sums to zero, and
    its entry at the largest b_k is minus the sum of the others: 1 - p_k would round to 0.
    """
    classes = int(label.shape[1])
    if base is None:
        base = ops.where(label > 0, ops.log(divisor(ops, label)), -math.inf)
    top = ops.argmax_one_hot(base)
    p, b = rivals(ops, log_p, top), rivals(ops, base, top)
    m = ops.max(ops.maximum(p, b), axis=1, keepdims=True)
    if smoothing and not guard:
        m = ops.maximum(m, math.log(smoothing))
    slope = ops.exp(p - m) - ops.exp(b - m)
    slope = slope - top * ops.sum(slope, axis=1, keepdims=True)
    if smoothing:
        target = ops.exp(base)
        a = ops.exp(ops.minimum(math.log(smoothing) - m, LARGEST_EXPONENT))
        if guard:
            y = ops.argmax_one_hot(label)
            excess = ops.sum(target * y, axis=1, keepdims=True) - 1 / classes
            lost = -ops.sum(slope * y, axis=1, keepdims=True)  # (b_y - p_y) / exp(m)
            half = GUARD * ops.maximum(lost, 0.0) / divisor(ops, excess)
            a = ops.where(excess > 0, ops.minimum(half, a), 0.0)
        slope = slope + a * (target - 1 / classes)
    return to_unit(ops, slope)


def stalled(ops: Ops, label: Array, log_p: Array, smoothing: float) -> Array:
    """(N,) 1 where p_y > 1 - a + a / K: unguarded ascent would pull the example back, else 0."""
    classes = int(log_p.shape[1])
    p_y = ops.exp(ops.sum(log_p * ops.argmax_one_hot(label), axis=1))
    return ops.cast(p_y > 1 - smoothing + smoothing / classes, like=log_p)


def objective(
    ops: Ops, name: str, logits: Array, label: Array, goal: Array = None
) -> tuple[Array, Array]:
    """What an evaluation attack ascends, (N,), and its cotangent (N, K), up to a positive factor.

    Of finite logits (N, K), with ``label`` and ``goal`` one-hot (N, K):
    - ``"margin"``: max over k != y of z_k, minus z_y (Carlini & Wagner 2017).
    - ``"targeted"``: z_t - z_y for the target t of ``goal``.
    - ``"apgd-t"``: the targeted difference of logits ratio (Croce & Hein 2020, arXiv:2003.01690),
      (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) with z_(i) the i-th largest logit; z_t - z_y for
      K < 4 and where the divisor is 0.
    - Any other name: log sum over k != y of exp z_k, minus z_y. It rises and falls with the
      cross-entropy, and does not round to 0 where that does.
    """
    if name not in ("margin", "targeted", "apgd-t"):
        value = ops.logsumexp(rivals(ops, logits, label)) - ops.sum(logits * label, axis=1)
        return value, ascent(ops, None, label, ops.log_softmax(logits), 0.0, False)
    if name == "margin":
        goal = ops.argmax_one_hot(rivals(ops, logits, label))
    up = goal - label
    lead = ops.sum(logits * up, axis=1)
    if name != "apgd-t" or int(logits.shape[1]) < 4:
        return lead, up
    first, _, third, fourth = ranked(ops, logits, 4)
    down = first - (third + fourth) / 2
    spread = ops.sum(logits * down, axis=1)
    value = lead / divisor(ops, spread)
    ratio = ops.where(spread > 0, value, 0.0)[:, None]
    return value, to_unit(ops, up - ratio * down)


def finite(ops: Ops, grad: Array) -> tuple[Array, Array]:
    """The gradient, NaN as 0, infinite entries above all finite; and (N,) 1 for one with such."""
    grad = ops.widen(grad)
    # One sum tells, scaled so that it cannot overflow: on CPUs comparing entries costs far more.
    axes, size = example_axes(grad), ops.abs(grad)
    holes = 1 - ops.cast(ops.sum(2.0**-40 * size, axis=axes) < math.inf, like=grad)  # NaN is not

    def filled(grad: Array, holes: Array) -> tuple[Array, Array]:
        endless = ops.where(size == math.inf, ops.sign(grad), 0.0)
        some = ops.max(ops.abs(endless), axis=axes, keepdims=True) > 0
        return ops.where(some, endless, ops.where(size < math.inf, grad, endless)), holes

    # Where asking is free, filling is left out: holes are rare.
    return ops.repeat(filled, 1, (grad, holes), lambda _, holes: holes == 0)  # type: ignore[no-any-return]


def to_unit(ops: Ops, cotangent: Array) -> Array:
    """Scaled to a largest entry of 1 in each row of (N, K); zero stays zero."""
    return cotangent / divisor(ops, ops.max(ops.abs(cotangent), axis=1, keepdims=True))


def rectified(ops: Ops, label: Array, logits: Array, r: float) -> Array:
    """The label (1 - r) label + r softmax(logits), (N, K), of what averaged weights read."""
    return (1 - r) * label + r * ops.exp(ops.log_softmax(logits))


def outer_loss(
    ops: Ops, loss: str, beta: float, label: Array, clean: Array | None, adversarial: Array
) -> Array:
    """The loss (N,) that weights descend; p = softmax(clean), p' = softmax(adversarial), (N, K).

    - ``pgd``: -log p'_y, of a soft ``label`` -sum_k label_k log p'_k (Madry et al.,
      arXiv:1706.06083); ``clean`` is not used.
    - ``trades``: -log p_y + beta KL(p || p') (Zhang et al., arXiv:1901.08573).
    - ``mart``: -log p'_y - log(1 - max over k != y of p'_k) + beta KL(p || p') (1 - p_y)
      (Wang et al., ICLR 2020).
    """
    log_adversarial = ops.log_softmax(adversarial)
    cross_entropy = -ops.sum(label * log_adversarial, axis=1)
    if loss == "pgd":
        return cross_entropy
    log_clean = ops.log_softmax(clean)
    clean_y = ops.sum(label * log_clean, axis=1)
    divergence = ops.sum(ops.exp(log_clean) * (log_clean - log_adversarial), axis=1)
    if loss == "trades":
        return beta * divergence - clean_y
    rival = ops.argmax_one_hot(rivals(ops, adversarial, label))
    # log(1 - p'_rival) summed over the other classes: exact where p'_rival rounds to 1.
    others = ops.logsumexp(rivals(ops, log_adversarial, rival))
    return cross_entropy - others + beta * divergence * (1 - ops.exp(clean_y))
