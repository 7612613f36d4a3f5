"""The command line: ``spatlib train | evaluate | audit | show | recipes``."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import join
from textwrap import fill
from typing import Annotated, Any, Literal, cast

import tyro

import spatlib

from . import RECIPES, Mask, SPATConfig, plots
from .audit import compare_attacks
from .config import STANDARD
from .data import Dataset, as_dataset, is_pair, load_data
from .engines import engine_of, from_factory
from .errors import ConfigError, NonFiniteError, PeerError, SpatlibError, checked, require
from .evaluate import attacked_examples
from .monitor import CLEAN, ROBUST, best_epoch
from .options import DEFAULT, NUMBERS, Maybe, named, recipes, renamed
from .page import page
from .recipes import NETWORKS
from .report import audit_table, evaluation, evaluation_table
from .runs import AUDIT, CURVES, DRIFT, EVALUATION, KEPT, PAGE, SHEET, Run, load_model

OWN = ("model", "data")  # which a factory may make
MODEL = f"One of {', '.join(NETWORKS)}, or factory package.module:name; default: the recipe's."
ABOUT = "Semantics-preserving adversarial training: train and measure classifiers."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 1 if training broke down, 2 for bad input, 3 for files, 130 for Ctrl-C."""
    style = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes)
    how: Any = {"prog": "spatlib", "description": ABOUT, "config": style, "registry": NUMBERS}
    commands, command = cast(Any, Train | Evaluate | Audit | Show | Recipes), cast(Any, None)
    given = [*(sys.argv[1:] if arguments is None else arguments)]
    if given[:1] == ["train"] and given[1:2] != ["--help"] and "".join(given[1:2]).startswith("--"):
        given.insert(1, DEFAULT)  # else tyro knows its options, but not --no-baseline and the like
    try:
        command = tyro.cli(commands, args=given, **how)
        command()
        sys.stdout.flush()
    except SpatlibError as error:
        if not isinstance(error, PeerError):
            print(f"spatlib: {named(str(error), command)}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteError) else 2
    except OSError as error:
        if error.filename is None:  # that of the output, whose rest is dropped
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # which | head means
            what = f"{error.filename or 'the output'} cannot be read or written ({error.strerror})"
            print(f"spatlib: {what}: make room, or choose another place", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("spatlib: interrupted; with --run-dir it goes on by --resume", file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a robust classifier by a recipe, then options (each has its own --help)."""

    settings: Annotated[Any, tyro.conf.arg(name="", constructor_factory=recipes)]
    model: Annotated[Maybe[str], tyro.conf.arg(help=MODEL)] = None
    data: Maybe[str] = None  # digits, mnist, cifar10, cifar100, .npz or factory; else the recipe's.
    data_dir: Maybe[Path] = None  # Where the files of named data are, or are downloaded to.
    limit: Maybe[int] = None  # Take the first so many examples, for training and for testing.
    backend: Maybe[str] = None  # torch (the default), tf, or one that a package registered.
    run_dir: Maybe[str] = None  # Keep settings, metrics, weights, checkpoints and plots there.
    resume: bool = False  # Go on with the run in --run-dir (no other option needed), or begin one.
    overwrite: bool = False  # Delete the run in --run-dir first.

    def __call__(self) -> None:
        groups, terminal = self.settings, sys.stdout.isatty()
        recipe, mask = RECIPES[groups["recipe"]], groups["mask"]
        given = groups["threat"] | groups["attack"] | groups["training"]
        source, alone = {"name": recipe.data}, False
        if self.resume and self.run_dir and (run := Run(self.run_dir, resume=True)).resumed:
            source, alone = run.settings["data"] or source, groups["recipe"] == DEFAULT
            if alone:  # what is not given is as in the run
                config, training = run.configs()
                recipe = replace(recipe, config=config, training=training)
        elif "eps" not in given:
            for name, its in (_of(recipe, "data") | _of(recipe.config, "norm", "bounds")).items():
                asked = (given | _of(self, "data")).get(name, its)
                what = f"be {its}, which the recipe's eps is for (pass --eps, or another recipe)"
                require(asked == its, name, what, asked)
        on = given.get("mask", bool(recipe.config.mask or mask))
        require(on or not mask, "mask", f"be on for its {', '.join(mask)} (drop --no-mask)", on)
        given["mask"] = replace(recipe.config.mask or Mask(), **mask) if on else None
        given["progress"] = terminal and given.get("progress", recipe.training.progress)
        recipe = recipe.change(**given)
        model, data = (from_factory(n, getattr(self, n), recipe.training.seed) for n in OWN)
        place = _of(self, name="data", dir="data_dir", limit="limit")
        data = _loaded(data, source, place) if place else None
        how = _of(recipe, "config", "training") if alone else {"recipe": recipe}
        how |= _of(self, "backend", "run_dir", "resume", "overwrite")
        speaks = os.environ.get("RANK", "0") == "0"
        if self.run_dir is None and speaks:
            what = "the network will not be kept: pass --run-dir DIRECTORY to keep it"
            print(f"spatlib: {what}", file=sys.stderr, flush=True)
        result = spatlib.train(model, data, **how, on_epoch=None if terminal else _say)
        if not terminal and speaks:
            _say(_of(result, "metrics", "measured_on"))
        elif self.run_dir is not None and speaks:
            own = [f"--{name}={v}" for name, v in _of(self, *OWN).items() if ":" in v]
            look = join(("spatlib", "show", self.run_dir, *own, "--html"))
            print(f"kept in {self.run_dir}: look at it by {look}")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run whose network is looked at."""

    # Directory of the run; the results are written there too.
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    weights: Maybe[Literal["best", "ema", "last"]] = None  # Default: the first that there are.
    model: Maybe[str] = None  # Factory package.module:name of the network, if that was your own.
    data: Maybe[str] = None  # Name, path or factory; default: as in the training, unless your own.
    data_dir: Maybe[Path] = None  # Where the files of the data are; default: as in the training.
    eps: Maybe[float] = None  # Radius; default: that of the training.
    steps: Maybe[int] = None  # Steps of each attack; default: that of the training.
    seed: int = 0  # Fixes starts and masks.

    def network(self, place: str, factory: str) -> tuple[Any, Run]:
        """The network of the run in this option, made by that factory if it was the user's own."""
        own = from_factory(factory, getattr(self, factory), self.seed)
        require(not isinstance(own, str), factory, "name a factory, package.module:name", own)
        with renamed(run_dir="RUN" if place == "run" else place, model=factory):
            return load_model(getattr(self, place), self.weights, own)

    def open(self) -> tuple[Any, Run, SPATConfig, Dataset]:
        """The network, its run, the attack, and the data."""
        for name, least in {"seed": 0, "count": 1, "examples": 1, "shown": 0}.items():
            value = checked(name, getattr(self, name, least), least)
            small = value <= 100 or name not in ("count", "shown")  # the rows of a picture
            require(small, name, "be at most 100", value)
        model, run = self.network("run", "model")
        data = from_factory("data", self.data, self.seed)
        source, (config, training) = run.settings["data"], run.configs()
        what = f"be given for the run in {self.run}, whose data were your own"
        require(data is not None or bool(source), "data", what, data)
        if changed := _of(self, "eps", "steps"):
            config = replace(config, step_size=None, **changed)  # which follows them
        whole = _loaded(data, source or {}, _of(self, name="data", dir="data_dir"))
        first, held = engine_of(model).CHANNELS_FIRST, (training.validation, training.seed)
        return model, run, config, as_dataset(whole, first, *held)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Trained):
    """Measure a run's network, clean and under attack, on test data if there are any."""

    # Of pgd, margin, targeted, apgd-ce, apgd-t, apgd, autoattack; else pgd, margin (L2: apgd too).
    attacks: Annotated[Maybe[tuple[str, ...]], tyro.conf.arg(metavar="ATTACK ...")] = None
    steps: int = 20  # Steps of each attack.
    restarts: int = 1  # Random restarts of each attack.
    batch_size: int = 256  # Examples per pass.
    device: Maybe[str] = None  # Default: the CPU.
    limit: Maybe[int] = None  # Measure the first so many; default: as many as after the training.
    worst_only: bool = False  # Attack with each what all before it left: the worst figure, sooner.
    keep: bool = False  # Write who is right and the perturbed inputs to evaluation.npz.

    def __call__(self) -> None:
        model, run, threat, data = self.open()
        part, measured = "training" if data.test is None else "test", data.measured
        if self.limit is not None:
            require(is_pair(measured), "limit", "be left out for data in batches", self.limit)
            measured = tuple(v[: checked("limit", self.limit, 1)] for v in measured)
        how = _of(self, "attacks", "steps", "restarts", "batch_size", "seed", "device")
        how |= {"keep": self.keep, "worst_only": self.worst_only}
        report = spatlib.evaluate(model, measured, threat, **how)
        how = {"weights": self.weights, "seed": self.seed}
        facts = evaluation(run.settings.get("network", threat.method), report, part, {}, **how)
        _say(facts, evaluation_table(facts))
        _write(run, EVALUATION, json.dumps(facts, indent=2).encode())
        if self.keep:
            _write(run, KEPT, report.as_npz())


@dataclass(frozen=True, kw_only=True)
class Audit(Trained):
    """Ask the network of another run how far attacks on this one move the meaning."""

    judge: Path  # Directory of a run of another seed on the same data, adversarially trained.
    judge_model: Maybe[str] = None  # Factory of its network, if that was your own.
    examples: int = 256  # Attack the first so many (of batches the first), of test data if any.
    ssim: bool = False  # Measure the structural similarity too (needs scikit-image).
    shown: int = 6  # Pictures of the examples that drifted most.

    def __call__(self) -> None:
        if self.run.resolve() == self.judge.resolve():
            raise ConfigError(f"judge is the run itself, {self.run}: train another with --seed")
        model, run, config, data = self.open()
        judge, other = self.network("judge", "judge_model")
        its, own = ((r.settings["data"] or {}).get("name") for r in (other, run))
        require(its == own, "judge", f"be trained on the same data, {own}", its)
        how = _of(self, "shown", "seed", "ssim", count="examples")
        found, (y, columns) = compare_attacks((model, judge), data.measured, config, **how)
        facts = {"judge": str(self.judge), **_of(config, "eps", "norm", "steps"), "attacks": found}
        _say(facts, audit_table(facts))
        _write(run, AUDIT, json.dumps(facts, indent=2).encode())
        (run.directory / DRIFT).unlink(missing_ok=True)  # of another audit
        if len(y) and columns[0][1].ndim == 4:
            _write(run, DRIFT, plots.drift(y, columns, config.bounds, data.class_names))


@dataclass(frozen=True, kw_only=True)
class Show(Trained):
    """Draw a run's training curves, and images with mask (if any) and perturbation."""

    count: int = 8  # Images on the sheet.
    html: bool = False  # Write report.html too: settings, pictures, evaluation, audit on one page.

    def __call__(self) -> None:
        net, run, config, data = self.open()
        shown = attacked_examples(engine_of(net), net, data.measured, config, self.count, self.seed)
        history, ordinary = run.history(), run.settings.get("network") == STANDARD
        best = best_epoch(history, CLEAN if ordinary else ROBUST)
        _write(run, CURVES, plots.curves(history, config, best), True)
        if shown["x"].ndim == 4:
            _write(run, SHEET, plots.sheet(shown, config.bounds, data.class_names), True)
        if self.html:
            _write(run, PAGE, page(run), True)


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""

    def __call__(self) -> None:
        wide = 80 if sys.stdout.isatty() else 1000
        for name, recipe in RECIPES.items():
            print(fill(f"{name:18} {recipe.summary}", wide, subsequent_indent=19 * " "))


def _write(run: Run, name: str, content: bytes, always: bool = False) -> None:
    """Write a file of the run, and in a terminal its name."""
    run.write(name, content)
    if always or sys.stdout.isatty():
        print(run.directory / name)


def _say(facts: dict[str, Any], text: object = None) -> None:
    """Print the text, if there is one, in a terminal, the facts as JSON elsewhere."""
    print(text if text and sys.stdout.isatty() else json.dumps(facts), flush=True)


def _loaded(data: Any, source: dict[str, Any], place: dict[str, Any]) -> Any:
    """What a factory returned, or data by name, ``source`` but for what ``place`` says."""
    if data is None or isinstance(data, str):
        return load_data(**source | place)
    others = [name for name in place if name != "name"]
    require(not others, "data", "be a name beside --data-dir or --limit, not a factory", others)
    return data


def _of(owner: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The attributes of these names, some under other names, that are not None."""
    values = {name: getattr(owner, of) for name, of in ({n: n for n in names} | renamed).items()}
    return {name: value for name, value in values.items() if value is not None}
