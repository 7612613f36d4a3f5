"""The engine: gradients of a linear classifier by hand, everything else from the core."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from safetensors.numpy import load, save

from spatlib import DataError, Report, SPATConfig, TrainConfig
from spatlib.core import losses, mask, projection, start, step, target
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


def build_model(name: str, seed: int, *, shape: Any, classes: int, mean: Any, std: Any) -> Linear:
    """Zero weights, whatever the name."""
    return Linear(xp.zeros((math.prod(shape), classes)))


def check(data: Any, config: SPATConfig) -> None:
    """Raise DataError unless the inputs are numbers in the bounds."""
    if not np.all((data[0] >= config.bounds[0]) & (data[0] <= config.bounds[1])):
        raise DataError(f"x must be in {tuple(config.bounds)}: scale the inputs")


def fit(
    model: Linear,
    data: Any,
    config: SPATConfig,
    training: TrainConfig,
    label: str,
    monitor: Monitor | None = None,
    *,
    ordinary: bool = False,
) -> list[dict[str, float]]:
    """Gradient descent on the outer loss of PGD-AT, by batches.

    It saves no checkpoints, so a resumed run begins anew.
    """
    monitor = monitor or Monitor(training)
    monitor.checkpoint()
    rng, rows = np.random.default_rng(training.seed), list[dict[str, float]]()
    for epoch in range(1, training.epochs + 1):
        total = 0.0
        for chosen in np.array_split(rng.permutation(len(data[0])), 20):
            x, y = data[0][chosen].astype(np.float64), data[1][chosen]
            one_hot = xp.eye(10)[y]
            if not ordinary:
                x = attack(model, x, one_hot, config, rng)
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


def examples(
    model: Linear, data: Any, config: SPATConfig, *, count: int = 8, seed: int = 0
) -> dict[str, Any]:
    """The first ``count`` images, attacked; those of shape (N, H, W, C) for the pictures."""
    x, y = data[0][:count].astype(np.float64), data[1][:count]
    moved = attack(model, x, xp.eye(10)[y], config, np.random.default_rng(seed))
    budget = budget_of(model, x, config)
    shown = {"x": x, "x_adv": moved, "mask": xp.ones_like(x[:, :1]) if budget is None else budget}
    read = {"clean": x, "adversarial": moved}
    return {
        "y": y,
        **{name: xp.moveaxis(value, 1, -1) for name, value in shown.items()},
        **{name: xp.argmax(model(value), axis=1) for name, value in read.items()},
    }


def budget_of(model: Linear, x: Any, config: SPATConfig) -> Any:
    """The shared mask (N, 1, H, W); None for all ones."""
    if not config.masked:
        return None
    state = mask.begin(ops, x, config.share, 1)
    for column in (model.weights - xp.mean(model.weights, axis=1, keepdims=True)).T:
        grad = xp.broadcast_to(xp.reshape(column, (1, *x.shape[1:])), x.shape)
        state = mask.fold(ops, state, grad, config.share, 1)
    return mask.finish(ops, state, config.keep, config.floor)


def attack(
    model: Linear, x: Any, one_hot: Any, config: SPATConfig, rng: Any, name: str = "pgd"
) -> Any:
    """x', as an engine computes it: mask, start, guarded steps."""
    budget = budget_of(model, x, config)
    lower, upper = projection.feasible_box(ops, x, budget, config.eps, config.bounds)
    noise = start.uniform_in_ball(ops, rng.uniform(size=x.shape), None, config.eps, "Linf")
    d = step.initial(ops, noise, budget, lower, upper, config.eps, "Linf")
    eps, step_size = config.eps, config.step_size
    for _ in range(config.steps):
        log_p = ops.log_softmax(model(x + d))
        q = target.smoothed_target(ops, one_hot, one_hot, log_p, config.smoothing, config.guard)
        rival = ops.argmax_one_hot(xp.where(one_hot > 0, -xp.inf, log_p))
        slope = rival - one_hot if name == "margin" else xp.exp(log_p) - q
        grad = xp.reshape(slope @ model.weights.T, x.shape)
        d = step.step(ops, d, grad, budget, lower, upper, eps=eps, step_size=step_size, norm="Linf")
    return ops.clip(x + d, *config.bounds)


def evaluate(
    model: Linear,
    data: Any,
    config: SPATConfig,
    *,
    attacks: Sequence[Any] = ("pgd", "margin"),
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """Accuracy, clean and under PGD with cross-entropy and the margin, in one batch."""
    evaluation = Evaluation(config, attacks, steps, restarts, seed)
    known = set(evaluation.named.values()) <= {"pgd", "margin"} and not evaluation.callables
    require(known, "attacks", "be 'pgd' or 'margin'", attacks)
    x, y = data[0].astype(np.float64), data[1]
    verdicts = dict.fromkeys(evaluation.keys, xp.argmax(model(x), axis=1) == y)
    for key, name in evaluation.named.items():
        for number in evaluation.seeds:
            rng = np.random.default_rng(number)
            moved = attack(model, x, xp.eye(10)[y], evaluation.threat, rng, name)
            verdicts[key] = verdicts[key] & (xp.argmax(model(moved), axis=1) == y)
    return evaluation.report([xp.stack([y, *verdicts.values()])], classes=10)
