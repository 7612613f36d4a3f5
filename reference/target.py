"""The ascent target of the inner problem, for one example: z, p, b, q of shape (K,), y an int.

b is the label for the losses "pgd" and "mart", one-hot or (not for "mart") probabilities (K,), and
p(x) for "trades"; y is the label's most probable class; q = (1 - a) b + a / K; the
attack ascends J = -sum_k q_k log p_k. The smoothing is our reading of semantics-preserving
adversarial training (Lee, Lee & Lee, 2020, arXiv:2009.10978); a = 0 is the inner problem of Madry
et al. (2018), TRADES (Zhang et al., 2019) and MART (Wang et al., 2020).
"""

import math

import numpy as np

from .arrays import Array


def logsumexp(z: Array) -> float:
    """Return log sum_k exp(z_k), with the maximum taken out so that nothing overflows."""
    top = float(np.max(z))
    return top + math.log(math.fsum(math.exp(value - top) for value in z))


def log_softmax(z: Array) -> Array:
    """Return log p_k = z_k - log sum_j exp(z_j)."""
    return z - logsumexp(z)


def softmax(z: Array) -> Array:
    """Return p_k = exp(z_k) / sum_j exp(z_j)."""
    p: Array = np.exp(log_softmax(z))
    return p


def one_hot(y: int, classes: int) -> Array:
    """Return 1 at y, 0 elsewhere: (K,)."""
    if not 0 <= y < classes:
        raise ValueError(f"label {y} is not one of {classes} classes")
    b = np.zeros(classes)
    b[y] = 1.0
    return b


def probabilities(label: int | Array, classes: int) -> Array:
    """Return the label as probabilities (K,): one-hot for a class."""
    if not isinstance(label, np.ndarray):
        return one_hot(label, classes)
    if label.shape != (classes,) or min(label) < 0 or abs(math.fsum(label) - 1) > 1e-12:
        raise ValueError(f"label {label} is no distribution over {classes} classes")
    return label


def most_probable(label: int | Array) -> int:
    """Return the class of the label (of several equally probable ones the first)."""
    return int(np.argmax(label)) if isinstance(label, np.ndarray) else label


def base_target(loss: str, label: int | Array, p_clean: Array) -> Array:
    """Return b: the label for "pgd" and "mart", p at the clean input for "trades"."""
    if loss in ("pgd", "mart"):
        return probabilities(label, p_clean.size)
    if loss == "trades":
        return p_clean.copy()
    raise ValueError(f'loss must be "pgd", "trades" or "mart", not {loss!r}')


def smoothed_target(b: Array, p: Array, y: int, smoothing: float, guard: bool) -> Array:
    """Return q = (1 - a) b + a / K.

    With the guard a is replaced by min(a, 1/2 max(b_y - p_y, 0) / (b_y - 1/K)), and by 0 where
    b_y <= 1/K; q_y then lies at least half way from p_y up to b_y.
    """
    classes = b.size
    a = smoothing
    if guard:
        excess = float(b[y]) - 1.0 / classes
        a = 0.0 if excess <= 0.0 else min(a, 0.5 * max(float(b[y] - p[y]), 0.0) / excess)
    return (1.0 - a) * b + a / classes


def objective(z: Array, q: Array) -> float:
    """Return J = -sum_k q_k log p_k."""
    return -math.fsum(q * log_softmax(z))


def objective_gradient(z: Array, q: Array) -> Array:
    """Return dJ/dz_j = p_j sum_k q_k - q_j, with q held constant: the cotangent to the logits."""
    return softmax(z) * math.fsum(q) - q


def stalled(p: Array, y: int, smoothing: float) -> bool:
    """Return whether p_y > q_y = 1 - a + a / K (one-hot b, no guard): ascent then raises p_y."""
    return bool(p[y] > 1.0 - smoothing + smoothing / p.size)
