"""The engine: gradients of a linear classifier by hand, everything else from the core."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import call
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from safetensors.numpy import load, save

from spatlib import DataError, SPATConfig, Threat
from spatlib.core import target as losses
from spatlib.core.attack import adversarial
from spatlib.core.survivors import Attacked, Verdict
from spatlib.core.survivors import survivors as core
from spatlib.engines import by_itself as together  # noqa: F401
from spatlib.errors import require
from spatlib.evaluate import Evaluation
from spatlib.monitor import Monitor

from . import ops

CHANNELS_FIRST = True


@dataclass
class Linear:
    """Logits x W for inputs (N, ...)."""

    weights: Any  # (D, K)

    def __call__(self, x: Any) -> Any:
        return xp.reshape(x, (len(x), -1)) @ self.weights


def build_model(name: str, seed: int, **network: Any) -> Linear:
    """Zero weights, whatever the name."""
    return Linear(xp.zeros((math.prod(network["shape"]), network["classes"])))


def check(model: Any, data: Any, threat: Threat, training: Any) -> None:
    """Raise DataError unless the inputs are numbers in the bounds."""
    x = data[0][:]  # a view on arrays perhaps, which is read by its rows
    if not np.all((x >= threat.bounds[0]) & (x <= threat.bounds[1])):
        raise DataError(f"x must be in {threat.bounds}: scale the inputs")


def fit(
    model: Linear, data: Any, config: SPATConfig, monitor: Monitor, optimizer: Any = None
) -> list[dict[str, float]]:
    """Gradient descent on the outer loss of PGD-AT, by batches.

    It saves no checkpoints, so a resumed run begins anew.
    """
    require(optimizer is None, "optimizer", "be left out for toy", optimizer)
    training = monitor.training
    monitor.begin([])
    rng, rows = np.random.default_rng(training.seed), list[dict[str, float]]()
    for epoch in range(1, training.epochs + 1):
        total = 0.0
        for chosen in np.array_split(rng.permutation(len(data[0])), 20):
            x, y = data[0][chosen].astype(np.float64), data[1][chosen]
            one_hot = xp.eye(10)[y]
            if not monitor.ordinary:
                x = attacked(model, x, y, config, rng).x
            logits = model(x)
            slope = (xp.exp(ops.log_softmax(logits)) - one_hot) / len(x)
            model.weights = model.weights - training.lr * xp.reshape(x, (len(x), -1)).T @ slope
            total += float(xp.sum(losses.outer_loss(ops, "pgd", 0.0, one_hot, None, logits)))
        rows.append({"epoch": epoch, "loss": total / len(data[0])})
        monitor.epoch(rows, model, lambda: weights(model))
        monitor.save(None)  # leaves, if a signal came
        if monitor.stopped(rows):
            break
    return rows


def threads() -> int:
    """One per core."""
    return 0


def weights(model: Linear) -> bytes:
    """All weights, as the content of a safetensors file."""
    return save({"weights": np.ascontiguousarray(model.weights)})


def load_weights(model: Linear, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave; DataError if it is that of another shape."""
    found = load(content).get("weights")
    if found is None or found.shape != model.weights.shape:
        shape = None if found is None else found.shape
        raise DataError(f"{source} must hold weights {model.weights.shape}, got {shape}")
    model.weights = xp.asarray(found)


def logits(model: Linear, x: Any, batch_size: int = 256) -> Any:
    """(N, K), in one batch."""
    return model(np.asarray(x, np.float64))


def vjp(model: Linear, x: Any) -> tuple[Any, Any]:
    """The logits at x, and the map from a cotangent (N, K) to the gradient in x."""
    return differentiated(model, x)


def differentiated(model: Linear, x: Any, *, many: bool = False) -> tuple[Any, Any]:
    """As the core asks for it; here the map can always be called again."""

    def pull(cotangent: Any) -> Any:
        return xp.reshape(cotangent @ model.weights.T, x.shape)

    return model(x), pull


@dataclass
class Draws:
    """What the core draws for a Linf attack without a random mask."""

    rng: Any

    def uniform(self, like: Any, purpose: str) -> Any:
        return xp.asarray(self.rng.uniform(size=like.shape))


def attacked(model: Linear, x: Any, y: Any, config: SPATConfig, rng: Any) -> Any:
    """The training attack of the core."""
    own = partial(differentiated, model), lambda _: xp.eye(10)[y]
    return adversarial(ops, *own, x, config, (None, None), Draws(rng))


def perturb(
    model: Linear, data: Any, config: SPATConfig, count: int, seed: int = 0
) -> Iterator[Any]:
    """The first examples, x', and the mask."""
    x, y = data[0][:count].astype(np.float64), data[1][:count]
    found = attacked(model, x, y, config, np.random.default_rng(seed))
    return iter((x, y, found.x, xp.ones_like(x) if found.mask is None else found.mask))


def survivors(
    model: Linear, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
) -> Iterator[tuple[Any, int, dict[str, Verdict]]]:
    """The labels, and the verdicts under the named attacks, in one batch."""
    known = not evaluation.callables
    require(known, "attacks", "be names of gradient attacks", list(evaluation.callables))
    x, y, threat = data[0][:].astype(np.float64), data[1], evaluation.threat
    starts = evaluation.starts(0, x.shape, ops.CHANNEL_AXIS)
    net, batch = Attacked(ops, partial(vjp, model), model, threat), (x, y, model(x), xp.eye(10)[y])
    yield y, 10, core(net, evaluation, batch, starts, True, call, None)
