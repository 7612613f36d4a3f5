"""One training step of semantics-preserving adversarial training, example by example."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from .arrays import Array
from .attack import attack, mask_at
from .losses import outer_loss, rectified
from .models import Classifier


def train_step(
    model: Classifier,
    velocity: list[Array],
    x: Array,
    y: npt.NDArray[np.integer] | Sequence[int] | Array,
    starts: Array,
    *,
    lr: float,
    momentum: float,
    loss: str,
    beta: float,
    eps: float,
    step_size: float,
    steps: int,
    norm: str,
    bounds: tuple[float, float],
    smoothing: float,
    guard: bool,
    score: str | None,
    keep: float,
    floor: float,
    offsets: Sequence[int] | None,
    probes: Array | None,
    noise: Array | None = None,
    channels: int,
    rectify: float = 0.0,
    average: Classifier | None = None,
) -> float:
    """Mask, attack and differentiate every example, take one SGD step, return the mean loss.

    With an average of the weights the label is rectified by it.
    x, starts (N, D), y (N,), soft (N, K), probes (n_probes, N, K) or None, noise (N, P) or None.
    With g the mean over the examples of the parameter gradients, v <- momentum v + g and
    w <- w - lr v (torch's SGD: the rate is not in the velocity). `velocity` and the parameters
    change in place.
    """
    count = len(x)
    total = [np.zeros_like(parameter) for parameter in model.parameters]
    losses: list[float] = []
    for n in range(count):
        clean = np.clip(x[n], *bounds)
        label = y[n] if np.ndim(y[n]) else int(y[n])
        mask = mask_at(
            model,
            clean,
            label,
            channels=channels,
            score=score,
            keep=keep,
            floor=floor,
            offsets=offsets,
            probes=None if probes is None else probes[:, n],
            noise=None if noise is None else noise[n],
        )
        x_adv, _ = attack(
            model,
            clean,
            label,
            loss=loss,
            eps=eps,
            step_size=step_size,
            steps=steps,
            norm=norm,
            bounds=bounds,
            smoothing=smoothing,
            guard=guard,
            mask=mask,
            channels=channels,
            start=starts[n],
        )
        if average is not None:
            label = rectified(label, average.logits(clean if loss == "trades" else x_adv), rectify)
        value, gradients = outer_loss(model, clean, x_adv, label, loss=loss, beta=beta)
        losses.append(value)
        for accumulated, gradient in zip(total, gradients, strict=True):
            accumulated += gradient
    for parameter, v, accumulated in zip(model.parameters, velocity, total, strict=True):
        v *= momentum
        v += accumulated / count
        parameter -= lr * v
    return math.fsum(losses) / count
