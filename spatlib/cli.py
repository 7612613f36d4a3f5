"""The command line: ``spatlib train | evaluate | audit | show | compare | recipes``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Any

import tyro

import spatlib

from . import commands
from .recipes import RECIPES
from .run import Run

FAILED, REFUSED, INTERRUPTED = 1, 2, 130  # exit codes: training broke down; bad input; Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    others = (commands.evaluate, commands.audit, commands.show, commands.compare, commands.recipes)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"train": _with_defaults(given), **{c.__name__: c for c in others}},
            prog="spatlib",
            description=spatlib.__doc__,
            args=given,
            config=(tyro.conf.OmitArgPrefixes,),
            registry=_registry(),
        )
    except spatlib.SpatlibError as error:
        print(f"spatlib: {error}", file=sys.stderr)
        return FAILED if isinstance(error, spatlib.NonFiniteError) else REFUSED
    except KeyboardInterrupt:
        print("spatlib: interrupted; a run directory can be resumed", file=sys.stderr)
        return INTERRUPTED
    return 0


def _with_defaults(given: Sequence[str]) -> Any:
    """The train command with the defaults of the recipe, or of the run to resume, in ``given``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "data", "run-dir"):
        parser.add_argument(f"--{name}", f"--{name.replace('-', '_')}")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_known_args(given)[0]
    if options.resume and options.run_dir:
        config, training = Run(options.run_dir, resume=True).configs()
        return partial(commands.train, config=config, training=training)
    name = options.recipe or (options.data if options.data in RECIPES else "digits")
    recipe = RECIPES.get(name, RECIPES["digits"])  # spatlib.train says what is wrong with another
    return partial(commands.train, recipe=name, config=recipe.config, training=recipe.training)


def _registry() -> tyro.constructors.ConstructorRegistry:
    """Numbers may be fractions: 8/255."""
    registry = tyro.constructors.ConstructorRegistry()

    def parse(text: list[str]) -> float:
        try:
            return float(Fraction(text[0]))
        except ZeroDivisionError:
            raise ValueError(f"{text[0]} divides by zero") from None

    @registry.primitive_rule
    def number(info: tyro.constructors.PrimitiveTypeInfo) -> Any:
        if info.type is not float:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER",
            instance_from_str=parse,
            is_instance=lambda value: isinstance(value, int | float),
            str_from_instance=lambda value: [f"{value:.6g}"],
        )

    return registry
