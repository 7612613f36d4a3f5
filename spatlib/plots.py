"""Pictures of a run, as PNG; they need Matplotlib."""

import io
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np

from .config import SPATConfig
from .engines import load_extra
from .report import EQUAL

ORANGE, BLUE, SKY = "#D55E00", "#0072B2", "#56B4E9"  # all can tell them apart (Okabe and Ito 2008)
CURVES = {
    "adv_accuracy": ("training, under its attack", ORANGE, "--"),
    "val_clean": ("validation, clean", "black", "-"),
    "val_pgd10": ("validation, PGD-10", BLUE, "-"),
    "val_pgd1": ("validation, PGD-1", SKY, ":"),
}
SHEET = """In a frame: the perturbed input fools the network, which read the label before and now \
reads another class. In the perturbation grey is zero, black and white are the ends of the range \
below it."""
DRIFT = f"""What a judge, a network that was not attacked, reads before and after, and how sure it \
is. In a frame: no longer the label; shown are the surest of these. Success is how often an attack \
fools the network, drift how often it moves the judge, where they were right. {EQUAL}"""


def curves(history: list[dict[str, float]], config: SPATConfig, best: int | None) -> bytes:
    """Loss and accuracies by epoch; ``best`` is the one whose weights are kept, if there is one."""
    figure = _figure(7.5, 3.4)
    loss, accuracy = figure.subplots(1, 2)
    loss.set_title(f"training loss ({config.loss.upper()})", fontsize=8)
    accuracy.set_title(f"accuracy ({config.norm} eps {config.eps:.4g})", fontsize=8)
    accuracy.set_ylim(0, 1)
    lines = {"loss": (None, ORANGE, "--")} | CURVES
    for name, (label, color, style) in lines.items():
        values, axes = [row.get(name, np.nan) for row in history], accuracy if label else loss
        if not np.isnan(values).all():
            how = {"color": color, "linestyle": style, "marker": ".", "label": label}
            axes.plot([row["epoch"] for row in history], values, **how)
    for axes in (loss, accuracy):
        axes.set_xlabel("epoch", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if best is not None:
            label = f"epoch {best}, the best in validation: its weights are kept"
            axes.axvline(best, color="grey", linestyle="-.", label=label)
    place = {"loc": "outside lower center", "ncols": 2, "fontsize": 8}
    figure.legend(*accuracy.get_legend_handles_labels(), **place)
    return _png(figure)


def sheet(examples: dict[str, Any], bounds: tuple[float, float], names: Sequence[str]) -> bytes:
    """A row for each of :func:`spatlib.evaluate.attacked_examples`; ``names``: of the classes."""
    x, x_adv, mask = (examples[key] for key in ("x", "x_adv", "mask"))
    read = [examples[key] for key in ("y", "clean", "adversarial")]
    y, before, after = (_named(names, classes) for classes in read)
    fooled = (read[0] == read[1]) & (read[1] != read[2])
    size = np.maximum(np.abs(x_adv - x).max(axis=(1, 2, 3), keepdims=True), 1e-12)
    notes = [f"label: {k}\nread as: {z}" for k, z in zip(y, before, strict=True)]
    columns: list[Any] = [("input", _shades(x, bounds), notes, None)]
    if np.any(mask < 1):
        columns += [("budget of each pixel\n(black 0, white eps)", mask, None, None)]
    notes = [f"{-each:.2g} to {each:.2g}" for each in size.flat]
    columns += [("perturbation\n(grey is zero)", 0.5 + (x_adv - x) / (2 * size), notes, None)]
    notes = [f"read as: {w}" + "\nfooled" * int(f) for w, f in zip(after, fooled, strict=True)]
    return _grid([*columns, ("perturbed input", _shades(x_adv, bounds), notes, fooled)], SHEET)


def drift(
    y: np.ndarray, readings: Sequence[Any], bounds: tuple[float, float], names: Sequence[str]
) -> bytes:
    """A row for each picture of :func:`spatlib.audit.compare_attacks`."""
    columns, labels = list[Any](), _named(names, y)
    for head, x, read, sure in readings:
        each = zip(labels, _named(names, read), sure, strict=True)
        notes = [f"label: {k}\njudge: {z} ({p:.0%})" for k, z, p in each]
        columns.append((head, _shades(x, bounds), notes, read != y))
    return _grid(columns, DRIFT)


def _named(names: Sequence[str], classes: np.ndarray) -> list[str]:
    """The names of these classes, or their numbers where there are none."""
    known = dict(enumerate(names))
    return [f"{known.get(int(k), k)!s:.18}" for k in classes]


def _shades(x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    return (x - bounds[0]) / (bounds[1] - bounds[0])


def _grid(columns: list[Any], caption: str) -> bytes:
    """Columns: head, images in [0, 1], notes below them or None, who is in a frame or None."""
    count, width = len(columns[0][1]), len(columns)
    figure = _figure(1.8 * width, 1.2 + 1.9 * count)
    figure.suptitle(fill(caption, 30 * width), fontsize=8, x=0.01, ha="left")
    for axes, (head, images, notes, framed) in zip(
        figure.subplots(count, width, squeeze=False).T, columns, strict=True
    ):
        axes[0].set_title(head + "\n(channel 1)" * (images.shape[-1] not in (1, 3)), fontsize=8)
        for row, panel in enumerate(axes):
            image = images[row] if images.shape[-1] == 3 else images[row, ..., 0]
            panel.imshow(np.clip(image, 0, 1).astype(float), cmap="gray", vmin=0, vmax=1)
            panel.set(xticks=[], yticks=[])
            if notes is not None:
                panel.set_xlabel(notes[row], fontsize=8, parse_math=False)
            if framed is not None and framed[row]:
                panel.spines[:].set(color=ORANGE, linewidth=3)
    return _png(figure)


def _figure(width: float, height: float) -> Any:
    """Not of pyplot: no window, no global state."""
    figure = load_extra("matplotlib.figure", "matplotlib").Figure
    return figure(figsize=(width, height), layout="constrained")


def _png(figure: Any) -> bytes:
    figure.savefig(file := io.BytesIO(), format="png", dpi=110)
    return file.getvalue()
