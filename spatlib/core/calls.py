"""What both engines offer for a batch: its perturbed examples, its loss and its mask."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from threading import RLock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..config import Mask, SPATConfig
from ..errors import check_range, checked, expect, require, same, warn_of_holes
from .attack import Adversarial, adversarial
from .feasible import Draws
from .mask import Vjp, begin, channel_axis, finish, shared_mask
from .ops import Array
from .target import check_labels, label_rows, outer_loss, rectified, sound_rows

Batch = tuple[Any, Any, Any, SPATConfig]  # model, x, y, config
GIVEN = {"start": (-math.inf, math.inf), "mask": (0.0, 1.0), "weights": (0.0, math.inf)}  # ranges
_locks: Any = WeakKeyDictionary()


def alone(model: Any) -> Any:
    """The lock of a model, as an attack changes its state for a while: other threads wait."""
    return _locks.setdefault(model, RLock())


class Calls(NamedTuple):
    """The public functions of an engine; ``validate`` (or ``check``) reads values on the host."""

    ops: Any  # with functions of batches too, such as prepare
    # Of model, x, config, random source and start: the model set up, the core's vjp and draws.
    attacking: Callable[..., AbstractContextManager[tuple[Vjp, Draws]]]
    forward: Callable[[Any, Array], Array]  # (model, x) -> logits (N, K) for the outer loss
    averaged: Callable[[Any, Array], Array]  # the same in inference mode, without gradient
    bare: Callable[[Any], Any] = lambda model: model  # out of its wrappers, as attacks lock it
    fused: Callable[..., Any] = lambda function: function  # compiled, where the engine is to

    def perturb(self, batch: Batch, start: Any, mask: Any, source: Any, validate: bool) -> Array:
        _, x, _, _ = batch = self._prepared(*batch, validate)
        own = self._given("start", start, x, validate), self._given("mask", mask, x, validate)
        return self.attacked(*batch, own=own, source=source, check=validate).x

    def spat_loss(
        self, batch: Batch, own: Any, reduction: str, source: Any, validate: bool
    ) -> Array:
        """``own`` are the user's x_adv, weights and average."""
        model, x, y, config = batch = self._prepared(*batch, validate)
        x_adv, weights, average = own
        if config.rectify:
            self.ops.check_model(average, "average (for rectify)")
            average = partial(self.averaged, average)
        checked("reduction", reduction, ("mean", "none"))
        like = y if len(y.shape) == 1 else y[:, 0]  # (N,)
        weights = self._given("weights", weights, like, validate)
        if x_adv is None:
            x_adv = self.attacked(*batch, source=source, check=validate).x
        else:
            x_adv = self._given("x_adv", x_adv, x, validate=False)
            x_adv, _ = self.ops.prepare(x_adv, y, config, validate, "x_adv")
        losses, _ = self.outer(model, x, x_adv, y, config, check=validate, average=average)
        if weights is not None:
            losses = losses * self.ops.cast(weights, like=losses)
        return losses if reduction == "none" else self.ops.mean(losses)

    def shared_mask(self, batch: Batch, source: Any, validate: bool) -> Array:
        model, x, y, config = self._prepared(*batch, validate)
        ops, mask = self.ops, config.mask or Mask()
        if not config.masked:  # all ones, as where no class takes part
            state = begin(ops, ops.widen(x), mask.score, channel_axis(ops, x, mask))
            return ops.detach(finish(ops, state, mask.keep, mask.floor))
        with self.attacking(model, x, config, source, None) as (vjp, draws):
            label = self._label(y, config, validate)
            budget, _, holes = shared_mask(ops, x, vjp, label, mask, draws)
        if validate:
            warn_of_holes(float(ops.mean(holes)))
        return ops.detach(budget)

    def attacked(
        self, *batch: Any, own: Any = (None, None), source: Any = None, check: bool = False
    ) -> Adversarial:
        """The attack on a prepared :data:`Batch`; ``own`` are the user's start and mask."""
        (model, x, y, config), ops = batch, self.ops
        label = self._label(y, config, check)
        with self.attacking(model, x, config, source, own[0]) as (vjp, draws):
            found = adversarial(ops, vjp, label, x, config, own, draws, self.fused)
        if check:
            warn_of_holes(float(ops.mean(found.holes)))
        return found._replace(x=ops.detach(found.x))

    def outer(self, *batch: Any, check: bool = False, average: Any = None) -> tuple[Array, Array]:
        """Of model, x, x', y and config the outer loss of each example (N,), logits (N, K) at x'.

        ``average`` gives the logits of averaged weights, which ``config.rectify`` needs.
        """
        model, x, x_adv, y, config = batch
        if config.rectify:  # where the cross-entropy of the loss is taken
            read = average(x if config.loss == "trades" else x_adv)
        with alone(self.bare(model)):
            clean = None if config.loss == "pgd" else self.forward(model, x)
            logits = self.forward(model, x_adv)
        label = sound_rows(self.ops, self._label(y, config, check)(logits), config.loss)
        if config.rectify:
            classes, own = logits.shape[1], read.shape[1]
            what = f"return {classes} logits, as the model does whose weights it averages"
            require(own == classes, "average", what, own)
            label = rectified(self.ops, label, self.ops.cast(read, like=label), config.rectify)
        return outer_loss(self.ops, config.loss, config.beta, label, clean, logits), logits

    def _prepared(self, model: Any, x: Any, y: Any, config: Any, validate: bool) -> Batch:
        self.ops.check_model(model)
        require(isinstance(config, SPATConfig), "config", "be a spatlib.SPATConfig", config)
        return model, *self.ops.prepare(x, y, config, validate), config

    def _given(self, name: str, value: Any, x: Array, validate: bool) -> Array | None:
        """What the user passed, if anything, that broadcasts to x, in its range up to rounding."""
        if value is None:
            return None
        value = self.ops.as_tensor(name, value)
        shape, expected = tuple(value.shape), tuple(x.shape)
        grown = [b if a == 1 else a for a, b in zip(shape, expected, strict=False)]
        fits = len(shape) == len(expected) and same(grown, expected)
        expect(fits, f"{name} must have the shape {expected}, or broadcast to it, got {shape}")
        if validate:
            advice = "clip it, or look at where it comes from"
            check_range(self.ops.extremes(value), GIVEN[name], name, advice)
        return value

    def _label(self, y: Array, config: SPATConfig, check: bool) -> Callable[[Array], Array]:
        """Logits to the labels (N, K), looked at once: they stay the same from step to step."""
        look = cache(partial(check_labels, self.ops, y, loss=config.loss))

        def label(logits: Array) -> Array:
            if check:
                look(logits.shape[1])
            return label_rows(self.ops, y, logits)

        return label
