"""Measure a classifier under attack: what is run, once for all engines."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from . import autoattack
from .config import SPATConfig, Threat, plain_pgd
from .core.target import TARGETS
from .data import as_array, as_dataset, is_pair
from .engines import Engine, engine_of
from .errors import checked, expect, require, require_type
from .recipes import Recipe, find_recipe

TITLES = {
    "pgd": "PGD-{steps}",
    "margin": "margin PGD-{steps} (CW)",
    "targeted": "targeted margin PGD-{steps} ({targets})",
    "apgd-ce": "APGD-CE-{steps}",
    "apgd-t": "targeted APGD-DLR-{steps} ({targets})",
    "apgd": "APGD-{steps} (CE and targeted DLR)",
}
ATTACKS = ("pgd", "margin")
Z = 1.959963984540054  # 97.5 % of a standard normal variable are below it
T = TypeVar("T", bound=Threat)


@dataclass(frozen=True, kw_only=True)
class Report:
    """Accuracies of one model.

    Attributes:
        metrics: Accuracies in [0, 1] (:func:`spatlib.evaluate`): ``clean``, ``pgd20``, ...
        count: Number of examples.
        threat: eps, norm and bounds of the attacks.
        restarts: Random restarts of each named attack.
        per_class: The metrics on the examples of each class, NaN where there are none.
        attacks: What the named attacks are called in print; others go by their key.
    """

    metrics: dict[str, float]
    count: int
    threat: Threat
    restarts: int = 1
    per_class: dict[str, list[float]] = field(default_factory=dict)
    attacks: dict[str, str] = field(default_factory=dict)

    @property
    def interval(self) -> dict[str, tuple[float, float]]:
        """The 95 % interval of each metric (:func:`wilson`), as examples are a random draw."""
        return {name: wilson(round(p * self.count), self.count) for name, p in self.metrics.items()}

    def as_json(self) -> dict[str, Any]:
        """As plain values, None for NaN, with the intervals; see :meth:`from_json`."""
        own = {k: [None if p != p else p for p in row] for k, row in self.per_class.items()}
        return asdict(self) | {"per_class": own, "interval": self.interval}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Report":
        """The report with these values of :meth:`as_json`."""
        known = {name: values[name] for name in cls.__dataclass_fields__}
        own = {k: [math.nan if p is None else p for p in v] for k, v in values["per_class"].items()}
        return cls(**known | {"per_class": own, "threat": Threat(**values["threat"])})

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
    """Accuracy, clean and under each attack: full eps, hard labels, no mask, smoothing or guard.

    An example counts as robust only if it is classified correctly clean, at the start and at the
    end of every run (of APGD: at every point on its way), so no robust accuracy exceeds the clean
    one. All named attacks begin at the same random starts: none changes the figures of another.

    Args:
        model: A torch.nn.Module, a keras.Model, or one of a package that registered an engine;
            gives logits (N, K). It is moved to ``device``, otherwise left as it was.
        data, recipe: As for :func:`spatlib.train`; the test part is measured, if there is one.
        threat: eps, norm and bounds (a SPATConfig is one); default: the recipe's.
        attacks: ``"pgd"``: PGD with cross-entropy (metric ``pgd20``). ``"margin"``: with max over
            k != y of z_k - z_y (Carlini & Wagner 2017). ``"targeted"``: with z_t - z_y, one run
            for each t of the min(9, K - 1) other classes with the highest clean logits (after
            Croce & Hein 2020, arXiv:2003.01690). ``"apgd-ce"``, ``"apgd-t"``: their Auto-PGD
            (:mod:`spatlib.core.apgd`) with cross-entropy, and with the difference of logits ratio
            towards each t; ``"apgd"``: both. ``"autoattack"``: ART's, for images, and slow
            (:mod:`spatlib.autoattack`). In L1 only the first three. Callables, once per batch:
            ``attack(model, x, y) -> x_adv`` of the framework's tensors, y integers (N,); the
            metric has their ``__name__`` or class name.
        steps: Of the named attacks, 2.5 eps / steps each (AutoAttack takes 100 of Auto-PGD's).
        restarts: Random restarts of each named attack.
        batch_size: Examples per pass (ignored for data in batches); another size has other starts.
        seed: Fixes the random starts (a callable has to seed itself).
        device: Where to evaluate; default: where the model is.

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it.
            DataError too if a callable leaves bounds or ball by more than rounding.
    """
    batch_size = checked("batch_size", batch_size, 1)
    chosen, engine = find_recipe(recipe, data), engine_of(model)
    asked = Evaluation(threat_of(threat, chosen, "threat", Threat), attacks, steps, restarts, seed)
    data = chosen.data if data is None and chosen else data
    data = as_dataset(data, channels_first=engine.CHANNELS_FIRST).measured
    return measure(engine, model, data, asked, batch_size=batch_size, device=device)


def measure(engine: Engine, model: Any, data: Any, evaluation: "Evaluation", **how: Any) -> Report:
    """The report of an evaluation by its engine; ``how`` has ``batch_size`` and ``device``."""
    how = {"batch_size": 256, "device": None} | how
    return evaluation.report(*engine.survivors(model, data, evaluation, **how))


def attacked_examples(
    engine: Engine, model: Any, data: Any, config: SPATConfig, count: int = 8, seed: int = 0
) -> dict[str, Any]:
    """The first examples of ``data`` under the training attack, as :mod:`spatlib.plots` draws them.

    Arrays with channels last, ``x``, ``x_adv`` and ``mask``, and (N,) the labels ``y`` and those
    predicted for x and x', ``clean`` and ``adversarial``.
    """
    x, y = (part[:count] for part in (data if is_pair(data) else next(iter(data))))
    x_adv, mask = engine.perturb(model, x, y, config, seed)
    x, y = as_array(x), as_array(y).reshape(len(x), -1)
    if x.dtype == np.uint8:
        lower, upper = config.bounds
        x = (lower + (upper - lower) * (x / 255)).astype(x_adv.dtype)
    clean, adversarial = (engine.logits(model, part).argmax(axis=1) for part in (x, x_adv))
    shown = {"x": x, "x_adv": x_adv, "mask": np.ones_like(x) if mask is None else mask}
    if engine.CHANNELS_FIRST:
        shown = {name: np.moveaxis(value, 1, -1) for name, value in shown.items()}
    label = y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0]
    return {**shown, "y": label, "clean": clean, "adversarial": adversarial}


def threat_of(given: T | None, recipe: Recipe | None, name: str, kind: type[T]) -> T:
    """The setting given, else the recipe's; ConfigError if there is neither, or of another kind."""
    found: Any = recipe.config if given is None and recipe is not None else given
    example = 'spatlib.SPATConfig(eps=8 / 255, norm="Linf") for images in [0, 1]'
    what = f"be given for data of your own, to state what an attack may do, e.g. {example}"
    require(found is not None, name, what, found)
    require_type(name, found, kind)
    return found  # type: ignore[no-any-return]


class Evaluation:
    """What an engine runs for :func:`evaluate`: ``named`` attacks and ``callables`` by metric.

    ``threat`` is what the attacks may do, ``seeds`` one number per random start (of ``runs``, the
    first the same for any number), ``keys`` all metrics in order. Other attacks, or two of one
    name, are a ConfigError.
    """

    def __init__(
        self, threat: Threat, attacks: Any = ATTACKS, steps: int = 20, runs: int = 1, seed: int = 0
    ) -> None:
        first, runs = checked("seed", seed, 0), checked("restarts", runs, 1)
        self.threat, self.seeds = plain_pgd(threat, steps), [first + 7919 * r for r in range(runs)]
        self.keys, self.named, self.callables = ["clean"], dict[str, Any](), dict[str, Any]()
        known = (*TITLES, "autoattack") if threat.norm != "L1" else ("pgd", "margin", "targeted")
        what = f"be {', '.join(map(repr, known))} in {threat.norm} or callables attack(model, x, y)"
        for item in attacks if isinstance(attacks, tuple | list) and attacks else (attacks,):
            by_name = isinstance(item, str)
            name = item if by_name else getattr(item, "__name__", type(item).__name__)
            key = f"{name}{steps}" if by_name and name in TITLES else name
            valid = key not in self.keys and (name in known if by_name else callable(item))
            require(valid, "attacks", f"{what}, no name (__name__) twice", item)
            self.keys.append(key)
            if key != name:
                self.named[key] = item
            else:
                self.callables[key] = partial(autoattack.attack, self.threat) if by_name else item

    def report(self, batches: Sequence[np.ndarray], classes: int) -> Report:
        """Of integers (1 + len(keys), n) per batch: labels, then verdicts, above 0 if correct."""
        labels, *verdicts = np.concatenate(batches, axis=1)
        members = [labels == k for k in range(classes)]
        metrics, per_class = dict[str, float](), dict[str, list[float]]()
        for key, right in zip(self.keys, (row > 0 for row in verdicts), strict=True):
            metrics[key] = float(right.mean())
            per_class[key] = [float(right[m].mean()) if m.any() else math.nan for m in members]
        count, its = min(TARGETS, classes - 1), self.threat
        facts = {"steps": its.steps, "targets": f"{count} target{'s' * (count > 1)}"}
        titles = {key: TITLES[name].format(**facts) for key, name in self.named.items()}
        found: dict[str, Any] = {"metrics": metrics, "per_class": per_class, "attacks": titles}
        plain = Threat(eps=its.eps, norm=its.norm, bounds=its.bounds)
        runs = len(self.seeds) if self.named else 0
        return Report(count=len(labels), threat=plain, restarts=runs, **found)

    def check_inside(self, key: str, x: np.ndarray, x_adv: np.ndarray, bits: int) -> None:
        """DataError if x_adv (float64) leaves bounds or ball by more than rounding to ``bits``."""
        name, shape = f"x_adv of {key}", x.shape
        expect(x_adv.shape == shape, f"{name} must have the shape {shape}, got {x_adv.shape}")
        (low, high), eps, norm = self.threat.bounds, self.threat.eps, self.threat.norm
        d, order = (x_adv - x).reshape(len(x), -1), {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
        # Four ulps per entry; attacks on float64 may compute in float32.
        slack = 4 * 2.0 ** (1 - min(bits, 24)) * max(abs(low), abs(high))
        outside = max(low - x_adv.min(), x_adv.max() - high, 0)  # NaN stays NaN
        beyond = max(np.linalg.norm(d, order, axis=1).max() - eps, 0)
        inside = bool(outside <= slack and beyond <= slack * d.shape[1] ** (1 / order))
        what = f"{name} must be in [{low:g}, {high:g}] at {norm} distances up to {eps:g}"
        got = f"values {outside:.3g} outside, distances {beyond:.3g} more"
        expect(inside, f"{what}, got {got}: clip or project it")


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % score interval of hits / n (Wilson 1927, J. Am. Stat. Assoc. 22, 209).

    All p in [0, 1] with |hits / n - p| <= z sqrt(p (1 - p) / n), z = 1.96 the normal quantile.
    """
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
