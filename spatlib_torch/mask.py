"""The shared-pixel mask: class by class through autograd into the core's running score."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from spatlib import checks
from spatlib.config import SPATConfig
from spatlib.core import mask as core

from . import ops
from .inputs import check_graph, check_label_values, logits_of, one_hot, prepare
from .state import advance, attack_state, mask_generator, unwrap


def shared_mask(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    generator: torch.Generator | None = None,
    validate: bool = True,
) -> Tensor:
    """The budget of every pixel: 1 where it is shared among the classes, ``floor`` elsewhere.

    Our reading of arXiv:2009.10978; the formulas are in :mod:`spatlib.core.mask`. Costs K - 1
    backward passes to the input, ``mask_classes`` of them, or ``probes`` with ``share="rms"``. All
    ones, without a pass, unless ``config.masked``.

    Args:
        model: Gives logits (N, K) for inputs (N, ...); its state comes back as it was.
        x: Floating inputs in ``config.bounds``: (N, D), (N, C, L) or (N, C, H, W).
        y: Integer labels (N,); they matter with ``mask_classes`` only.
        config: ``share``, ``keep``, ``floor``, ``mask_classes``, ``probes``, ``attack_mode``.
        generator: Seeds the draws of ``mask_classes`` and ``rms``; default the global one.
        validate: Check values too, not just shapes and dtypes (reads them on the host).

    Returns:
        Values in {floor, 1} with one channel: (N, D), (N, 1, L) or (N, 1, H, W).

    Raises:
        DataError: Inputs, labels or logits of the wrong shape, dtype or range.
    """
    x, y = prepare(x, y, config, validate)
    if not config.masked:
        return torch.ones_like(x[:, :1] if x.ndim > 2 else x)
    module, random = unwrap(model), draws_at_random(config)
    with attack_state(module, config.attack_mode, x.device, keep_rng=generator is not None):
        draws = mask_generator(generator, x.device) if random else None
        leaf = x.detach().requires_grad_()
        logits = logits_of(module, leaf)
        if validate:
            check_label_values(y, logits.shape[1])
        mask = mask_from_logits(logits, leaf, y, config, draws)
    if random:
        advance(generator, x.device)
    return mask


def draws_at_random(config: SPATConfig) -> bool:
    """Whether the mask has draws of its own."""
    return config.masked and (config.share == "rms" or config.mask_classes is not None)


def mask_from_logits(
    logits: Tensor, x: Tensor, y: Tensor, config: SPATConfig, draws: torch.Generator | None
) -> Tensor:
    """The mask from a forward pass whose graph leads back to x; ``draws`` is a CPU generator."""
    channel_axis = 1 if x.ndim > 2 else None
    check_graph(logits)
    state = core.begin(ops, x.detach(), config.share, channel_axis)
    for grad in _gradients(logits, x, y, config, draws):
        state = core.fold(ops, state, grad, config.share, channel_axis)
    mask: Tensor = core.finish(ops, state, config.keep, config.floor)
    return mask


def draw_offsets(config: SPATConfig, classes: int, draws: torch.Generator | None) -> list[int]:
    """Distances from the label to the other compared classes, without replacement."""
    checks.check_mask_classes(config.mask_classes, classes)
    count = (config.mask_classes or classes) - 1
    order = torch.randperm(classes - 1, generator=draws)
    return [1 + int(offset) for offset in order[:count]]


def draw_probes(config: SPATConfig, shape: torch.Size, draws: torch.Generator | None) -> Tensor:
    """Random signs (probes, N, K)."""
    return 2.0 * torch.randint(2, (config.probes, *shape), generator=draws) - 1.0


def _gradients(
    logits: Tensor, x: Tensor, y: Tensor, config: SPATConfig, draws: torch.Generator | None
) -> Iterator[Tensor]:
    """One gradient per class (centred) or probe, shaped like x."""

    def backward(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(logits, x, cotangent, retain_graph=True)[0]

    classes = logits.shape[1]
    if config.share == "rms":
        for signs in draw_probes(config, logits.shape, draws).to(logits, non_blocking=True):
            yield backward(core.probe_cotangent(ops, signs))
    elif config.mask_classes in (None, classes):
        # The centred gradients of all classes add up to zero, which saves the last pass.
        total = torch.zeros_like(x)
        for row in torch.eye(classes, dtype=logits.dtype, device=logits.device)[:-1]:
            grad = backward(core.class_cotangent(row.expand_as(logits)))
            total += grad
            yield grad
        yield -total
    else:
        label = one_hot(y, logits)
        for offset in (0, *draw_offsets(config, classes, draws)):
            yield backward(core.class_cotangent(label.roll(offset, dims=1)))
