"""What training and evaluation return."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .config import SPATConfig, Threat
from .train_config import TrainConfig

Z = 1.959963984540054  # 97.5 % of a standard normal variable are below it


@dataclass(frozen=True, kw_only=True)
class Report:
    """Accuracies of one model.

    Attributes:
        metrics: Accuracy in [0, 1] on clean inputs (``clean``) and under each attack (``pgd20``,
            ``margin20``, ...): the share of examples that are classified correctly clean and on
            everything that this attack made of them, as :func:`spatlib.evaluate` says.
        count: Number of examples.
        threat: eps, norm and bounds of the attacks.
        restarts: Random restarts of each named attack.
        per_class: The same for the examples of each class, NaN where there are none.
        attacks: What the named attacks are called in print; others go by their key.
    """

    metrics: dict[str, float]
    count: int
    threat: Threat
    restarts: int = 1
    per_class: dict[str, list[float]] = field(default_factory=dict)
    attacks: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        verdicts: dict[str, np.ndarray],
        labels: np.ndarray,
        classes: int,
        threat: Threat,
        attacks: dict[str, str],
        restarts: int = 1,
    ) -> Report:
        """From labels (n,) and, for ``clean`` and each attack, boolean verdicts (n,).

        A verdict is True where the prediction is correct.
        """
        of_class = [labels == k for k in range(classes)]
        per_class = {
            name: [float(right[own].mean()) if own.any() else math.nan for own in of_class]
            for name, right in verdicts.items()
        }
        return cls(
            metrics={name: float(right.mean()) for name, right in verdicts.items()},
            count=len(labels),
            threat=Threat(eps=threat.eps, norm=threat.norm, bounds=threat.bounds),
            restarts=restarts,
            per_class=per_class,
            attacks=attacks,
        )

    def as_json(self) -> dict[str, Any]:
        """As plain values, with the intervals; see :meth:`from_json`."""
        per_class = {
            name: [None if math.isnan(p) else p for p in values]
            for name, values in self.per_class.items()
        }
        return asdict(self) | {"per_class": per_class, "interval": self.interval}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Report:
        """The report with these values of :meth:`as_json`."""
        known = {name: values[name] for name in cls.__dataclass_fields__}
        per_class = {
            name: [math.nan if p is None else p for p in shares]
            for name, shares in values["per_class"].items()
        }
        return cls(**known | {"per_class": per_class, "threat": Threat(**values["threat"])})

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each metric (:func:`wilson`), as examples are a random draw."""
        return {name: wilson(round(p * self.count), self.count) for name, p in self.metrics.items()}

    def __str__(self) -> str:
        return table({"model": self}, self)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained model and the record of its training.

    Attributes:
        model: The trained model, with its best, averaged or last weights (:func:`spatlib.train`).
        history: One dict per epoch: ``epoch``, ``loss``, ``adv_accuracy`` (on the training
            batches under their attack), ``stall_rate``, ``lr``, ``seconds``.
        config, training: The settings used.
        measured_on: ``"test"``, or ``"training"`` if there are no other data.
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

    @property
    def metrics(self) -> dict[str, float]:
        """The accuracies of ``report``, empty if there is none."""
        return {} if self.report is None else self.report.metrics

    def __str__(self) -> str:
        if self.report is None:
            return "not evaluated"
        rows = {"standard": self.baseline, "SPAT": self.report}
        text = table({name: row for name, row in rows.items() if row is not None}, self.report)
        return text if self.measured_on == "test" else f"{text}; these are the training data"


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of a share k / n (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    All p in [0, 1] with |k / n - p| <= z sqrt(p (1 - p) / n), z = 1.96 the normal quantile:
    (k + z^2 / 2 -+ z sqrt(k (n - k) / n + z^2 / 4)) / (n + z^2).
    """

    def low(k: int) -> float:
        return (k + Z * Z / 2 - Z * math.sqrt(k * (n - k) / n + Z * Z / 4)) / (n + Z * Z)

    return low(hits), 1 - low(n - hits)  # exactly 0 and 1 at the ends


def table(rows: dict[str, Report], shared: Report) -> str:
    """Reports on the same data and threat model as aligned text, one row each."""
    grid = [["", *(shared.attacks.get(key, key) for key in shared.metrics)]]
    for name, report in rows.items():
        shares = ((report.metrics[key], *report.interval[key]) for key in shared.metrics)
        cells = (f"{100 * p:.1f} % [{100 * a:.1f}, {100 * b:.1f}]" for p, a, b in shares)
        grid.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    text = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in grid
    ]
    starts = f"{shared.restarts} random start{'s' * (shared.restarts != 1)}"
    note = (
        f"accuracy [95 % interval] on {shared.count} examples; attacks: "
        f"{shared.threat.norm} eps {shared.threat.eps:.4g}, {starts}"
    )
    return "\n".join([*text, note])
