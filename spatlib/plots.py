"""Pictures of a run; they need Matplotlib (the extra ``plots``)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import BackendError

CURVES = {
    "adv_accuracy": "training, under its attack",
    "val_clean": "validation, clean",
    "val_pgd10": "validation, PGD-10",
    "val_pgd1": "validation, PGD-1",
}


def curves(history: list[dict[str, float]]) -> bytes:
    """Loss and accuracies by epoch, as PNG."""
    figure = _figure(9.0, 3.5)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    loss.plot(epochs, [row["loss"] for row in history])
    loss.set(xlabel="epoch", ylabel="loss")
    for name, label in CURVES.items():
        values = [row.get(name, math.nan) for row in history]
        if not all(map(math.isnan, values)):
            accuracy.plot(epochs, values, label=label)
    accuracy.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    accuracy.legend()
    return _png(figure)


def sheet(examples: dict[str, Any], bounds: tuple[float, float]) -> bytes:
    """Clean image, mask (if there is one), perturbation and perturbed image of each, as PNG.

    Args:
        examples: ``x``, ``mask`` and ``x_adv`` (N, H, W, C) and the labels ``y``, ``clean`` and
            ``adversarial`` (N,): true, and predicted for x and x'.
        bounds: The input range, from black to white.
    """
    count = len(examples["x"])
    masked = bool(np.any(np.asarray(examples["mask"]) < 1))
    columns = 4 if masked else 3
    figure = _figure(1.9 * columns, 1.9 * count)
    lower, upper = bounds
    for row, axes in zip(range(count), figure.subplots(count, columns, squeeze=False), strict=True):
        x, mask, x_adv = (np.asarray(examples[name][row]) for name in ("x", "mask", "x_adv"))
        d = x_adv - x
        largest = max(float(np.abs(d).max()), 1e-12)
        y, clean, adversarial = (int(examples[name][row]) for name in ("y", "clean", "adversarial"))
        pictures = (
            (f"label {y}, predicted {clean}", (x - lower) / (upper - lower)),
            *([("budget per pixel, in eps", mask)] if masked else []),
            (f"perturbation / {largest:.2g}", 0.5 + d / (2 * largest)),
            (f"perturbed, predicted {adversarial}", (x_adv - lower) / (upper - lower)),
        )
        _draw(axes, pictures)
    return _png(figure)


def drift(examples: dict[str, Any], bounds: tuple[float, float]) -> bytes:
    """Image, and what the training attack and PGD made of it, with what the judge reads, as PNG.

    Args:
        examples: Of :func:`spatlib.audit.compare_attacks`, images (N, H, W, C).
        bounds: The input range, from black to white.
    """
    count = len(examples["x"])
    figure, (lower, upper) = _figure(5.8, 1.9 * count), bounds
    for row, axes in zip(range(count), figure.subplots(count, 3, squeeze=False), strict=True):
        pictures = [(f"label {examples['y'][row]}", examples["x"][row])]
        for name in ("training", "pgd"):
            title = f"{name} attack, judged {examples[f'{name} read'][row]}"
            pictures.append((title, examples[f"{name} x_adv"][row]))
        _draw(axes, [(title, (p - lower) / (upper - lower)) for title, p in pictures])
    return _png(figure)


def _draw(axes: Any, pictures: Sequence[tuple[str, Any]]) -> None:
    for panel, (title, picture) in zip(axes, pictures, strict=True):
        grey = picture.shape[-1] != 3
        shown = np.clip(picture[..., 0] if grey else picture, 0, 1)
        panel.imshow(shown, vmin=0, vmax=1, cmap="gray" if grey else None)
        panel.set_title(title, fontsize=8)
        panel.set_axis_off()


def _figure(width: float, height: float) -> Any:
    try:
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError as error:
        raise BackendError(
            f"plots need Matplotlib ({error}): run pip install 'spatlib[plots]'"
        ) from error
    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
