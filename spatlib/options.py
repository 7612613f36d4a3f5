"""The settings as options of the command line, and options in the place of their names."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from typing import Annotated, Any, TypedDict, TypeVar, Union, get_type_hints

import tyro

from .config import Mask, SPATConfig, Threat, TrainConfig
from .data import load_data
from .errors import ConfigError, SpatlibError, require
from .recipes import RECIPES, Recipe

DEFAULT = "digits"  # the recipe where none is named
# After them a recipe's name is a value.
TEXTS = ("--model", "--data", "--data-dir", "--data_dir", "--run-dir", "--run_dir")
NUMBERS = tyro.constructors.ConstructorRegistry()
SETTINGS = {each.name: each.name for kind in (SPATConfig, TrainConfig) for each in fields(kind)}
NAME = r"(?<![\w./'-])([a-z]\w+)(=True|=False| must|)(?![\w./'-])"  # in no path
SETTINGS |= {each.name: f"mask.{each.name}" for each in fields(Mask)}
T = TypeVar("T")
Maybe = Annotated[T | None, tyro.conf.arg(help_behavior_hint="")]  # the help says what is in force


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


def ordered(words: list[str]) -> list[str]:
    """With the recipe of ``train`` first: tyro takes options before it for the default's."""
    first = "".join(words[1:2])  # of a misspelled recipe tyro says which there are
    if words[:1] == ["train"] and first[:1] == "-" and words[1:] not in (["--help"], ["-h"]):
        places = [k for k, v in enumerate(words) if v in RECIPES and words[k - 1] not in TEXTS]
        words.insert(1, words.pop(places[0]) if places else DEFAULT)
    return words


def recipes() -> Any:
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
                value = bool(value) if hints[field] is bool else value  # whether there is a mask
                hint = f"(default: {f'{value:.6g}' if isinstance(value, float) else value})"
                options[field] = Annotated[hints[field], tyro.conf.arg(help_behavior_hint=hint)]
            typed: Any = TypedDict(kind.__name__, options, total=False)  # type: ignore[misc]
            typed.__doc__ = str(kind.__doc__).replace("``", "")  # has the help on each
            groups[group] = typed if kind is Mask else tyro.conf.OmitArgPrefixes[typed]
        given: Any = TypedDict(name, groups)  # type: ignore[misc]
        how: Any = {"default": {"recipe": name}, "is_default": name == DEFAULT}
        about = tyro.conf.subcommand(name, description=recipe.summary, **how)
        choices.append(Annotated[given, about])
    return Union[tuple(choices)]  # noqa: UP007


def changed(recipe: Recipe, groups: dict[str, Any]) -> Recipe:
    """The recipe with the settings that were given."""
    mask, before = groups["mask"], recipe.config.mask
    settings = groups["threat"] | groups["attack"] | groups["training"]
    on = settings.get("mask", bool(before or mask))
    require(on or not mask, "mask", f"be on for its {', '.join(mask)} (drop --no-mask)", on)
    settings["mask"] = replace(before or Mask(), **mask) if on else None
    return recipe.change(**settings)


def given(owner: Any, *names: str) -> dict[str, Any]:
    """The attributes of these names that are not None."""
    return {name: value for name in names if (value := getattr(owner, name)) is not None}


def loaded(data: Any, source: dict[str, Any], **place: Any) -> Any:
    """What a factory returned, or data by name: ``source`` but for what is given here."""
    by_name = data is None or isinstance(data, str)
    place["name"] = data if by_name else None
    changes = {name: value for name, value in place.items() if value is not None}
    what = "be a name beside --data-dir or --limit, not a factory"
    require(by_name or not changes, "data", what, [*changes])
    return load_data(**source | changes) if by_name else data


@contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Errors inside are of these settings, which the command has under other names."""
    try:
        yield
    except SpatlibError as error:
        text = re.sub(NAME, lambda found: names.get(found[1], found[1]) + found[2], str(error))
        raise ConfigError(text) from error


def named(text: str, command: Any) -> str:
    """An error with the options of the command in the place of the names in Python."""

    def option(found: re.Match[str]) -> str:
        name, rest = found.groups()
        settings = SETTINGS if hasattr(command, "settings") else {}
        known = name if hasattr(command, name) else settings.get(name)
        if known is None or not ("_" in name or rest):
            return found[0]
        return "--" + "no-" * (rest == "=False") + known.replace("_", "-") + rest.split("=")[0]

    return re.sub(NAME, option, text)
