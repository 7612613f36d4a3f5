"""What each command of the command line does."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro

import spatlib

from . import SPATConfig, TrainConfig, plots
from .audit import compare_attacks
from .backends import load_engine
from .data import Dataset
from .recipes import RECIPES
from .result import Report, table
from .run import EVALUATION, Run
from .train import read_data
from .trained import load_model

Directory = tyro.conf.Positional[Path]
Weights = Literal["best", "ema", "last"] | None


def train(
    *,
    recipe: str | None = None,
    backend: str | None = None,
    model: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    run_dir: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    config: SPATConfig,
    training: TrainConfig,
) -> None:
    """Train a robust classifier.

    Args:
        recipe: Gives the defaults of everything else: see ``spatlib recipes``; default: the one
            of the data's name, else digits.
        backend: torch (the default), tf, or one that another package registered.
        model: Name of the network; default: the recipe's.
        data: Name or path of the data; default: the recipe's.
        data_dir: Where the files of named data are, or are downloaded to.
        run_dir: Directory for settings, metrics, weights, checkpoints and plots.
        resume: Go on with the run in run_dir; needs no other option.
        overwrite: Delete the run in run_dir first.
    """
    terminal = sys.stdout.isatty()
    published = RECIPES[recipe].config if recipe in RECIPES else config
    if config.norm != published.norm and config.eps == published.eps:
        raise spatlib.ConfigError(
            f"eps is the recipe's, for {published.norm}: pass --eps for {config.norm}"
        )
    result = spatlib.train(
        model,
        ... if data is None else data,
        recipe=recipe,
        backend=backend,
        config=config,
        training=replace(training, progress=training.progress and terminal),
        data_dir=data_dir,
        run_dir=run_dir,
        resume=resume,
        overwrite=overwrite,
        on_epoch=None if terminal else lambda row: print(json.dumps(row), flush=True),
    )
    if not terminal:
        print(json.dumps({"metrics": result.metrics, "measured_on": result.measured_on}))


def evaluate(
    run: Directory,
    *,
    weights: Weights = None,
    attacks: tuple[str, ...] = ("pgd", "margin"),
    steps: int = 20,
    restarts: int = 1,
    eps: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
    data_dir: Path | None = None,
    device: str | None = None,
    examples: int | None = None,
) -> None:
    """Measure a run's network, clean and under attack, on the test data if there are any.

    Args:
        run: Directory of the run.
        weights: Default: best if there was validation, else ema or last.
        attacks: Any of pgd, margin, targeted, apgd-ce, apgd-t, apgd (both), autoattack.
        steps: Steps of each attack.
        restarts: Random restarts of each attack.
        eps: Radius; default: that of the training.
        batch_size: Examples per pass.
        seed: Fixes the random starts.
        data_dir: Default: that of the training.
        device: Default: the CPU.
        examples: Measure the first so many; default: as many as after the training.
    """
    model, of = load_model(run, weights)
    config, _ = of.configs()
    dataset = _dataset(of, data_dir)
    report = spatlib.evaluate(
        model,
        dataset.measured,
        backend=of.settings["backend"],
        attacks=attacks,
        steps=steps,
        config=config if eps is None else replace(config, eps=eps),
        restarts=restarts,
        batch_size=batch_size,
        seed=seed,
        device=device,
        examples=examples,
    )
    measured_on = "training" if dataset.test is None else "test"
    facts = {**report.as_json(), "weights": weights, "seed": seed, "measured_on": measured_on}
    of.write(EVALUATION, json.dumps(facts, indent=2).encode())
    print(f"{report}\n{measured_on} data" if sys.stdout.isatty() else json.dumps(facts))


def audit(
    run: Directory,
    *,
    judge: Path,
    examples: int = 256,
    eps: float | None = None,
    steps: int | None = None,
    ssim: bool = False,
    shown: int = 6,
    seed: int = 0,
    weights: Weights = None,
    data_dir: Path | None = None,
) -> None:
    """Ask another run's network how far the attacks on this run's network move the meaning.

    The attacks are the run's own training attack and plain PGD at the same eps and steps. Each
    is reported with its success, the share of the network's correct examples that it fools: a
    weaker attack must not be mistaken for one that keeps the meaning.

    Args:
        run: Directory of the run attacked; audit.json and audit.png are written there.
        judge: Directory of a run of another seed on the same data, adversarially trained.
        examples: Attack the first so many, of the test data if there are any.
        eps: Radius; default: that of the training.
        steps: Steps of both attacks; default: that of the training.
        ssim: Measure the structural similarity too (needs the extra audit).
        shown: Pictures of the examples that drifted most.
        seed: Fixes starts and masks.
        weights: As for evaluate; of both runs.
        data_dir: Default: that of the training.
    """
    if run.resolve() == judge.resolve():
        raise spatlib.ConfigError(f"judge is the run itself, {run}: train another with --seed")
    model, of = load_model(run, weights)
    reader, other = load_model(judge, weights)
    if of.settings["data"] != other.settings["data"]:
        raise spatlib.ConfigError(
            f"judge was trained on {other.settings['data']}, the run on {of.settings['data']}: "
            "train a judge on the same data"
        )
    own, _ = of.configs()
    own = replace(own, eps=own.eps if eps is None else eps, steps=steps or own.steps)
    content, pictures = compare_attacks(
        (model, of.settings["backend"]),
        (reader, other.settings["backend"]),
        _dataset(of, data_dir).measured,
        own,
        count=examples,
        shown=shown,
        seed=seed,
        ssim=ssim,
    )
    facts = {"judge": str(judge), "eps": own.eps, "norm": own.norm, "steps": own.steps}
    facts["attacks"] = content
    of.write("audit.json", json.dumps(facts, indent=2).encode())
    if pictures["x"].ndim == 4 and len(pictures["x"]):
        of.write("audit.png", plots.drift(pictures, own.bounds))
    print(json.dumps(facts))


def show(
    run: Directory, *, count: int = 8, weights: Weights = None, data_dir: Path | None = None
) -> None:
    """Draw a run's training curves, and test images with mask (if any) and perturbation.

    Args:
        run: Directory of the run; curves.png and sheet.png are written there.
        count: Images on the sheet.
        weights: As for evaluate.
        data_dir: Default: that of the training.
    """
    model, of = load_model(run, weights)
    config, _ = of.configs()
    engine = load_engine(of.settings["backend"])
    shown = engine.examples(model, _dataset(of, data_dir).measured, config, count=count)
    for name, picture in (
        ("curves.png", plots.curves(of.history())),
        ("sheet.png", plots.sheet(shown, config.bounds)),
    ):
        of.write(name, picture)
        print(of.directory / name)


def compare(runs: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """Set the evaluations of runs side by side, one row each.

    Args:
        runs: Directories of runs that ``spatlib evaluate`` has measured.
    """
    reports = {}
    for directory in runs:
        content = Run(directory, resume=True).read(EVALUATION)
        if content is None:
            raise spatlib.ConfigError(
                f"{directory} was not evaluated: run spatlib evaluate {directory}"
            )
        try:
            reports[str(directory)] = Report.from_json(json.loads(content))
        except (ValueError, KeyError, TypeError) as error:
            raise spatlib.DataError(
                f"{directory / EVALUATION} is no evaluation ({type(error).__name__}: {error}): "
                f"run spatlib evaluate {directory}"
            ) from error
    alike = {
        (r.config.norm, r.config.eps, r.config.bounds, r.count, r.restarts, tuple(r.metrics))
        for r in reports.values()
    }
    if len(alike) != 1:
        raise spatlib.ConfigError(
            f"runs must be measured alike (attacks, eps, examples), got {len(alike)} kinds of "
            "measurement: run spatlib evaluate on each with the same options"
        )
    if sys.stdout.isatty():
        print(table(reports, next(iter(reports.values()))))
    else:
        print(json.dumps({name: report.as_json() for name, report in reports.items()}))


def recipes() -> None:
    """List the recipes."""
    for name, recipe in RECIPES.items():
        c, t = recipe.config, recipe.training
        print(
            f"{name:18} {recipe.model:16} {c.norm} eps {c.eps:.4g}, {c.steps} steps; "
            f"{t.epochs} epochs, {t.schedule}; {recipe.source}"
        )


def _dataset(run: Run, data_dir: Path | None) -> Dataset:
    """The data of the run, cut as they were for its training."""
    saved, (_, training) = run.settings, run.configs()
    if saved["data"] is None:
        raise spatlib.ConfigError(
            f"run {run.directory} is on data of your own, which has no name to load it by: "
            "call spatlib.load_model and spatlib.evaluate"
        )
    engine = load_engine(saved["backend"])
    return read_data(saved["data"], engine, training, data_dir or saved["data_dir"])
