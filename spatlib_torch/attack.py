"""The training-time attack: shared-pixel mask, start, guarded ascent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig
from spatlib.core import target
from spatlib.core.projection import feasible_box
from spatlib.core.start import GAUSSIAN_START, uniform_in_ball
from spatlib.core.step import initial, step

from . import ops
from .inputs import (
    check_budget,
    check_graph,
    check_label_values,
    check_start,
    logits_of,
    one_hot,
    prepare,
)
from .mask import draws_at_random, mask_from_logits
from .state import advance, attack_state, mask_generator, unwrap


class Adversarial(NamedTuple):
    """Perturbed inputs, their mask (None: all ones) and the share of stalled example-steps."""

    x: Tensor
    mask: Tensor | None
    stall_rate: Tensor


def perturb(
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
    """The training-time adversarial examples x' of a batch.

    Args:
        model: Gives logits (N, K) for inputs (N, ...). It may be frozen, in any mode, compiled,
            under autocast, in no_grad or inference_mode; its state comes back as it was.
        x: Floating inputs in ``config.bounds`` (excess by rounding is clipped): (N, D),
            (N, C, L) or (N, C, H, W), in any memory format.
        y: Integer labels (N,).
        config: Threat model and method.
        start: First perturbation, shaped like x, in its units; set to 0 where the mask is 0 and
            projected. Default: drawn as ``config.random_start`` says.
        mask: Budget per pixel in [0, 1], broadcastable to x; default :func:`shared_mask`.
        generator: Source of the start, on x's device; default the global one. With a generator
            or a start the global one is untouched (so with a start and no generator, the draws
            of a random mask stay the same until something else moves the global one).
        validate: Check values too, not just shapes and dtypes (reads them on the host).

    Returns:
        x', detached, with the shape, dtype and memory format of x; x' - x is in the feasible
        set and exactly 0 where the mask is 0.

    Raises:
        DataError: Inputs, labels, logits, start or mask of the wrong shape, dtype or range.
    """
    x, y = prepare(x, y, config, validate)
    return adversarial(model, x, y, config, start, mask, generator, validate).x


def adversarial(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = False,
) -> Adversarial:
    """What :func:`perturb` returns and what it found on the way, for a prepared batch."""
    module = unwrap(model)
    needs_mask = mask is None and config.masked
    random_mask = needs_mask and draws_at_random(config)
    drawn = start is None and config.random_start != "none"
    # The generator's state seeds a random mask, so it has to move on even where no start is drawn;
    # the global generator stays where a start is given.
    stays = drawn or (start is not None and generator is None)
    own_source = generator is not None or start is not None
    with attack_state(module, config.attack_mode, x.device, keep_rng=own_source):
        draws = mask_generator(generator, x.device) if random_mask else None
        clean = None
        if needs_mask or config.base == "trades":
            leaf = x.detach().requires_grad_(needs_mask)
            clean = logits_of(module, leaf)
            if needs_mask:
                mask = mask_from_logits(clean, leaf, y, config, draws)
            clean = clean.detach()
        if start is None:
            start = draw_start(x, config, generator)
        start = check_start(start, x, validate)
        if mask is not None:
            mask = check_budget(mask, x, validate)
        ascent = Ascent(y, config, clean, validate)
        lower, upper = feasible_box(ops, x, mask, config.eps, config.bounds)
        d = initial(ops, start.detach(), mask, lower, upper, config.eps, config.norm)
        x_adv = ascend(module, x, d, mask, lower, upper, config, ascent)
    if random_mask and not stays:
        advance(generator, x.device)
    return Adversarial(x_adv, mask, ascent.stall_rate(x))


class Ascent:
    """The objective of the inner problem, as a function of the logits at the iterate."""

    def __init__(self, y: Tensor, config: SPATConfig, clean: Tensor | None, validate: bool) -> None:
        self.y, self.config, self.validate = y, config, validate
        self.label: Tensor | None = None
        trades = config.base == "trades" and clean is not None
        self.base_target = clean.softmax(dim=1) if trades else None  # type: ignore[union-attr]
        self.stalls: list[Tensor] = []

    def __call__(self, logits: Tensor) -> Tensor:
        if self.label is None:  # once: labels stay the same from step to step
            if self.validate:
                check_label_values(self.y, logits.shape[1])
            self.label = one_hot(self.y, logits)
        label, log_p = self.label, ops.log_softmax(logits)
        b = label if self.base_target is None else self.base_target
        smoothing = self.config.smoothing
        if smoothing:
            self.stalls.append(target.stalled(ops, label, log_p.detach(), smoothing).mean())
        q = target.smoothed_target(ops, b, label, log_p.detach(), smoothing, self.config.guard)
        j: Tensor = target.objective(ops, log_p, q)
        return j

    def stall_rate(self, like: Tensor) -> Tensor:
        """Share of example-steps at which unguarded ascent would have pulled back."""
        return torch.stack(self.stalls).mean() if self.stalls else like.new_zeros(())


def ascend(
    model: nn.Module,
    x: Tensor,
    d: Tensor,
    mask: Tensor | None,
    lower: Tensor,
    upper: Tensor,
    config: SPATConfig,
    objective: Callable[[Tensor], Tensor],
) -> Tensor:
    """``config.steps`` of projected ascent from the perturbation d, inside attack_state."""
    eps, step_size, norm = config.eps, config.step_size, config.norm
    for _ in range(config.steps):
        iterate = (x + d).clamp_(*config.bounds).requires_grad_()
        logits = logits_of(model, iterate)
        check_graph(logits)
        (grad,) = torch.autograd.grad(objective(logits), iterate)
        d = step(ops, d, grad, mask, lower, upper, eps=eps, step_size=step_size, norm=norm)
    return (x + d).clamp_(*config.bounds)


def draw_start(x: Tensor, config: SPATConfig, generator: torch.Generator | None) -> Tensor:
    """The start before projection; the same numbers whatever the memory format of x."""

    def draw(sampler: Callable[..., Tensor], shape: torch.Size | tuple[int, ...]) -> Tensor:
        return sampler(shape, generator=generator, dtype=x.dtype, device=x.device)

    if config.random_start == "none":
        return torch.zeros_like(x)
    if config.random_start == "gaussian":
        return GAUSSIAN_START * draw(torch.randn, x.shape)
    draws = draw(torch.randn if config.norm == "L2" else torch.rand, x.shape)
    one_each = (len(x), *(1,) * (x.ndim - 1))
    radius = draws if config.norm == "Linf" else draw(torch.rand, one_each)
    noise: Tensor = uniform_in_ball(ops, draws, radius, config.eps, config.norm)
    return noise
