"""Pictures of a run, as PNG; they need Matplotlib."""

import io
from typing import Any

import numpy as np

from .engines import load_extra

CURVES = {
    "adv_accuracy": "training, under its attack",
    "val_clean": "validation, clean",
    "val_pgd10": "validation, PGD-10",
    "val_pgd1": "validation, PGD-1",
}


def curves(history: list[dict[str, float]]) -> bytes:
    """Loss and accuracies by epoch."""
    figure = _figure(9.0, 3.5)
    loss, accuracy = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    loss.plot(epochs, [row["loss"] for row in history])
    loss.set(xlabel="epoch", ylabel="loss")
    for name, label in CURVES.items():
        values = [row.get(name, np.nan) for row in history]
        if not np.isnan(values).all():
            accuracy.plot(epochs, values, label=label)
    accuracy.set(xlabel="epoch", ylabel="accuracy", ylim=(0, 1))
    accuracy.legend()
    return _png(figure)


def sheet(examples: dict[str, Any], bounds: tuple[float, float]) -> bytes:
    """A row for each of :func:`spatlib.evaluate.attacked_examples`; ``bounds``: black and white."""
    d, lower, width = examples["x_adv"] - examples["x"], bounds[0], bounds[1] - bounds[0]
    size = np.maximum(np.abs(d).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    columns = {"label {y}, predicted {clean}": (examples["x"] - lower) / width}
    if np.any(examples["mask"] < 1):
        columns["budget per pixel, in eps"] = examples["mask"]
    columns["perturbation / {size:.2g}"] = 0.5 + d / (2 * size)
    columns["perturbed, predicted {adversarial}"] = (examples["x_adv"] - lower) / width
    return _grid(columns, examples | {"size": size.ravel()})


def drift(examples: dict[str, Any], bounds: tuple[float, float]) -> bytes:
    """A row for each of :func:`spatlib.audit.compare_attacks`; ``bounds``: black and white."""
    shown = {"label {y}": "x", "training attack, judged {training read}": "training x_adv"}
    shown["pgd attack, judged {pgd read}"] = "pgd x_adv"
    width = bounds[1] - bounds[0]
    return _grid({title: (examples[x] - bounds[0]) / width for title, x in shown.items()}, examples)


def _grid(columns: dict[str, np.ndarray], facts: dict[str, Any]) -> bytes:
    """A row per example of images in [0, 1], by titles that name facts (N,)."""
    count, width = len(facts["y"]), len(columns)
    figure = _figure(1.9 * width, 1.9 * count)
    for row, axes in enumerate(figure.subplots(count, width, squeeze=False)):
        values = {name: column[row] for name, column in facts.items()}
        for panel, (title, images) in zip(axes, columns.items(), strict=True):
            image = images[row] if images.shape[-1] == 3 else images[row, ..., 0]
            panel.imshow(np.clip(image, 0, 1), cmap="gray", vmin=0, vmax=1)
            panel.set_title(title.format(**values), fontsize=8)
            panel.set_axis_off()
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    """Not of pyplot: no window, no global state."""
    figure = load_extra("matplotlib.figure", "matplotlib").Figure
    return figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    figure.savefig(file := io.BytesIO(), format="png", dpi=110)
    return file.getvalue()
