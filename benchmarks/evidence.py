"""Does it make networks more robust, and do the perturbations keep the meaning? One row per run.

    python -m benchmarks.evidence digits                        # all arms, seeds 0 to 4
    python -m benchmarks.evidence mnist --data-dir DIR --arms pgd "mask min"
    python -m benchmarks.evidence cifar10 --data FILE --device cuda --seeds 0
    python -m benchmarks.evidence overfit --data-dir DIR        # and large-eps, full: regimes.py
    python -m benchmarks.evidence tables                        # docs/evidence.md from the rows

Appends to benchmarks/results/evidence_<data set>.csv and leaves out what is there, so it can be
stopped at any time and started again. Several processes take seeds of their own, and begin when
the first has trained the judge. Networks and checkpoints are kept under runs/evidence.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import spatlib
from spatlib import RECIPES, Dataset, SPATConfig, TrainConfig, load_data
from spatlib.audit import compare_attacks
from spatlib.data import as_dataset
from spatlib_torch import engine
from spatlib_torch.models import preact_resnet

from . import evidence_tables, regime_arms, regimes
from .evidence_arms import ARMS, control
from .harness import append, rows_of
from .regime_arms import REGIMES

RUNS = Path("runs", "evidence")
OTHERS = ("overfit_apgd", "study_overfit", "study_full", "judges_digits")  # tables of other scripts
JUDGE_SEED = 1000  # an ordinary PGD-AT network of its own
STEPS, RESTARTS = 100, 2


class Setting(NamedTuple):
    """One data set: recipe, network by seed, and what differs from the recipe."""

    recipe: str
    build: Callable[[int], nn.Module]
    config: SPATConfig
    training: TrainConfig
    seeds: int
    examples: int | None = None  # the first so many are trained on; None: all
    measured: int | None = None  # test examples; None: all
    warm_up: tuple[float, int] | None = None  # eps and epochs of PGD-AT before any arm
    apgd_steps: int = 30
    apgd_examples: int = 1000


def _named(recipe: str, shape: Sequence[int]) -> Callable[[int], nn.Module]:
    chosen = RECIPES[recipe]
    return partial(
        engine.build_model, chosen.model, shape=shape, classes=10, mean=chosen.mean, std=chosen.std
    )


def _strided() -> nn.Module:
    """Two convolutions of stride 2 and a hidden layer, as in arXiv:1711.00851 and 2001.03994."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    )


def _narrow() -> nn.Module:
    """PreActResNet-18 with a quarter of its channels and half of its blocks."""
    recipe = RECIPES["cifar10"]
    return preact_resnet(
        (3, 32, 32), 10, recipe.mean, recipe.std, widths=(16, 32, 64, 128), blocks=1, stem=16
    )


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network for a processor without an accelerator, in the layout that is faster there."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().to(memory_format=torch.channels_last)


_QUIET: dict[str, Any] = {"baseline": False, "progress": False}
_DIGITS, _MNIST, _CIFAR = (RECIPES[name] for name in ("digits", "mnist", "cifar10-onecycle"))
SETTINGS = {
    "digits": Setting(
        "digits",
        _named("digits", (1, 8, 8)),
        replace(_DIGITS.config, steps=7),
        replace(_DIGITS.training, epochs=25, validation=200, **_QUIET),
        seeds=5,
    ),
    "mnist": Setting(
        "mnist",
        partial(_seeded, _strided),
        SPATConfig(eps=0.3, steps=10),
        replace(
            _MNIST.training,
            epochs=20,
            batch_size=64,
            schedule="onecycle",
            lr=0.05,
            eps_warmup=0,
            **_QUIET,
        ),
        seeds=3,
        examples=10_000,
        measured=2000,
        warm_up=(0.1, 3),
    ),
    "cifar10": Setting(
        "cifar10-onecycle",
        _named("cifar10", (3, 32, 32)),
        _CIFAR.config,
        replace(_CIFAR.training, precision="bfloat16", batch_size=512, **_QUIET),
        seeds=1,
    ),
    "cifar10-narrow": Setting(
        "cifar10-onecycle",
        partial(_seeded, _narrow),
        replace(_CIFAR.config, steps=5, step_size=2 / 255),
        replace(_CIFAR.training, epochs=15, precision="float32", **_QUIET),
        seeds=1,
        examples=10_000,
        measured=1000,
        apgd_examples=500,
    ),
}


class Experiment:
    """The runs of one data set."""

    def __init__(self, name: str, data: Any, data_dir: str | None, device: str | None) -> None:
        self.name, self.setting, self.device = name, SETTINGS[name], device
        named = load_data(data or RECIPES[self.setting.recipe].data, data_dir)
        self.data = as_dataset(named, channels_first=True)
        self.test = tuple(part[: self.setting.measured] for part in self.data.measured)

    @cached_property
    def judge(self) -> spatlib.Result:
        return self.trained("pgd", JUDGE_SEED)

    def trained(self, name: str, seed: int) -> spatlib.Result:
        """The network of an arm; taken up or read from its run directory if it is there."""
        arm, training = ARMS[name], replace(self.setting.training, seed=seed, device=self.device)
        model = self.start(seed)
        with control(arm.control):
            return self._run(name, model, arm.attack(self.setting.config), training)

    def start(self, seed: int) -> nn.Module:
        """Where every arm of this seed begins.

        At eps 0.3 on MNIST, 20 epochs from new weights end where they begin, at the same logits
        for all inputs; so there all arms continue a network that was trained at a smaller eps.
        """
        model, setting = self.setting.build(seed), self.setting
        if setting.warm_up is None:
            return model
        eps, epochs = setting.warm_up
        config = replace(setting.config, eps=eps, step_size=None, **ARMS["pgd"].config)
        training = replace(setting.training, seed=seed, device=self.device, epochs=epochs)
        return self._run("start", model, config, training).model

    def _run(
        self, name: str, model: nn.Module, config: SPATConfig, training: TrainConfig
    ) -> spatlib.Result:
        directory = RUNS / self.name / f"{name.replace(' ', '_')}-{training.seed}"
        return spatlib.train(
            model,
            self.split(training.seed),
            config=config,
            training=replace(training, validation=0),  # they are held out here
            run_dir=directory,
            resume=(directory / "config.json").exists(),
        )

    def split(self, seed: int) -> Dataset:
        """The examples that the trainings of this seed have, and those that are held out."""
        count = self.setting.training.validation
        data = as_dataset(self.data.train, channels_first=True, validation=count, seed=seed)
        train = tuple(part[: self.setting.examples] for part in data.train)
        # One test example only: the networks are measured elsewhere, and more thoroughly.
        test = tuple(part[:1] for part in self.test)
        return Dataset(train=train, test=test, validation=data.validation)

    def row(self, name: str, seed: int) -> dict[str, Any]:
        """Train one arm and measure it."""
        result, judge = self.trained(name, seed), self.judge
        arm, (x, y) = ARMS[name], self.test
        measure = partial(spatlib.evaluate, result.model, threat=self.setting.config, seed=1)
        pgd = measure((x, y), attacks=("pgd", "margin"), steps=STEPS, restarts=RESTARTS)
        few = slice(self.setting.apgd_examples)
        apgd = measure((x[few], y[few]), attacks=("apgd",), steps=self.setting.apgd_steps)
        with control(arm.control):
            networks, how = (result.model, judge.model), {"shown": 0, "seed": seed, "ssim": False}
            data = (x[few], y[few])
            moved, _ = compare_attacks(networks, data, result.config, len(x[few]), **how)
        held = measure(self.split(seed).validation, attacks=("pgd", "margin"))
        robust = [value for key, value in pgd.metrics.items() if key not in ("clean", "worst")]
        return {
            "dataset": self.name,
            "arm": name,
            "seed": seed,
            "clean": pgd.metrics["clean"],
            **dict(zip(("pgd100", "margin100"), robust, strict=True)),
            "worst": min(robust),
            "apgd": apgd.metrics[f"apgd{self.setting.apgd_steps}"],
            "held_clean": held.metrics["clean"],
            "held_robust": min(held.metrics["pgd20"], held.metrics["margin20"]),
            **{
                key: moved["training"][key]
                for key in ("success", "drift", "evidence_lost", "rival_gain", "entropy_gain")
            },
            "stall_rate": result.history[-1]["stall_rate"],
            "seconds_per_epoch": statistics.median(e["seconds"] for e in result.history),
        }


def parser(module: str, doc: str | None, *more: str) -> argparse.ArgumentParser:
    """What every script takes: a data set (or one of ``more``) and where its files are."""
    options = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("dataset", choices=(*SETTINGS, *more))
    options.add_argument("--data", help="a file that holds the data, instead of the official ones")
    options.add_argument("--data-dir", help="where the official files are")
    options.add_argument("--device")
    return options


def experiment(chosen: argparse.Namespace) -> Experiment:
    return Experiment(chosen.dataset, chosen.data, chosen.data_dir, chosen.device)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("evidence", __doc__, *REGIMES, "tables")
    options.add_argument("--arms", nargs="+", metavar="ARM")
    options.add_argument("--seeds", nargs="+", type=int)
    options.add_argument("--minutes", type=float, help="of a regime: after them, stop where it is")
    options.add_argument("--apgd", action="store_true", help="of a regime: Auto-PGD, on ended runs")
    chosen = options.parse_args(arguments)
    if chosen.dataset == "tables":
        evidence_tables.write([*SETTINGS, *REGIMES, *OTHERS])
        return
    known: Any = regime_arms.ARMS if chosen.dataset in REGIMES else ARMS
    chosen.arms = chosen.arms or list(known)
    if not set(chosen.arms) <= set(known):
        options.error(f"--arms must be among {', '.join(known)}")
    if chosen.dataset in REGIMES:
        regimes.run(chosen)
        return
    runs, file = experiment(chosen), f"evidence_{chosen.dataset}"
    for seed in chosen.seeds or range(runs.setting.seeds):
        for arm in chosen.arms:
            done = {(row["arm"], row["seed"]) for row in rows_of(file)}
            if (arm, str(seed)) not in done:
                row = runs.row(arm, seed)
                append(file, row)
                shown = ("clean", "worst", "apgd", "drift", "seconds_per_epoch")
                print(seed, arm, *(f"{key} {row[key]:.3f}" for key in shown), flush=True)


if __name__ == "__main__":
    main()
