"""What training and evaluation return."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .config import SPATConfig, TrainConfig

LABELS = {"clean": "clean", "pgd20": "PGD-20", "margin20": "margin PGD-20 (CW)"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """Accuracies of one model.

    Attributes:
        metrics: Accuracy in [0, 1] on clean inputs (``clean``) and under each attack (``pgd20``,
            ``margin20``): the share of examples that are classified correctly clean, at the
            start and at the end of every restart of that attack.
        count: Number of examples.
        config: The threat model: eps, norm, bounds (its mask, smoothing and guard play no part).
        restarts: Random restarts of each attack.
    """

    metrics: dict[str, float]
    count: int
    config: SPATConfig
    restarts: int = 1

    def __str__(self) -> str:
        return table({"model": self}, self)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained model and the record of its training.

    Attributes:
        model: The trained model, with the weights of the last step.
        history: One dict per epoch: ``epoch``, ``loss``, ``adv_accuracy`` (on the training
            batches under their attack), ``stall_rate``, ``lr``, ``seconds``.
        metrics: Accuracies in [0, 1] of ``model`` (keys as in :class:`Report`) on the test data,
            or on the training data if there is no other: see ``measured_on``.
        measured_on: ``"test"`` or ``"training"``.
        config, training: The settings used.
        report, baseline: The reports on ``model`` and, if asked for, on an ordinarily trained
            network of the same architecture, schedule and seed.
    """

    model: Any
    history: list[dict[str, float]]
    config: SPATConfig
    training: TrainConfig
    measured_on: str = "test"
    report: Report | None = None
    baseline: Report | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = {"standard": self.baseline, "SPAT": self.report}
        reports = {name: report for name, report in rows.items() if report is not None}
        return table(reports, self.report) if self.report is not None else "not evaluated"


def table(rows: dict[str, Report], shared: Report) -> str:
    """Reports on the same data and threat model as aligned text, one row each."""
    keys = list(shared.metrics)
    head = ["", *(LABELS.get(key, key) for key in keys)]
    lines = [[name, *(f"{100 * r.metrics[key]:.1f} %" for key in keys)] for name, r in rows.items()]
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    text = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                  for i, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in [head, *lines]
    ]  # fmt: skip
    config = shared.config
    note = (f"accuracy on {shared.count} examples; attacks: {config.norm} eps {config.eps:.4g}, "
            f"{shared.restarts} random start{'s' if shared.restarts > 1 else ''}")  # fmt: skip
    return "\n".join([*text, note])
