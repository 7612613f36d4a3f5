"""What a training and an evaluation return: accuracies, how sure they are, how they are shown."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from html import escape
from io import BytesIO
from textwrap import fill
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .config import SPATConfig, Threat, TrainConfig

ATTACKED = {"training": "training attack", "pgd": "plain PGD"}
SHARES = ("success", "drift")  # of what the target and the judge read correctly
MEASURES = (*SHARES, "evidence_lost", "rival_gain", "entropy_gain", "l2", "ssim")
EQUAL = "A weaker attack drifts less: compare drift at equal success."
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
        return str(table({"model": self.as_json()}))

    def _repr_html_(self) -> str:  # of notebooks
        return table({"model": self.as_json()}).html()


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained model and the record of its training.

    The history has a dict per epoch: ``epoch``, ``loss``, ``adv_accuracy`` (on attacked training
    batches), ``stall_rate``, ``hole_rate`` (docs/method.md), ``lr``, ``seconds``.
    """

    model: Any  # with its best, averaged or last weights (see train)
    history: list[dict[str, float]]
    config: SPATConfig
    training: TrainConfig
    measured_on: str = "test"  # or "training" if there are no other data
    report: Report | None = None  # on the model
    # On others of its architecture, schedule and seed: "standard" and "PGD-AT", "TRADES" or "MART".
    baselines: dict[str, Report] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """The accuracies of ``report``, empty if there is none."""
        return {} if self.report is None else self.report.metrics

    def _table(self) -> "Table":
        training = "; these are the training data" * (self.measured_on == "training")
        reports = self.baselines | ({self.config.method: self.report} if self.report else {})
        return table({name: each.as_json() for name, each in reports.items()}, training)

    def __str__(self) -> str:
        return str(self._table())

    def _repr_html_(self) -> str:  # of notebooks
        return self._table().html()


def wilson(hits: int, n: int) -> tuple[float, float]:
    """All p with |hits / n - p| <= Z sqrt(p (1 - p) / n) (Wilson 1927, J. Am. Stat. Assoc. 22)."""
    ends, z2 = (hits, n - hits), Z * Z
    low, high = ((k + z2 / 2 - Z * math.sqrt(k * (n - k) / n + z2 / 4)) / (n + z2) for k in ends)
    return low, 1 - high  # exactly 0 and 1 at the ends


def bar(iterable: Any = None, *, progress: bool, **how: Any) -> Any:
    """A progress bar, in a terminal (None: only there) or a notebook."""
    hidden = False if "ipykernel" in sys.modules else None
    return tqdm(iterable, leave=False, disable=hidden if progress else True, **how)


@dataclass(frozen=True)
class Table:
    """Cells, whose first row and column say what is in the others, and a note on all of them."""

    cells: list[list[str]]
    note: str

    def __str__(self) -> str:
        first, *rest = [max(map(len, column)) for column in zip(*self.cells, strict=True)] or [0]
        rows = ([name.ljust(first), *map(str.rjust, row, rest)] for name, *row in self.cells)
        return "\n".join([*map("  ".join, rows), fill(self.note, 80)])

    def html(self) -> str:
        """The same for a page or a notebook, with all text escaped."""
        body = ""
        for down, row in enumerate(self.cells):
            body += "<tr>"
            for across, cell in enumerate(row):
                scope = f'th scope="{"row" if down else "col"}"'
                body += f"<{'td' if (down and across) or not cell else scope}>{escape(cell)}"
        return f"<table>{body}</table><p>{escape(self.note)}</p>"


def table(networks: Mapping[str, dict[str, Any]], note: str = "") -> Table:
    """Of :meth:`Report.as_json` on the same data: a row for each metric, a column for each one."""
    if not networks:
        return Table([], "not evaluated")
    *_, last = networks.values()
    cells, titles, threat = [["", *networks]], {**last["attacks"]}, last["threat"]
    if joint := titles.pop("worst", ""):  # of attacks on what all before them left
        note += f"; worst: {joint}"
    for key in last["metrics"]:
        shares = ((each["metrics"][key], *each["interval"][key]) for each in networks.values())
        row = (f"{100 * p:.1f} [{100 * a:.1f}, {100 * b:.1f}]" for p, a, b in shares)
        cells.append([titles.get(key, key), *row])
    starts = f"{last['restarts']} random start{'s' * (last['restarts'] != 1)}"
    of = f"{last['count']} examples; {threat['norm']} eps {threat['eps']:.4g}, {starts}{note}"
    return Table(cells, f"accuracy in % [95 % interval] on {of}")


def evaluation(network: str, report: Any, measured_on: str, baselines: Any, **how: Any) -> Any:
    """What ``result.json`` holds: a report, how it was made, and those of networks beside."""
    beside = {name: each.as_json() for name, each in baselines.items()}
    facts = {"network": network, "measured_on": measured_on, "baselines": beside}
    return report.as_json() | facts | how


def evaluation_table(facts: dict[str, Any]) -> Table:
    """What :func:`evaluation` made, a column for each network."""
    return table(facts["baselines"] | {facts["network"]: facts}, f"; {facts['measured_on']} data")


def audit_table(facts: dict[str, Any]) -> Table:
    """What ``audit.json`` holds, a column for each attack."""
    attacks = facts["attacks"]
    cells = [["", *(ATTACKED.get(name, name) for name in attacks)]]
    for name in MEASURES:
        values, form = [each[name] for each in attacks.values()], ".1%" if name in SHARES else ".3g"
        if None not in values:  # ssim was not asked for, or the judge read nothing correctly
            cells.append([name.replace("_", " "), *(format(v, form) for v in values)])
    last = [*attacks.values()][-1]
    note = f"judge {facts['judge']} reads {last['known']} of {last['count']} examples correctly"
    return Table(cells, f"{note}; {facts['norm']} eps {facts['eps']:.4g}. {EQUAL}")
