"""The accuracies of a model under attack: what is reported, how sure it is, and how it prints."""

import math
from dataclasses import asdict, dataclass, field, fields
from io import BytesIO
from typing import Any

import numpy as np

from .config import Threat

Z = 1.959963984540054  # 97.5 % of a standard normal variable are below it


@dataclass(frozen=True, kw_only=True)
class Report:
    """Accuracies of one model, in [0, 1]: ``clean``, ``pgd20``, ... and ``worst``.

    ``worst`` is the share that is correct under all attacks; :func:`spatlib.evaluate` says more.
    """

    metrics: dict[str, float]
    count: int  # all examples
    threat: Threat  # eps, norm and bounds of the attacks
    restarts: int = 1  # of each named attack, from random starts
    per_class: dict[str, list[float]] = field(default_factory=dict)  # NaN where there is no example
    attacks: dict[str, str] = field(default_factory=dict)  # the named in print; others as their key
    broken: float = 0.0  # share with logits (they count as wrong) or gradients seen not finite
    # Not in JSON: by metric booleans (N,), True where an example is correct; by attack, if kept,
    # (N, ...) the first x' that is not (the input, where that is not), else the last one tried.
    outcomes: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    x_adv: dict[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each metric (:func:`wilson`), as examples are a random draw."""
        return {name: wilson(round(p * self.count), self.count) for name, p in self.metrics.items()}

    def as_json(self) -> dict[str, Any]:
        """As plain values, None for NaN, with the intervals."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.compare}
        own = {k: [None if p != p else p for p in row] for k, row in self.per_class.items()}
        return plain | {"threat": asdict(self.threat), "per_class": own, "interval": self.interval}

    def as_npz(self) -> bytes:
        """The content of a .npz file: ``outcomes_pgd20`` and so on, ``x_adv_pgd20`` if kept."""
        kinds = {"outcomes": self.outcomes, "x_adv": self.x_adv}
        arrays: Any = {f"{kind}_{key}": v for kind, of in kinds.items() for key, v in of.items()}
        np.savez(file := BytesIO(), **arrays)
        return file.getvalue()

    def __str__(self) -> str:
        return table({"model": self}, self)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """All p with |hits / n - p| <= Z sqrt(p (1 - p) / n) (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    ends, z2 = (hits, n - hits), Z * Z
    low, high = ((k + z2 / 2 - Z * math.sqrt(k * (n - k) / n + z2 / 4)) / (n + z2) for k in ends)
    return low, 1 - high  # exactly 0 and 1 at the ends


def table(rows: dict[str, Report], shared: Report) -> str:
    """Reports on the same data and threat model as aligned text, one row each."""
    grid = [["", *(shared.attacks.get(key, key) for key in shared.metrics)]]
    for name, report in rows.items():
        shares = ((report.metrics[key], *report.interval[key]) for key in shared.metrics)
        cells = (f"{100 * p:.1f} % [{100 * a:.1f}, {100 * b:.1f}]" for p, a, b in shares)
        grid.append([name, *cells])
    first, *widths = (max(map(len, column)) for column in zip(*grid, strict=True))
    text = ["  ".join([name.ljust(first), *map(str.rjust, row, widths)]) for name, *row in grid]
    starts = f"{shared.restarts} random start{'s' * (shared.restarts != 1)}"
    threat = f"{shared.threat.norm} eps {shared.threat.eps:.4g}"
    note = f"accuracy [95 % interval] on {shared.count} examples; attacks: {threat}, {starts}"
    return "\n".join([*text, note])
