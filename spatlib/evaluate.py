"""Measure a classifier under attack: what is run, once for all engines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from . import autoattack
from .config import SPATConfig, Threat, plain_pgd
from .core.target import TARGETS
from .data import as_dataset, is_pair
from .engines import Engine, engine_of
from .errors import ConfigError, DataError, require_integer, require_type
from .recipes import Recipe, find_recipe

TITLES = {
    "pgd": "PGD-{steps}",
    "margin": "margin PGD-{steps} (CW)",
    "targeted": "targeted margin PGD-{steps} ({targets})",
    "apgd-ce": "APGD-CE-{steps}",
    "apgd-t": "targeted APGD-DLR-{steps} ({targets})",
    "apgd": "APGD-{steps} (CE and targeted DLR)",
}
ORDERS = {"Linf": math.inf, "L2": 2, "L1": 1}
ATTACKS = ("pgd", "margin")
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


def evaluate(
    model: Any,
    data: Any = None,
    threat: Threat | None = None,
    *,
    recipe: str | Recipe | None = None,
    attacks: Sequence[Any] = ATTACKS,
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """Accuracy, clean and under each attack.

    The attacks use the full eps and hard labels, never the mask, the smoothing or the guard. An
    example counts as robust only if it is classified correctly clean, at the start and at the
    end of every run (of APGD: at every point on its way), so no robust accuracy exceeds the clean
    one. All named attacks begin at the same random starts, so none changes the figures of another.

    Args:
        model: A torch.nn.Module, a keras.Model, or a model of a package that registered an
            engine; gives logits (N, K). It is moved to ``device``, otherwise left as it was.
        data: As for :func:`spatlib.train`; the test part if there is one. Default: the recipe's.
        threat: eps, norm and bounds (a SPATConfig is one); default: those of the recipe.
        recipe: As for :func:`spatlib.train`.
        attacks: ``"pgd"``: PGD with cross-entropy (metric ``pgd20``). ``"margin"``: with max over
            k != y of z_k - z_y (``margin20``; Carlini & Wagner 2017). ``"targeted"``: with
            z_t - z_y, one run for each t of the min(9, K - 1) classes with the highest clean
            logits but the label's (``targeted20``; after Croce & Hein 2020, arXiv:2003.01690).
            ``"apgd-ce"``, ``"apgd-t"``: their Auto-PGD, which adapts its step size
            (:mod:`spatlib.core.apgd`), with cross-entropy, and with the targeted difference of
            logits ratio towards each of the same classes; ``"apgd"``: both. Linf and L2 only.
            ``"autoattack"``: ART's, for images, and slow (:mod:`spatlib.autoattack`).
            Callables ``attack(model, x, y) -> x_adv`` of the framework's tensors, y integers
            (N,): called once per batch; the metric has their ``__name__`` or class name.
        steps: Of the named attacks, 2.5 eps / steps each (AutoAttack takes 100 of Auto-PGD's).
        restarts: Random restarts of each named attack.
        batch_size: Examples per pass (ignored for data that comes in batches); the random starts
            of a seed differ from one size to another.
        seed: Fixes the random starts (a callable has to seed itself).
        device: Where to evaluate; default: where the model is.

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it (a
            DataError too if a callable leaves bounds or ball by more than rounding).
    """
    require_integer("batch_size", batch_size, 1)
    chosen = find_recipe(recipe, data)
    threat, engine = threat_of(threat, chosen, "threat"), engine_of(model)
    data = chosen.data if data is None and chosen else data
    dataset = as_dataset(data, channels_first=engine.CHANNELS_FIRST)
    evaluation = Evaluation(threat, attacks, steps, restarts, seed)
    return measure(engine, model, dataset.measured, evaluation, batch_size, device)


def measure(
    engine: Engine,
    model: Any,
    data: Any,
    evaluation: Evaluation,
    batch_size: int = 256,
    device: str | None = None,
) -> Report:
    """The report of an evaluation by its engine."""
    return evaluation.report(*engine.survivors(model, data, evaluation, batch_size, device))


def attacked_examples(
    engine: Engine, model: Any, data: Any, config: SPATConfig, count: int = 8, seed: int = 0
) -> dict[str, Any]:
    """The first examples of ``data`` under the training attack, as :mod:`spatlib.plots` draws them.

    Returns:
        Arrays with channels last: ``x``, ``x_adv`` and ``mask``; the labels ``y``, and those
        predicted for x and x', ``clean`` and ``adversarial`` (N,).
    """
    x, y = data if is_pair(data) else next(iter(data))
    x, y = x[:count], y[:count]
    x_adv, mask = engine.perturb(model, x, y, config, seed)
    x = np.asarray(x.cpu() if hasattr(x, "cpu") else x)
    if x.dtype == np.uint8:
        lower, upper = config.bounds
        x = (lower + (upper - lower) * (x / 255)).astype(x_adv.dtype)
    mask = np.ones_like(x) if mask is None else mask
    labels = np.asarray(y.cpu() if hasattr(y, "cpu") else y).reshape(len(x), -1)
    shown = {"x": x, "x_adv": x_adv, "mask": mask}
    if engine.CHANNELS_FIRST:
        shown = {name: np.moveaxis(value, 1, -1) for name, value in shown.items()}
    read = {"clean": x, "adversarial": x_adv}
    read = {name: engine.logits(model, value).argmax(axis=1) for name, value in read.items()}
    one_hot = labels.shape[1] > 1
    return {**shown, **read, "y": labels.argmax(axis=1) if one_hot else labels[:, 0]}


def threat_of(threat: Any, recipe: Recipe | None, name: str) -> Threat:
    """The threat model asked for, else the recipe's; ConfigError if there is neither."""
    if threat is not None:
        require_type(name, threat, Threat)
        return threat  # type: ignore[no-any-return]
    if recipe is None:
        raise ConfigError(
            f"{name} must be given for data of your own: state what an attack may do, e.g. "
            'spatlib.SPATConfig(eps=8 / 255, norm="Linf") for images in [0, 1]'
        )
    return recipe.config


class Evaluation:
    """What an engine runs for :func:`evaluate`: ``named`` attacks and ``callables`` by metric.

    ``threat`` is what the attacks may do, ``seeds`` one number per restart (the first ones are the
    same for any number of restarts), ``keys`` all metrics in order. Raises ConfigError for attacks
    that are neither known names nor callables, or share a name.
    """

    def __init__(
        self,
        threat: Threat,
        attacks: Sequence[Any] = ATTACKS,
        steps: int = 20,
        restarts: int = 1,
        seed: int = 0,
    ) -> None:
        seed, restarts = require_integer("seed", seed, 0), require_integer("restarts", restarts, 1)
        self.threat, self.seeds = (
            plain_pgd(threat, steps),
            [seed + 7919 * r for r in range(restarts)],
        )
        self.keys, self.named, self.callables = ["clean"], dict[str, Any](), dict[str, Any]()
        for item in attacks if isinstance(attacks, tuple | list) and attacks else (attacks,):
            if isinstance(item, str) and item == "autoattack" and threat.norm != "L1":
                item = partial(autoattack.attack, self.threat)
                item.__name__ = "autoattack"  # type: ignore[attr-defined]
            named = isinstance(item, str) and item in TITLES
            key = f"{item}{steps}" if named else getattr(item, "__name__", type(item).__name__)
            if key in self.keys or not (named or callable(item)):
                raise ConfigError(
                    f"attacks must be a tuple of {', '.join(map(repr, TITLES))} or callables "
                    "attack(model, x, y), each of another name (its __name__), "
                    f"got {item!r}{' again' * (key in self.keys)}"
                )
            if named and item.startswith("apgd") and threat.norm == "L1":
                raise ConfigError(
                    f"attacks has {item!r}, whose step sizes are those for Linf and L2: "
                    "in L1 use 'pgd', 'margin' or 'targeted'"
                )
            self.keys.append(key)
            (self.named if named else self.callables)[key] = item

    def report(self, batches: Sequence[np.ndarray], classes: int) -> Report:
        """Of one integer array (1 + len(keys), n) per batch: the labels, then the verdicts."""
        labels, *verdicts = np.concatenate(batches, axis=1)
        found = {key: row > 0 for key, row in zip(self.keys, verdicts, strict=True)}
        count, restarts = min(TARGETS, classes - 1), len(self.seeds) if self.named else 0
        facts = {"steps": self.threat.steps, "targets": f"{count} target{'s' * (count > 1)}"}
        titles = {key: TITLES[name].format(**facts) for key, name in self.named.items()}
        return Report.of(found, labels, classes, self.threat, titles, restarts)

    def check_inside(self, key: str, x: np.ndarray, x_adv: np.ndarray, bits: int) -> None:
        """Raise DataError if a callable's x_adv leaves bounds or ball by more than rounding.

        Both are in float64; ``bits`` is the precision of the inputs' own dtype.
        """
        if x_adv.shape != x.shape:
            raise DataError(
                f"x_adv of {key} must have shape {x.shape}, got {x_adv.shape}: "
                "return one perturbed input per input"
            )
        (lower, upper), eps, norm = self.threat.bounds, self.threat.eps, self.threat.norm
        d, order = (x_adv - x).reshape(len(x), -1), ORDERS[norm]
        # Four ulps per entry; attacks on float64 may compute in float32.
        slack = 4 * 2.0 ** (1 - min(bits, 24)) * max(abs(lower), abs(upper))
        outside = max(lower - x_adv.min(), x_adv.max() - upper)
        beyond = np.linalg.norm(d, order, axis=1).max() - eps
        if not (outside <= slack and beyond <= slack * d.shape[1] ** (1 / order)):  # NaN too
            raise DataError(
                f"x_adv of {key} must hold finite values in [{lower:g}, {upper:g}] at {norm} "
                f"distances up to {eps:g}, got values {max(outside, 0):.3g} outside, distances "
                f"{max(beyond, 0):.3g} more: clip or project what the attack returns"
            )


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
