"""The training attack, the mask and the loss in PyTorch: the core over autograd."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig, Threat
from spatlib.core.calls import Calls
from spatlib.core.target import check_labels
from spatlib.errors import classes_of, expect, require

from . import ops
from .graphs import compiled, uncompiled
from .state import attack_state, bare


def vjp(model: nn.Module, x: Tensor, *, many: bool = False) -> tuple[Tensor, Callable[..., Tensor]]:
    """The logits at x, and the map, for one call or ``many``, from cotangents to gradients in x."""
    leaf = x.detach().requires_grad_()
    # A compiled forward pass can be gone back through once only.
    with uncompiled(many):
        logits = ops.logits_of(model, leaf)
    what = "model must return logits that autograd can follow to its input"
    advice = f"{what}: remove no_grad, detach or item from its forward"
    expect(logits.requires_grad, advice)

    def pull(cotangent: Tensor) -> Tensor:
        how = {"retain_graph": many, "allow_unused": True}
        (found,) = torch.autograd.grad(logits, leaf, cotangent, **how)
        expect(found is not None, advice)  # the logits may depend on weights alone
        return found

    return logits.detach(), pull


class Draws(NamedTuple):
    """See :class:`spatlib.core.feasible.Draws`; from a generator, or the global one for None.

    The batch may be the rows of one of several processes, in a larger one that is drawn for.
    """

    generator: torch.Generator | None
    first: int = 0
    total: int | None = None

    def uniform(self, like: Tensor, purpose: str) -> Tensor:
        return self._empty(like)[0].uniform_(generator=self.generator)[self._rows(like)]

    def normal(self, like: Tensor, purpose: str) -> Tensor:
        return self._empty(like)[0].normal_(generator=self.generator)[self._rows(like)]

    def signs(self, label: Tensor, count: int) -> Tensor:
        bits = self._empty(label, count).random_(2, generator=self.generator)
        return 2 * bits[:, self._rows(label)] - 1

    def versions(self, like: Tensor, below: int) -> Tensor:
        """(N, 1) integers in 0..below - 1."""
        shape, device = (self.total or len(like), 1), like.device
        drawn = torch.randint(below, shape, generator=self.generator, device=device)
        return drawn[self._rows(like)]

    def classes(self, label: Tensor, count: int) -> Tensor:
        classes, device = label.shape[1], label.device
        order = torch.randperm(classes - 1, generator=self.generator, device=device)
        offsets = torch.cat([order.new_zeros(1), 1 + order[: count - 1]])
        columns = (torch.arange(classes, device=device) - offsets[:, None]) % classes
        return label[:, columns].movedim(1, 0)

    def _empty(self, like: Tensor, count: int = 1) -> Tensor:
        return like.new_empty(count, self.total or len(like), *like.shape[1:])

    def _rows(self, like: Tensor) -> slice:
        return slice(self.first, self.first + len(like))


@contextmanager
def _attacking(
    model: nn.Module, x: Tensor, config: SPATConfig, source: Any, start: Any
) -> Iterator[tuple[Callable[..., Any], Draws]]:
    # With a generator or a start the global generators stay as they are, dropout or not.
    ours = isinstance(source, Draws)  # of the loop, which seeds the global ones at each step
    fork = None if ours or (source is None and start is None) else x.device
    if fork is not None:
        source = source or torch.Generator(x.device).manual_seed(0)
    casting = torch.is_autocast_enabled(x.device.type)
    with attack_state(model, config.attack_mode, fork, casting=casting) as module:
        yield partial(vjp, module), source if ours else Draws(source)


def averaged(network: nn.Module, x: Tensor, own: dict[str, Tensor] | None = None) -> Tensor:
    """Its logits in inference mode, without gradient; ``own`` in the place of its parameters."""
    devices = {str(p.device) for p in network.parameters()} - {str(x.device)}
    require(not devices, "average", f"be on the device of x, {x.device} (move it there)", devices)
    with attack_state(network) as module:  # where no parameter asks for a gradient
        read: Any = partial(torch.func.functional_call, bare(module), own or {})
        return ops.logits_of(read, x)


_calls = Calls(ops, _attacking, ops.logits_of, averaged, bare)
attacked, outer = _calls.attacked, _calls.outer


def calls_of(*, compile: bool) -> Calls:
    """The calls; with ``compile`` each function of an attack's step around the network, once."""
    return _calls._replace(fused=cache(partial(compiled, dynamic=None))) if compile else _calls


def looked_at(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, classes: int = 0
) -> tuple[Tensor, Tensor, int]:
    """The batch, clipped to the bounds, and the number of classes (if 0 from a call)."""
    x, y = ops.prepare(x, y, threat, validate=True)
    if not classes:  # once, so not worth compiling
        with attack_state(model, fork=x.device) as module, uncompiled():
            logits = torch.no_grad()(ops.logits_of)(module, x)
        classes = classes_of(logits.numpy(force=True), threat.check_logits)
    check_labels(ops, y, classes, getattr(threat, "loss", ""))
    return x, y, classes


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
    """The training-time adversarial examples x' of a batch, detached, in the form of x.

    x' - x is in the feasible set, and exactly 0 where the mask is 0. Raises ConfigError, DataError.

    Args:
        model: Gives logits (N, K) for inputs (N, ...). It may be frozen, in any mode, compiled,
            under autocast, in no_grad or inference_mode; its state comes back as it was.
        x: Floats in ``config.bounds``, (N, D), (N, C, L) or (N, C, H, W) in any memory format.
        y: Class indices (N,), or rows (N, K) of probabilities, b in docs/method.md for ``pgd``: the
            class of the largest serves guard and mask. Rows for ``mart`` have to be one-hot.
        config: Threat model and method.
        start: First perturbation, shaped like x, in its units, set to 0 where the mask is 0 and
            projected; default: drawn as ``config.random_start`` says.
        mask: Budget per pixel in [0, 1], broadcastable to x; default :func:`shared_mask`.
        generator: Source of start and mask, on x's device; default the global one, which stays
            untouched if there is a generator or a start (a mask is then always drawn alike).
        validate: Check values too, not just shapes and dtypes (reads them on the host).
    """
    return _calls.perturb((model, x, y, config), start, mask, generator, validate)  # type: ignore[no-any-return]


def spat_loss(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    config: SPATConfig,
    *,
    x_adv: Tensor | None = None,
    weights: Tensor | None = None,
    average: nn.Module | None = None,
    reduction: str = "mean",
    generator: torch.Generator | None = None,
    validate: bool = True,
) -> Tensor:
    """The loss to call ``backward()`` on in a loop of your own: the mean of the batch, a scalar.

    Of the batch perturbed by :func:`perturb`, whose arguments and errors it shares, or of ``x_adv``
    it evaluates :func:`spatlib.core.target.outer_loss` with the model as it stands: in one forward
    pass for ``pgd``, in two for ``trades`` and ``mart``, clean first (as BatchNorm sees them).
    With ``weights`` (N,), not negative, it is the mean over the N examples of weight times loss;
    with ``reduction="none"`` there is no mean, but a value for each example (N,). ``average`` is
    the network whose softmax ``config.rectify`` mixes into the label, such as swa_utils'
    AveragedModel: in inference mode, without gradient, its state comes back as it was.
    """
    batch, own = (model, x, y, config), (x_adv, weights, average)
    return _calls.spat_loss(batch, own, reduction, generator, validate)  # type: ignore[no-any-return]


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

    It has one channel: (N, D), (N, 1, L) or (N, 1, H, W). Our reading of arXiv:2009.10978; the
    formulas are in :mod:`spatlib.core.mask`. Arguments and errors are those of :func:`perturb`;
    labels matter with ``classes`` only. Costs K - 1 backward passes (``classes``, ``probes`` for
    ``rms``, none for ``random``); all ones, without a pass, unless ``config.masked``.
    """
    return _calls.shared_mask((model, x, y, config), generator, validate)  # type: ignore[no-any-return]
