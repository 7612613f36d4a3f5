"""The training loss of a batch: attack, then one or two forward passes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig
from spatlib.core.losses import outer_loss

from . import ops
from .attack import adversarial
from .inputs import logits_of, one_hot, prepare


class BatchLoss(NamedTuple):
    """The scalar loss, the logits at x' and the share of stalled example-steps."""

    loss: Tensor
    logits: Tensor
    stall_rate: Tensor


def spat_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = True,
) -> Tensor:
    """The loss to call ``backward()`` on, in a training loop of your own.

    Perturbs the batch as :func:`perturb` does (same arguments), then evaluates the outer loss of
    ``config.base`` (formulas in :mod:`spatlib.core.losses`) with the model as it stands: one
    forward pass for ``pgd``, two for ``trades`` and ``mart``, clean first (the order in which
    BatchNorm sees them).

    Returns:
        The mean over the batch, a scalar with a graph to the parameters.

    Raises:
        DataError: See :func:`perturb`.
    """
    return batch_loss(model, x, y, config, start, mask, generator, validate).loss


def batch_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = False,
) -> BatchLoss:
    """What :func:`spat_loss` returns, and what a trainer logs."""
    x, y = prepare(x, y, config, validate)
    attacked = adversarial(model, x, y, config, start, mask, generator, validate)
    clean = None if config.base == "pgd" else logits_of(model, x)
    logits = logits_of(model, attacked.x)
    losses = outer_loss(ops, config.base, config.beta, one_hot(y, logits), clean, logits)
    return BatchLoss(losses.mean(), logits.detach(), attacked.stall_rate)
