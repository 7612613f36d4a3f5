"""The outer loss of one example and its parameter gradients, by hand through both passes.

With p = p(x), p' = p(x'), x' held constant, and e_y the one-hot label:

    pgd     -log p'_y                                            (Madry et al., 2018)
    trades  -log p_y + beta KL(p || p')                          (Zhang et al., 2019)
    mart    -log p'_y - log(1 - max_{k != y} p'_k) + beta KL(p || p') (1 - p_y)
                                                                 (Wang et al., 2020)

With r > 0 the label is (1 - r) l + r softmax(z_avg) instead, z_avg the logits of averaged weights,
held constant, at the input of the loss's cross-entropy: x' for pgd, x for trades.

With a label l of probabilities (not for mart) -log p_y is the cross-entropy -sum_k l_k log p_k, and
e_y is l.

Derivatives for the logits z = z(x) and z' = z(x'):

    d(-log p_y)/dz = p - e_y                       dp_y/dz = p_y (e_y - p)
    dKL/dz_k = p_k (log p_k - log p'_k - KL)       dKL/dz' = p' - p
"""

import math

import numpy as np

from .arrays import Array
from .models import Classifier
from .target import log_softmax, logsumexp, objective, probabilities, softmax


def runner_up(z: Array, y: int) -> int:
    """Return the class k != y of largest logit (of ties, the first)."""
    return max((k for k in range(z.size) if k != y), key=lambda k: float(z[k]))


def boosted_term(z: Array, y: int) -> tuple[float, Array]:
    """Return -log(1 - p_r) for the runner-up r, and its gradient for z.

    1 - p_r is the probability of all the other classes, so the term is logsumexp(z) minus the
    logsumexp without r: nothing cancels when p_r is near 1. The gradient is p - w, where w is
    the softmax over the classes other than r, and 0 at r.
    """
    r = runner_up(z, y)
    others = np.delete(z, r)
    w = np.insert(np.exp(log_softmax(others)), r, 0.0)
    return logsumexp(z) - logsumexp(others), np.exp(log_softmax(z)) - w


def loss_and_cotangents(
    z: Array, z_adv: Array, y: int | Array, loss: str, beta: float
) -> tuple[float, Array, Array]:
    """Return the loss, and its gradients for the logits z and z' (K,)."""
    log_p, log_p_adv = log_softmax(z), log_softmax(z_adv)
    p, p_adv = np.exp(log_p), np.exp(log_p_adv)
    e_y = probabilities(y, z.size)
    if loss == "pgd":
        return objective(z_adv, e_y), np.zeros_like(z), p_adv - e_y
    kl = math.fsum(p * (log_p - log_p_adv))
    kl_z = p * (log_p - log_p_adv - kl)
    kl_z_adv = p_adv - p
    if loss == "trades":
        return objective(z, e_y) + beta * kl, p - e_y + beta * kl_z, beta * kl_z_adv
    if loss == "mart" and not isinstance(y, np.ndarray):
        boosted, boosted_z_adv = boosted_term(z_adv, y)
        doubt = 1.0 - float(p[y])
        value = -float(log_p_adv[y]) + boosted + beta * kl * doubt
        to_z = beta * (doubt * kl_z - kl * p[y] * (e_y - p))
        to_z_adv = p_adv - e_y + boosted_z_adv + beta * doubt * kl_z_adv
        return value, to_z, to_z_adv
    raise ValueError(f'loss must be "pgd", "trades" or, for hard labels, "mart", not {loss!r}')


def rectified(label: int | Array, z: Array, r: float) -> Array:
    """Return (1 - r) label + r softmax(z), the probabilities (K,) that the weights descend to."""
    pairs = zip(probabilities(label, z.size), softmax(z), strict=True)
    return np.array([(1 - r) * before + r * read for before, read in pairs])


def outer_loss(
    model: Classifier, x: Array, x_adv: Array, y: int | Array, *, loss: str, beta: float
) -> tuple[float, list[Array]]:
    """Return the loss and its gradient for each parameter; x and x_adv are (D,)."""
    logits = model.logits(x), model.logits(x_adv)
    value, to_z, to_z_adv = loss_and_cotangents(*logits, y, loss, beta)
    clean = model.parameter_gradients(x, to_z)
    perturbed = model.parameter_gradients(x_adv, to_z_adv)
    return value, [a + b for a, b in zip(clean, perturbed, strict=True)]
