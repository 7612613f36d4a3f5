"""The training attack, the mask and the loss in PyTorch: the core over autograd."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig
from spatlib.core import mask as core
from spatlib.core.attack import Adversarial, adversarial
from spatlib.core.target import outer_loss
from spatlib.errors import check_same_shape, expect, require_type

from . import ops
from .inputs import (
    check_label_values,
    check_model,
    check_tensor,
    given,
    logits_of,
    one_hot,
    prepare,
)
from .state import attack_state, unwrap


def vjp(model: nn.Module, x: Tensor, *, many: bool = False) -> tuple[Tensor, Callable[..., Tensor]]:
    """The logits at x, and the map from a cotangent (N, K) to the gradient in x.

    With ``many`` the map can be called several times, each time with ``last=False``.
    """
    leaf = x.detach().requires_grad_()
    # A compiled forward pass can be gone back through once only.
    with torch.compiler.set_stance("force_eager") if many else nullcontext():
        logits = logits_of(model, leaf)
    expect(
        logits.requires_grad,
        "model must return logits that depend on its input through autograd: remove no_grad, "
        "detach or item from its forward",
    )

    def pull(cotangent: Tensor, *, last: bool = True) -> Tensor:
        return torch.autograd.grad(logits, leaf, cotangent, retain_graph=not last)[0]

    return logits.detach(), pull


class Draws:
    """See :class:`spatlib.core.feasible.Draws`; from a generator, or the global one for None."""

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def uniform(self, like: Tensor, purpose: str) -> Tensor:
        return torch.rand(like.shape, **self._kind(like))

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        return torch.randn(like.shape, **self._kind(like))

    def signs(self, label: Tensor, count: int) -> Tensor:
        shape = (count, *label.shape)
        bits = torch.randint(2, shape, generator=self.generator, device=label.device)
        return (2 * bits - 1).to(label.dtype)

    def classes(self, label: Tensor, count: int) -> Tensor:
        classes, device = label.shape[1], label.device
        order = torch.randperm(classes - 1, generator=self.generator, device=device)
        offsets = torch.cat([order.new_zeros(1), 1 + order[: count - 1]])
        columns = (torch.arange(classes, device=device) - offsets[:, None]) % classes
        return label[:, columns].movedim(1, 0)

    def _kind(self, like: Tensor) -> dict[str, Any]:
        return {"generator": self.generator, "dtype": like.dtype, "device": like.device}


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
        x: Floats in ``config.bounds``, (N, D), (N, C, L) or (N, C, H, W) in any memory format.
        y: Integer labels (N,).
        config: Threat model and method.
        start: First perturbation, shaped like x, in its units; it is set to 0 where the mask is 0
            and projected. Default: drawn as ``config.random_start`` says.
        mask: Budget per pixel in [0, 1], broadcastable to x; default :func:`shared_mask`.
        generator: Source of start and mask, on x's device; default the global one, which stays
            untouched if there is a generator or a start (a mask is then always drawn alike).
        validate: Check values too, not just shapes and dtypes (reads them on the host).

    Returns:
        x', detached, with the shape, dtype and memory format of x; x' - x is in the feasible
        set and exactly 0 where the mask is 0.

    Raises:
        ConfigError, DataError: What was expected, what came, what to do.
    """
    x, y = _prepared(model, x, y, config, validate)
    own = {name: given(name, t, x, validate) for name, t in (("start", start), ("mask", mask))}
    found: Tensor = attacked(model, x, y, config, **own, source=generator, check=validate).x
    return found


def spat_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    x_adv: Tensor | None = None,
    generator: torch.Generator | None = None,
    validate: bool = True,
) -> Tensor:
    """The loss to call ``backward()`` on in a loop of your own: the mean of the batch, a scalar.

    Perturbs the batch as :func:`perturb` does, whose arguments and errors it shares, or takes the
    ``x_adv`` that it made; then evaluates the outer loss ``config.loss``
    (:func:`spatlib.core.target.outer_loss`) with the model as it stands: one forward pass for
    ``pgd``, two for ``trades`` and ``mart``, clean first (the order in which BatchNorm sees them).
    """
    x, y = _prepared(model, x, y, config, validate)
    if x_adv is None:
        x_adv = attacked(model, x, y, config, source=generator, check=validate).x
    else:
        check_tensor("x_adv", x_adv)
        check_same_shape("x_adv", x_adv, x)
        x_adv, _ = prepare(x_adv, y, config, validate, "x_adv")
    losses, logits = outer(model, x, x_adv, y, config)
    if validate:
        check_label_values(y, logits.shape[1])
    return losses.mean()


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

    Our reading of arXiv:2009.10978; the formulas are in :mod:`spatlib.core.mask`. Arguments and
    errors are those of :func:`perturb`; labels matter with ``classes`` only. Costs K - 1 backward
    passes to the input, ``classes`` of them, ``probes`` with the score ``rms``, none with
    ``random``. All ones, without a pass, unless ``config.masked``.

    Returns:
        One channel of values in {floor, 1}: (N, D), (N, 1, L) or (N, 1, H, W).
    """
    x, y = _prepared(model, x, y, config, validate)
    if config.mask is None or not config.masked:
        return torch.ones_like(x[:, :1] if x.ndim > 2 else x)
    fork = None if generator is None else x.device
    with _attacking(model, y, config, validate, fork) as own:
        mask: Tensor = core.shared_mask(ops, x, *own, config.mask, Draws(generator))[0]
    return mask


class BatchLoss(NamedTuple):
    """The scalar loss, the logits at x' and the share of stalled example-steps."""

    loss: Tensor
    logits: Tensor
    stall_rate: Tensor


def batch_loss(
    model: nn.Module, x: Tensor, y: Tensor, config: SPATConfig, source: torch.Generator
) -> BatchLoss:
    """What :func:`spat_loss` returns for a prepared batch, and what a trainer logs."""
    attack = attacked(model, x, y, config, source=source)
    losses, logits = outer(model, x, attack.x, y, config)
    return BatchLoss(losses.mean(), logits.detach(), attack.stalls.mean())


def attacked(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    start: Tensor | None = None,
    mask: Tensor | None = None,
    source: torch.Generator | None = None,
    check: bool = False,
) -> Adversarial:
    """The attack on a prepared batch; ``check`` reads the labels on the host."""
    # With a generator or a start the global generators stay as they are, dropout or not.
    fork = x.device if source is not None or start is not None else None
    if start is not None and source is None:
        source = torch.Generator(x.device).manual_seed(0)
    with _attacking(model, y, config, check, fork) as own:
        return adversarial(ops, *own, x, config, start, mask, Draws(source))


def outer(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, config: SPATConfig
) -> tuple[Tensor, Tensor]:
    """The outer loss of each example (N,) and the logits (N, K) at x'."""
    clean = None if config.loss == "pgd" else logits_of(model, x)
    logits = logits_of(model, x_adv)
    label = one_hot(y, logits)
    return outer_loss(ops, config.loss, config.beta, label, clean, logits), logits


@contextmanager
def _attacking(
    model: nn.Module, y: Tensor, config: SPATConfig, check: bool, fork: torch.device | None
) -> Iterator[tuple[Callable[..., Any], Callable[[Tensor], Tensor]]]:
    """The primitive and the labels that the core asks for, while the model is set up for them."""

    def label(logits: Tensor) -> Tensor:
        nonlocal check
        if check:  # once: the labels stay the same from step to step
            check_label_values(y, logits.shape[1])
            check = False
        return one_hot(y, logits)

    with attack_state(unwrap(model), config.attack_mode, fork) as module:
        yield partial(vjp, module), label


def _prepared(
    model: nn.Module, x: Tensor, y: Tensor, config: SPATConfig, validate: bool
) -> tuple[Tensor, Tensor]:
    check_model(model)
    require_type("config", config, SPATConfig)
    return prepare(x, y, config, validate)
