"""The command line: ``spatlib train | evaluate | audit | show | recipes``."""

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, Union, get_type_hints

import tyro

import spatlib

from . import RECIPES, Mask, SPATConfig, Threat, TrainConfig, plots
from .audit import compare_attacks
from .data import Dataset, as_dataset, is_pair, load_data
from .engines import engine_of, from_factory
from .errors import ConfigError, NonFiniteError, PeerError, SpatlibError, checked, require
from .evaluate import attacked_examples
from .runs import EVALUATION, KEPT, Run, load_model

DEFAULT = "digits"  # the recipe where none is named
OWN = ("model", "data")  # which a factory may make
NUMBERS = tyro.constructors.ConstructorRegistry()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: 1 if training broke down, 2 for bad input, 3 for files, 130 for Ctrl-C."""
    commands: Any = Train | Evaluate | Audit | Show | Recipes
    style = (tyro.conf.CascadeSubcommandArgs, tyro.conf.OmitSubcommandPrefixes)
    how: dict[str, Any] = {"prog": "spatlib", "description": spatlib.__doc__, "config": style}
    try:
        tyro.cli(commands, args=arguments, registry=NUMBERS, **how)()
        sys.stdout.flush()
    except SpatlibError as error:
        text = re.sub("(resume|overwrite)=True", r"--\1", str(error))
        if not isinstance(error, PeerError):
            print(f"spatlib: {text}", file=sys.stderr)
        return 1 if isinstance(error, NonFiniteError) else 2
    except OSError as error:
        if error.filename is None:  # that of the output, whose rest is dropped
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # which | head means
            what = f"{error.filename or 'the output'} cannot be read or written ({error.strerror})"
            print(f"spatlib: {what}: make room, or choose another place", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("spatlib: interrupted; a run directory can be resumed", file=sys.stderr)
        return 130
    return 0


@NUMBERS.primitive_rule
def _number(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
    """Numbers may be fractions, 8/255; the settings refuse by name what is no number."""

    def parse(given: list[str]) -> Any:
        upper, slash, lower = given[0].partition("/")
        with suppress(ValueError, ZeroDivisionError):
            return float(upper) / float(lower if slash else 1)
        return given[0]

    spec: Any = tyro.constructors.PrimitiveConstructorSpec
    number = spec(1, "NUMBER", parse, lambda v: isinstance(v, float), lambda v: [str(v)])
    return number if info.type is float else None


def _choices() -> Any:
    """The recipes as subcommands; their result is the settings that were given, by group."""
    choices = []
    for name, recipe in RECIPES.items():
        config, mask, training = recipe.config, recipe.config.mask or Mask(), recipe.training
        kinds = {"threat": (Threat, config), "attack": (SPATConfig, config), "mask": (Mask, mask)}
        groups: dict[str, Any] = {"recipe": tyro.conf.Suppress[str]}
        for group, (kind, values) in (kinds | {"training": (TrainConfig, training)}).items():
            hints, options = get_type_hints(kind) | {"mask": bool}, dict[str, Any]()
            for field in kind.__annotations__:  # without those of the class that it extends
                value = getattr(values, field)
                hint = f"(default: {f'{value:.6g}' if isinstance(value, float) else value})"
                options[field] = Annotated[hints[field], tyro.conf.arg(help_behavior_hint=hint)]
            typed: Any = TypedDict(kind.__name__, options, total=False)  # type: ignore[misc]
            typed.__doc__ = kind.__doc__  # has the help on each
            groups[group] = typed if kind is Mask else tyro.conf.OmitArgPrefixes[typed]
        given: Any = TypedDict(name, groups)  # type: ignore[misc]
        how: Any = {"default": {"recipe": name}, "is_default": name == DEFAULT}
        about = tyro.conf.subcommand(name, description=recipe.summary, **how)
        choices.append(Annotated[given, about])
    return Union[tuple(choices)]  # noqa: UP007


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a robust classifier: spatlib train [RECIPE] [OPTIONS]. A recipe has its own --help."""

    settings: Annotated[Any, tyro.conf.arg(name="", constructor_factory=_choices)]
    model: str | None = None  # Name, or factory package.module:name; default: the recipe's.
    data: str | None = None  # Name, path of a .npz file, or factory; default: the recipe's.
    data_dir: Path | None = None  # Where the files of named data are, or are downloaded to.
    limit: int | None = None  # Take the first so many examples, for training and for testing.
    backend: str | None = None  # torch (the default), tf, or one that a package registered.
    run_dir: str | None = None  # Directory for settings, metrics, weights, checkpoints, plots.
    resume: bool = False  # Go on with the run in run_dir (needs no other option), or begin one.
    overwrite: bool = False  # Delete the run in run_dir first.

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
        result = spatlib.train(model, data, **how, on_epoch=None if terminal else _say)
        if not terminal and os.environ.get("RANK", "0") == "0":
            _say(_of(result, "metrics", "measured_on"))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A run whose network is looked at."""

    run: tyro.conf.Positional[Path]  # Directory of the run; the results are written there too.
    weights: Literal["best", "ema", "last"] | None = None  # Default: the first that there are.
    model: str | None = None  # Factory package.module:name of the network, if that was your own.
    data: str | None = None  # Name, path or factory; default: as in the training, unless your own.
    data_dir: Path | None = None  # Where the files of the data are; default: as in the training.
    eps: float | None = None  # Radius; default: that of the training.
    steps: int | None = None  # Steps of each attack; default: that of the training.
    seed: int = 0  # Fixes starts and masks.

    def open(self) -> tuple[Any, Run, SPATConfig, Dataset]:
        """The network, its run, the attack, and the data."""
        for name, least in {"seed": 0, "count": 1, "examples": 1, "shown": 0}.items():
            checked(name, getattr(self, name, least), least)
        own, data = (from_factory(name, getattr(self, name), self.seed) for name in OWN)
        model, run = load_model(self.run, self.weights, own)
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
    """Measure a run's network, clean and under attack, on the test data if there are any."""

    # Any of pgd, margin, targeted, apgd-ce, apgd-t, apgd, autoattack; default: as in Python.
    attacks: tuple[str, ...] | None = None
    steps: int = 20  # Steps of each attack.
    restarts: int = 1  # Random restarts of each attack.
    batch_size: int = 256  # Examples per pass.
    device: str | None = None  # Default: the CPU.
    limit: int | None = None  # Measure the first so many; default: as many as after the training.
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
        facts = report.as_json() | {"weights": self.weights, "seed": self.seed, "measured_on": part}
        _say(facts, f"{report}\n{part} data")
        run.write(EVALUATION, json.dumps(facts, indent=2).encode())
        if self.keep:
            run.write(KEPT, report.as_npz())


@dataclass(frozen=True, kw_only=True)
class Audit(Trained):
    """Ask another run's network how far this run's training attack and plain PGD move the meaning.

    Both have its eps and steps. Success is the share of its correct examples that an attack fools:
    a weaker one must not be mistaken for one that keeps the meaning.
    """

    judge: Path  # Directory of a run of another seed on the same data, adversarially trained.
    judge_model: str | None = None  # Factory of its network, if that was your own.
    examples: int = 256  # Attack the first so many, of the test data if there are any.
    ssim: bool = False  # Measure the structural similarity too (needs scikit-image).
    shown: int = 6  # Pictures of the examples that drifted most.

    def __call__(self) -> None:
        if self.run.resolve() == self.judge.resolve():
            raise ConfigError(f"judge is the run itself, {self.run}: train another with --seed")
        model, run, config, data = self.open()
        built = from_factory("judge_model", self.judge_model, self.seed)
        judge, other = load_model(self.judge, self.weights, built)
        its, own = ((r.settings["data"] or {}).get("name") for r in (other, run))
        if its != own:
            raise ConfigError(f"judge learnt {its}, the run {own}: train a judge on the same data")
        how = _of(self, "shown", "seed", "ssim", count="examples")
        found, pictures = compare_attacks((model, judge), data.measured, config, **how)
        facts = {"judge": str(self.judge), **_of(config, "eps", "norm", "steps"), "attacks": found}
        _say(facts)
        run.write("audit.json", json.dumps(facts, indent=2).encode())
        if pictures["x"].ndim == 4 and len(pictures["x"]):
            run.write("audit.png", plots.drift(pictures, config.bounds))


@dataclass(frozen=True, kw_only=True)
class Show(Trained):
    """Draw a run's training curves, and test images with mask (if any) and perturbation."""

    count: int = 8  # Images on the sheet.

    def __call__(self) -> None:
        net, run, config, data = self.open()
        shown = attacked_examples(engine_of(net), net, data.measured, config, self.count, self.seed)
        run.write("curves.png", plots.curves(run.history()))
        run.write("sheet.png", plots.sheet(shown, config.bounds))
        print(run.directory / "curves.png", run.directory / "sheet.png", sep="\n")


@dataclass(frozen=True)
class Recipes:
    """List the recipes."""

    def __call__(self) -> None:
        print(*(f"{name:18} {recipe.summary}" for name, recipe in RECIPES.items()), sep="\n")


def _say(facts: dict[str, Any], text: str | None = None) -> None:
    """Print the text, if there is one, in a terminal, the facts as JSON elsewhere."""
    print(text if text and sys.stdout.isatty() else json.dumps(facts), flush=True)


def _loaded(data: Any, source: dict[str, Any], place: dict[str, Any]) -> Any:
    """What a factory returned, or data by name, ``source`` but for what ``place`` says."""
    if data is None or isinstance(data, str):
        return load_data(**source | place)
    others = [name for name in place if name != "name"]
    require(not others, "data", "be a name beside data_dir or limit, not a factory", others)
    return data


def _of(owner: Any, *names: str, **renamed: str) -> dict[str, Any]:
    """The attributes of these names, some under other names, that are not None."""
    values = {name: getattr(owner, of) for name, of in ({n: n for n in names} | renamed).items()}
    return {name: value for name, value in values.items() if value is not None}
