"""Measure a classifier under attack: what is run and who survives, once for all engines."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from . import autoattack
from .backends import load_engine
from .config import SPATConfig
from .core.apgd import auto_ascend
from .core.ops import Array, Ops, rivals
from .core.projection import feasible_box
from .core.step import initial, step
from .core.target import attack_loss
from .data import load
from .errors import ConfigError, DataError, require_integer, require_type
from .recipes import find
from .result import Report

TITLES = {
    "pgd": "PGD-{steps}",
    "margin": "margin PGD-{steps} (CW)",
    "targeted": "targeted margin PGD-{steps} ({targets})",
    "apgd-ce": "APGD-CE-{steps}",
    "apgd-t": "targeted APGD-DLR-{steps} ({targets})",
    "apgd": "APGD-{steps} (CE and targeted DLR)",
}
AUTO = ("apgd-ce", "apgd-t")
PARTS = {"apgd": AUTO}  # attacks that one name stands for
TARGETS = 9  # as many as AutoAttack has
ORDERS = {"Linf": math.inf, "L2": 2, "L1": 1}


def evaluate(
    model: Any,
    data: Any = ...,
    *,
    recipe: str | None = None,
    backend: str = "torch",
    config: SPATConfig | None = None,
    attacks: Sequence[Any] = ("pgd", "margin"),
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    examples: int | None = None,
) -> Report:
    """Accuracy, clean and under each attack.

    The attacks use the full eps and hard labels, never the mask, the smoothing or the guard. An
    example counts as robust only if it is classified correctly clean, at the start and at the
    end of every run (of APGD: at every point on its way), so no robust accuracy exceeds the clean
    one. All named attacks begin at the same random starts, so none changes the figures of another.

    Args:
        model: Gives logits (N, K); moved to ``device``, otherwise left as it was.
        data: As for :func:`spatlib.train`; the test part if there is one.
        backend: ``"torch"``, ``"tf"``, or a name that another package registered.
        recipe: As for :func:`spatlib.train`.
        config: The threat model: eps, norm, bounds. Default: the recipe's, else ``SPATConfig()``.
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
        batch_size: Examples per pass (ignored for data that comes in batches).
        seed: Fixes the random starts (a callable has to seed itself).
        device: Where to evaluate; default: where the model is.
        data_dir: As for :func:`spatlib.train`.
        examples: Measure the first so many only; default all.

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it (a
            DataError too if a callable leaves bounds or ball by more than rounding).
    """
    if config is not None:
        require_type("config", config, SPATConfig)
    require_integer("restarts", restarts, 1)
    require_integer("batch_size", batch_size, 1)
    require_integer("seed", seed, 0)
    if examples is not None:
        require_integer("examples", examples, 1)
    chosen, data = find(recipe, data)
    engine = load_engine(backend)
    dataset = load(
        data,
        channels_first=engine.CHANNELS_FIRST,
        data_dir=data_dir,
        examples=examples,
        test_examples=examples,
    )
    config = config or (chosen.config if chosen else SPATConfig())
    return engine.evaluate(
        model,
        dataset.measured,
        config,
        attacks=attacks,
        steps=steps,
        restarts=restarts,
        batch_size=batch_size,
        seed=seed,
        device=device,
    )


class Evaluation:
    """What an engine runs for :func:`evaluate`: ``named`` attacks and ``callables`` by metric.

    ``threat`` is what the attacks may do, ``seeds`` one number per restart (the first ones are the
    same for any number of restarts), ``keys`` all metrics in order. Raises ConfigError for attacks
    that are neither known names nor callables, or share a name.
    """

    def __init__(
        self, config: SPATConfig, attacks: Sequence[Any], steps: int, restarts: int, seed: int
    ) -> None:
        self.config, self.threat = config, config.evaluation(steps)
        self.seeds = [seed + 7919 * r for r in range(restarts)]
        self.keys, self.named, self.callables = ["clean"], dict[str, Any](), dict[str, Any]()
        for item in attacks if isinstance(attacks, tuple | list) and attacks else (attacks,):
            if isinstance(item, str) and item == "autoattack" and config.norm != "L1":
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
            if named and item.startswith("apgd") and config.norm == "L1":
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
        return Report.of(found, labels, classes, self.config, titles, restarts)

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


def survivors(
    ops: Ops,
    threat: SPATConfig,
    named: Mapping[str, str],
    batch: tuple[Array, Array, Array],
    logits_of: Callable[[Array], Array],
    slope: Callable[..., tuple[Array, Array, Array]],
    starts: Iterable[Array],
) -> dict[str, Array]:
    """By ``clean`` and each attack's key, boolean (N,): True where an example counts as correct.

    Args:
        threat, named: Of :class:`Evaluation`; the values are names for :func:`attack_loss`.
        batch: x (N, ...), its logits and its one-hot labels (N, K).
        logits_of: x -> logits, without gradients.
        slope: (x, loss of logits) -> the loss (N,), its gradient (N, ...), and the logits.
        starts: One raw perturbation (N, ...) per restart.
    """
    x, clean, label = batch
    lower, upper = feasible_box(ops, x, None, threat.eps, threat.bounds)
    limits: dict[str, Any] = {"eps": threat.eps, "norm": threat.norm}
    others = rivals(ops, clean, label)

    def moved(d: Array) -> Array:
        return ops.clip(x + d, *threat.bounds)

    def run(name: str, d: Array, rest: Array, robust: Array) -> tuple[Array, Array]:
        goal = ops.argmax_one_hot(rest)

        def look(d: Array) -> tuple[Array, Array, Array]:
            value, grad, z = slope(moved(d), lambda z: attack_loss(ops, name, z, label, goal))
            return value, grad, is_correct(ops, z, label)

        def climb(d: Array) -> tuple[Array]:
            return (
                step(ops, d, look(d)[1], None, lower, upper, step_size=threat.step_size, **limits),
            )

        if name in AUTO:
            _, right = auto_ascend(ops, look, d, lower, upper, steps=threat.steps, **limits)
        else:
            (d,) = ops.repeat(climb, threat.steps, (d,))
            right = is_correct(ops, logits_of(moved(d)), label)
        return rivals(ops, rest, goal), robust & right

    verdicts = dict.fromkeys(("clean", *named), is_correct(ops, clean, label))
    targets = min(TARGETS, int(label.shape[1]) - 1)
    for start in starts:
        d = initial(ops, start, None, lower, upper, **limits)
        started = is_correct(ops, logits_of(moved(d)), label)
        for key, name in named.items():
            verdicts[key] = verdicts[key] & started
            for part in PARTS.get(name, (name,)):
                runs = targets if part in ("targeted", "apgd-t") else 1
                state = (others, verdicts[key])
                _, verdicts[key] = ops.repeat(partial(run, part, d), runs, state)
    return verdicts


def is_correct(ops: Ops, logits: Array, label: Array) -> Array:
    """Boolean (N,), True where the label has the largest logit, False where a logit is NaN."""
    total = ops.sum(logits, axis=1)
    return (ops.sum(ops.argmax_one_hot(logits) * label, axis=1) > 0) & (total == total)
