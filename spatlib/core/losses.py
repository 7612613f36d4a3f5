"""The outer losses, per example, differentiable in both logits."""

from __future__ import annotations

from .ops import Array, Ops, rivals


def outer_loss(
    ops: Ops, loss: str, beta: float, one_hot: Array, clean: Array | None, adversarial: Array
) -> Array:
    """The loss that the weights descend, with p = softmax(clean), p' = softmax(adversarial).

    - ``pgd``: -log p'_y (Madry et al., arXiv:1706.06083); ``clean`` is not used.
    - ``trades``: -log p_y + beta KL(p || p') (Zhang et al., arXiv:1901.08573).
    - ``mart``: -log p'_y - log(1 - max over k != y of p'_k) + beta KL(p || p') (1 - p_y)
      (Wang et al., ICLR 2020).

    Args:
        one_hot: The label (N, K).
        clean, adversarial: Logits (N, K) at x and x'.

    Returns:
        (N,).
    """
    log_adversarial = ops.log_softmax(adversarial)
    cross_entropy = -ops.sum(one_hot * log_adversarial, axis=1)
    if loss == "pgd":
        return cross_entropy
    log_clean = ops.log_softmax(clean)
    clean_y = ops.sum(one_hot * log_clean, axis=1)
    divergence = ops.sum(ops.exp(log_clean) * (log_clean - log_adversarial), axis=1)
    if loss == "trades":
        return beta * divergence - clean_y
    rival = ops.argmax_one_hot(rivals(ops, adversarial, one_hot))
    # log(1 - p'_rival) summed over the other classes: exact where p'_rival rounds to 1.
    others = ops.logsumexp(rivals(ops, log_adversarial, rival))
    return cross_entropy - others + beta * divergence * (1 - ops.exp(clean_y))
