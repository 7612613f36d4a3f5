"""Published settings of adversarial training, by data set."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields, replace
from typing import Any

from .config import Mask, SPATConfig
from .errors import ConfigError, require_choice
from .training import TrainConfig

OWNERS = {field.name: "config" for field in fields(SPATConfig)}
OWNERS |= {field.name: "training" for field in fields(TrainConfig)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What :func:`spatlib.train` uses for the arguments that are left out.

    Attributes:
        data: Name of the data set.
        model: Name of the network, in both engines.
        config, training: Threat model and method; schedule.
        mean, std: Per channel, for the normalisation in the network's first layer; or None.
        source: Where the threat model and the schedule are from. The method is ours.
    """

    data: str
    model: str
    config: SPATConfig
    training: TrainConfig
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    source: str

    def change(self, **settings: Any) -> Recipe:
        """The recipe with other settings: fields of its config, its training, or its own.

        ``RECIPES["mnist"].change(steps=20, epochs=5)`` keeps all else, validation and warm-up too
        (which ends one epoch before the training at the latest).

        Raises:
            ConfigError: A setting that none of them has, or a value out of its range.
        """
        own = [field.name for field in fields(Recipe)]
        parts = dict[str, dict[str, Any]](config={}, training={}, own={})
        for name, value in settings.items():
            owner = "own" if name in own else OWNERS.get(name)
            if owner is None:
                near = difflib.get_close_matches(name, [*OWNERS, *own], 1)
                raise ConfigError(
                    f"{name} is no setting of a recipe: name one of SPATConfig, TrainConfig or "
                    f"Recipe{f', perhaps {near[0]}' if near else ''}"
                )
            parts[owner][name] = value
        epochs, warmup = settings.get("epochs"), self.training.eps_warmup
        if isinstance(epochs, int) and 0 < epochs <= warmup:
            parts["training"].setdefault("eps_warmup", epochs - 1)
        config = replace(self.config, **parts["config"])
        training = replace(self.training, **parts["training"])
        changed: Recipe = replace(replace(self, config=config, training=training), **parts["own"])
        return changed


def find_recipe(recipe: Any, data: Any) -> Recipe | None:
    """The recipe asked for, by itself or by name; else that of the data's name, if it has one.

    Without any data that of the digits.

    Raises:
        ConfigError: No recipe of this name.
    """
    if recipe is None:
        name = "digits" if data is None else getattr(data, "source", None) or data
        name = name["name"] if isinstance(name, dict) else name
        return RECIPES.get(name) if isinstance(name, str) else None
    if isinstance(recipe, Recipe):
        return recipe
    require_choice("recipe", recipe, RECIPES)
    return RECIPES[recipe]


_DIGITS = Recipe(
    data="digits",
    model="small_cnn",
    config=SPATConfig(eps=0.15),
    training=TrainConfig(epochs=30, batch_size=64, lr=0.05, baseline=True),
    source="ours",
)
_MNIST = Recipe(
    data="mnist",
    model="mnist_cnn",
    # Threat model and attack of arXiv:1706.06083; SGD without decay as in the code of TRADES. The
    # mask instead of the smoothing by docs/evidence.md.
    config=SPATConfig(eps=0.3, step_size=0.01, steps=40, smoothing=0.0, mask=Mask()),
    training=TrainConfig(
        epochs=100, lr=0.01, weight_decay=0, schedule="piecewise", eps_warmup=5, validation=1000
    ),
    source="arXiv:1706.06083, 1901.08573",
)
# Attack (step size 2/255) and SGD of arXiv:2002.11569. Piecewise here is a tenth at epochs 75 and
# 90, as in the code of TRADES (theirs: 100 and 150 of 200).
_CIFAR10 = Recipe(
    data="cifar10",
    model="preact_resnet18",
    config=SPATConfig(eps=8 / 255, steps=10),
    training=TrainConfig(epochs=100, schedule="piecewise", augment="crop-flip", validation=1000),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2471, 0.2435, 0.2616),
    source="arXiv:2002.11569, 1901.08573",
)
_CIFAR100 = replace(
    _CIFAR10, data="cifar100", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
)
# Peak and form of the rate are those of arXiv:2001.03994; the number of epochs is ours.
_ONECYCLE: dict[str, Any] = {
    "training": TrainConfig(epochs=30, lr=0.2, augment="crop-flip", validation=1000),
    "source": "arXiv:2002.11569, 2001.03994",
}

RECIPES: dict[str, Recipe] = {
    "digits": _DIGITS,
    "mnist": _MNIST,
    "cifar10": _CIFAR10,
    "cifar10-onecycle": replace(_CIFAR10, **_ONECYCLE),
    "cifar10-wrn": replace(_CIFAR10, model="wrn34_10"),
    "cifar100": _CIFAR100,
    "cifar100-onecycle": replace(_CIFAR100, **_ONECYCLE),
    "cifar100-wrn": replace(_CIFAR100, model="wrn34_10"),
}
