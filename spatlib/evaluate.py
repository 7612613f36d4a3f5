"""Measure a classifier under attack: what is run, once for all engines."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from inspect import signature
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np

from . import autoattack
from .config import SPATConfig, Threat, fold, plain_pgd
from .core import numpy_ops as ops
from .core.feasible import random_start
from .core.target import TARGETED, TARGETS
from .data import as_array, as_dataset, is_pair
from .engines import Engine, engine_of
from .errors import checked, expect, require, warn_of_holes
from .recipes import Recipe, find_recipe
from .report import Report, bar

TITLES = {
    "pgd": "PGD-{steps}",
    "margin": "CW margin PGD-{steps}",
    "targeted": "targeted margin PGD-{steps} ({targets})",
    "apgd-ce": "APGD-CE-{steps}",
    "apgd-t": "targeted APGD-DLR-{steps} ({targets})",
    "apgd": "APGD-{steps} (CE, T)",
}
PARTS = {"apgd": ("apgd-ce", "apgd-t")}  # attacks that one name stands for
ATTACKS = ("pgd", "margin")
BESIDE = {"L2": ("apgd",)}  # PGD alone finds too little there: docs/method.md
WORST = "worst"  # correct under all attacks
T = TypeVar("T", bound=Threat)


def evaluate(
    model: Any,
    data: Any = None,
    threat: Threat | None = None,
    *,
    recipe: str | Recipe | None = None,
    attacks: Sequence[Any] | None = None,
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
    eps: Sequence[float] | None = None,
    keep: bool = False,
    worst_only: bool = False,
    progress: bool = True,
) -> Any:
    """Accuracy, clean and under each attack: full eps, hard labels, no mask, smoothing or guard.

    An example counts as robust only if it is classified correctly clean, at the start and at the
    end of every run (of APGD: at every point on its way), so no robust accuracy exceeds the clean
    one. Named attacks begin at the same random starts. The result is a :class:`Report`.

    Args:
        model: A torch.nn.Module, a keras.Model, or one of a package that registered an engine;
            gives logits (N, K). It is moved to ``device``, otherwise left as it was.
        data, recipe: As for :func:`spatlib.train`; the test part is measured, if there is one.
        threat: eps, norm and bounds (a SPATConfig is one); default: the recipe's.
        attacks: ``"pgd"`` (metric ``pgd20``), ``"margin"`` (Carlini & Wagner 2017), ``"targeted"``
            (the min(9, K - 1) other classes of the highest clean logits, one by one); not in L1
            ``"apgd-ce"``, ``"apgd-t"`` (Auto-PGD, Croce & Hein 2020, arXiv:2003.01690), ``"apgd"``
            (both) and ``"autoattack"`` (ART's, for images, and slow). Callables, once per batch:
            ``attack(model, x, y) -> x_adv`` of the framework's tensors, y integers (N,), or
            ``attack(x, y)`` where they hold a ``model`` (torchattacks); the metric has their
            ``__name__`` or class name. Default: ``"pgd"`` and ``"margin"``, in L2 ``"apgd"`` too.
        steps: How many the named attacks take (AutoAttack 100), in PGD of 2.5 eps / steps each; in
            Auto-PGD it finds their sizes.
        restarts: Random restarts of each named attack.
        batch_size: Examples per pass (ignored for data in batches).
        seed: Fixes the random starts, whatever the batches and the framework, and AutoAttack's
            draws, which depend on the batches too (a callable has to seed itself).
        device: Where to evaluate; default: where the model is.
        eps: Radii instead of the threat's, for a list of reports, each of its own pass through the
            data: one that shuffles gives their rows other orders.
        worst_only: Attack with each only what all before it left correct, the quickest named first:
            the metrics are ``clean`` and ``worst``, at a fraction of the passes.
        keep: Keep the perturbed inputs of each attack in ``x_adv`` of the report.
        progress: Show a progress bar (in a terminal or notebook).

    Raises ConfigError, BackendError or DataError, this too for a callable that leaves the ball.
    """
    batch_size = checked("batch_size", batch_size, 1)
    chosen, engine = find_recipe(recipe, data), engine_of(model)
    threat = threat_of(threat, chosen, "threat", Threat)
    several = isinstance(eps, list | tuple | np.ndarray) and len(eps) > 0
    require(several or eps is None, "eps", "be a list of radii (one alone is the threat's)", eps)
    threats = [threat] if eps is None else [replace(threat, eps=radius) for radius in eps]
    asked = [Evaluation(each, attacks, steps, restarts, seed, worst_only) for each in threats]
    data = chosen.data if data is None and chosen else data
    data = as_dataset(data, engine.CHANNELS_FIRST).measured
    how = {"batch_size": batch_size, "device": device, "progress": progress}
    reports = [measure(engine, model, data, each, keep, **how) for each in asked]
    return reports if several else reports[0]


def measure(
    engine: Engine, model: Any, data: Any, evaluation: "Evaluation", keep: bool = False, **how: Any
) -> Report:
    """The report of an evaluation; ``how``: ``batch_size``, ``device`` and ``progress``."""
    how = {"batch_size": 256, "device": None, "progress": False} | how
    shown = {"progress": how.pop("progress"), "unit": "batch"}
    shown["desc"] = f"measuring, {evaluation.threat.norm} eps {evaluation.threat.eps:.4g}"
    shown["total"] = math.ceil(len(data[1]) / how["batch_size"]) if is_pair(data) else None
    return evaluation.report(bar(engine.survivors(model, data, evaluation, **how), **shown), keep)


def attacked_examples(
    engine: Engine, model: Any, data: Any, config: SPATConfig, count: int = 8, seed: int = 0
) -> dict[str, Any]:
    """The first examples under the training attack, channels last, and the labels read in them."""
    x, y, x_adv, mask = engine.perturb(model, data, config, count, seed)
    clean, adversarial = (engine.logits(model, part).argmax(axis=1) for part in (x, x_adv))
    shown = {"x": x, "x_adv": x_adv, "mask": mask}
    if engine.CHANNELS_FIRST:
        shown = {name: np.moveaxis(value, 1, -1) for name, value in shown.items()}
    y = y.reshape(len(x), -1)
    label = y.argmax(axis=1) if y.shape[1] > 1 else y[:, 0]
    return {**shown, "y": label, "clean": clean, "adversarial": adversarial}


def threat_of(given: T | None, recipe: Recipe | None, name: str, kind: type[T]) -> T:
    """The setting given, else the recipe's; ConfigError if there is neither, or of another kind."""
    found: Any = recipe.config if given is None and recipe is not None else given
    example = 'spatlib.SPATConfig(eps=8 / 255, norm="Linf")'
    what = f"be given to state what an attack may do to data of your own, as {example}"
    require(found is not None, name, what, found)
    require(isinstance(found, kind), name, f"be a spatlib.{kind.__name__}", found)
    return found  # type: ignore[no-any-return]


class Evaluation:
    """What an engine runs for :func:`evaluate`: ``named`` attacks and ``callables`` by metric."""

    def __init__(
        self,
        threat: Threat,
        attacks: Any = None,
        steps: int = 20,
        runs: int = 1,
        seed: int = 0,
        joint: bool = False,
    ) -> None:
        seed, runs = checked("seed", seed, 0), checked("restarts", runs, 1)
        self.joint = checked("worst_only", joint, bool)
        attacks = ATTACKS + BESIDE.get(threat.norm, ()) if attacks is None else attacks
        self.threat, self.keys = plain_pgd(threat, steps), ["clean"]
        self.named, self.callables = dict[str, Any](), dict[str, Any]()
        self.titles = dict[str, str]()
        known = (*TITLES, "autoattack") if threat.norm != "L1" else ("pgd", "margin", "targeted")
        what = f"be {', '.join(map(repr, known))} in {threat.norm} or callables attack(model, x, y)"
        what += ", attack(x, y) if they hold a model, no name (__name__) twice"
        for item in attacks if isinstance(attacks, tuple | list) and attacks else (attacks,):
            by_name = isinstance(item, str)
            name = item if by_name else getattr(item, "__name__", type(item).__name__)
            key = f"{name}{steps}" if by_name and name in TITLES else name
            alone = hasattr(item, "model")  # that is called with x and y
            fits = name in known if by_name else _takes(item, 3 - alone)
            require(fits and key not in (*self.keys, WORST), "attacks", what, item)
            self.keys.append(key)
            if key != name:
                self.named[key], self.titles[key] = PARTS.get(item, (item,)), TITLES[item]
            else:
                own = partial(autoattack.attack, self.threat, seed) if by_name else item
                self.callables[key] = (lambda _, *xy, own=own: own(*xy)) if alone else own
        self.seed, self.restarts = seed, runs if self.named else 0
        if self.joint:
            parts = dict.fromkeys(part for parts in self.named.values() for part in parts)
            quickest = sorted(parts, key=TARGETED.__contains__)
            names = (key.replace("{", "{{").replace("}", "}}") for key in self.callables)
            titles = [*map(TITLES.__getitem__, quickest), *names]
            self.named, self.titles = {WORST: quickest}, {WORST: ", then ".join(titles)}
            self.keys = ["clean", WORST]

    def starts(self, first: int, shape: Sequence[int], axis: int) -> Iterator[np.ndarray]:
        """One per restart, raw, in float64, for a batch from ``first`` on, whatever its size."""
        like = np.moveaxis(np.zeros(shape), axis, -1)

        def start(seed: int) -> np.ndarray:
            rngs = [np.random.default_rng((seed, first + row)) for row in range(len(like))]
            draws: Any = SimpleNamespace()
            draws.uniform = lambda x, _: np.stack([rng.random(x.shape[1:]) for rng in rngs])
            draws.normal = lambda x, _: np.stack([rng.normal(size=x.shape[1:]) for rng in rngs])
            return np.moveaxis(random_start(ops, like, self.threat, draws), -1, axis)

        return (start(fold(self.seed, restart)) for restart in range(self.restarts))

    def report(self, batches: Iterable[Any], keep: bool = False) -> Report:
        """Of what :meth:`spatlib.engines.Engine.survivors` yields; with x_adv if ``keep``."""
        labels, found, classes = list[Any](), {key: list[Any]() for key in self.keys}, 0
        for y, classes, verdicts in batches:  # noqa: B007  # that of the last
            labels.append(as_array(y))
            for key, parts in found.items():
                parts.append([*map(as_array, verdicts[key][: 2 + keep])])
        rows = {k: [*map(np.concatenate, zip(*v, strict=True))] for k, v in found.items()}
        outcomes = {key: right for key, (right, *_) in rows.items()}
        outcomes[WORST] = np.logical_and.reduce([*outcomes.values()])
        broken = 1 - float(np.logical_and.reduce([sound for _, sound, *_ in rows.values()]).mean())
        warn_of_holes(broken, "the examples")
        y, metrics, per_class = np.concatenate(labels), dict[str, float](), dict[str, Any]()
        members = [y == k for k in range(classes)]
        for key, right in outcomes.items():
            metrics[key] = float(right.mean())
            per_class[key] = [float(right[m].mean()) if m.any() else math.nan for m in members]
        count, its = min(TARGETS, classes - 1), self.threat
        facts = {"steps": its.steps, "targets": f"{count} target{'s' * (count > 1)}"}
        shown: dict[str, Any] = {key: of.format(**facts) for key, of in self.titles.items()}
        shown = {"attacks": shown, "metrics": metrics, "per_class": per_class, "broken": broken}
        kept = {key: rows[key][2] for key in self.keys[1:] if keep}
        shown |= {"outcomes": outcomes, "x_adv": kept}
        plain = Threat(eps=its.eps, norm=its.norm, bounds=its.bounds)
        return Report(count=len(y), threat=plain, restarts=self.restarts, **shown)

    def check_inside(self, key: str, x: Any, x_adv: Any, bits: int) -> None:
        """DataError if x_adv leaves bounds or ball by more than rounding to ``bits``."""
        x, x_adv, name = as_array(x).astype(float), as_array(x_adv).astype(float), f"x_adv of {key}"
        expect(x_adv.shape == x.shape, f"{name} must have the shape {x.shape}, got {x_adv.shape}")
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


def _takes(call: Any, count: int) -> bool:
    """Whether it can be called with so many arguments."""
    with suppress(TypeError, ValueError):
        return bool(signature(call).bind(*range(count)))
    return False
