"""Published settings of adversarial training by data set, and the networks by name."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

from .config import Mask, SPATConfig, TrainConfig
from .errors import ConfigError, checked, require

Shape = Sequence[int]
Numbers = Sequence[float] | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What :func:`spatlib.train` uses for the arguments that are left out."""

    data: str | None  # name of the data set; None: your own
    model: str | None  # name of the network, in both engines; None: your own
    config: SPATConfig
    training: TrainConfig
    mean: tuple[float, ...] | None = None  # per channel, for the network's first layer
    std: tuple[float, ...] | None = None
    source: str  # of the threat model and the schedule; the method is ours

    @property
    def summary(self) -> str:
        """In one line."""
        c, t, model = self.config, self.training, self.model or "your own"
        attack = f"{c.norm} eps {c.eps:.4g}, {c.steps} steps"
        return f"{model:16} {attack}; {t.epochs} epochs, {t.schedule}; {self.source}"

    def change(self, **settings: Any) -> "Recipe":
        """The recipe with other settings: fields of its config, its training, or its own.

        ``RECIPES["mnist"].change(steps=20, epochs=5)`` keeps all else, validation and warm-up too
        (which ends one epoch before the training at the latest). Raises ConfigError for a setting
        that none of them has, or a value out of its range.
        """
        kinds = [[f.name for f in fields(kind)] for kind in (SPATConfig, TrainConfig, Recipe)]
        names = [name for kind in kinds for name in kind]
        for name in [n for n in settings if n not in names]:
            near = "".join(f", perhaps {n}" for n in difflib.get_close_matches(name, names, 1))
            known = "one of SPATConfig, TrainConfig or Recipe"
            raise ConfigError(f"{name} is no setting of a recipe: name {known}{near}")
        epochs, warmup = settings.get("epochs"), self.training.eps_warmup
        if isinstance(epochs, int) and 0 < epochs <= warmup:
            settings = {"eps_warmup": epochs - 1} | settings
        attack, plan, own = ({n: settings[n] for n in kind if n in settings} for kind in kinds)
        config, training = replace(self.config, **attack), replace(self.training, **plan)
        return replace(replace(self, config=config, training=training), **own)


def find_recipe(recipe: Any, data: Any) -> Recipe | None:
    """The recipe asked for, itself or by name; else that of the data, by default the digits."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe is not None:
        return RECIPES[checked("recipe", recipe, tuple(RECIPES))]
    name = "digits" if data is None else getattr(data, "source", None) or data
    name = name.get("name") if isinstance(name, dict) else name
    return RECIPES.get(name) if isinstance(name, str) else None


PIECEWISE = TrainConfig(epochs=100, schedule="piecewise", validation=1000)


def _cifar(data: str, **normalisation: Any) -> dict[str, Recipe]:
    """Attack (step size 2/255) and SGD of arXiv:2002.11569.

    Piecewise is a tenth at epochs 75 and 90, as in the code of TRADES (theirs: 100 and 150 of 200).
    Of onecycle, peak and form are those of arXiv:2001.03994, the number of epochs is ours.
    """
    recipe = Recipe(
        data=data,
        model="preact_resnet18",
        config=SPATConfig(eps=8 / 255, steps=10),
        training=replace(PIECEWISE, augment="crop-flip", precision="auto"),
        source="arXiv:2002.11569, 1901.08573",
        **normalisation,
    )
    source, wide = "arXiv:2002.11569, 2001.03994", replace(recipe, model="wrn34_10")
    quick = recipe.change(epochs=30, lr=0.2, schedule="onecycle", source=source)
    return {data: recipe, f"{data}-onecycle": quick, f"{data}-wrn": wide}


RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        data="digits",
        model="small_cnn",
        config=SPATConfig(eps=0.15),
        training=TrainConfig(epochs=30, batch_size=64, lr=0.05, baseline=True),
        source="ours",
    ),
    # Threat model and attack of arXiv:1706.06083; SGD without decay as in the code of TRADES; the
    # mask instead of the smoothing by docs/evidence.md.
    "mnist": Recipe(
        data="mnist",
        model="mnist_cnn",
        config=SPATConfig(eps=0.3, step_size=0.01, steps=40, smoothing=0.0, mask=Mask()),
        training=replace(PIECEWISE, lr=0.01, weight_decay=0, eps_warmup=5),
        source="arXiv:1706.06083, 1901.08573",
    ),
    **_cifar("cifar10", mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)),
    **_cifar("cifar100", mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)),
    # For a ResNet-50: threat model, attack (step size 2/3 eps) and SGD of arXiv:2007.08489, batches
    # and decay as in its library, robustness; the cosine, for steps there, of arXiv:1812.01187.
    "imagenet": Recipe(
        data=None,
        model=None,
        config=SPATConfig(eps=4 / 255, step_size=8 / 3 / 255, steps=3),
        training=TrainConfig(epochs=90, batch_size=256, weight_decay=1e-4, schedule="cosine"),
        source="arXiv:2007.08489, 1812.01187",
    ),
}


class Layout(NamedTuple):
    """The layers between normalisation and logits. Weights begin uniform in +-1 / sqrt(fan_in).

    A layer is one of

    - ``("conv", channels, padding)``: 3 x 3 convolution, ReLU;
    - ``("pool",)``: 2 x 2 max-pooling; ``("flatten",)``; ``("dense", units)``: linear, ReLU;
    - ``("stem", channels)``: 3 x 3 convolution, padding 1, no bias;
    - ``("block", channels, stride)``: BatchNorm, ReLU, 3 x 3 convolution, twice, added to the
      input (arXiv:1603.05027, fig. 1b) or, where the shape changes, to a 1 x 1 convolution of its
      activation;
    - ``("mean",)``: BatchNorm, ReLU, mean over the pixels.
    """

    layers: list[tuple[Any, ...]]
    least: int = 1  # pixels per side
    he: bool = True  # convolutions begin normal, variance 2 / fan_out (He et al. 2015), biases at 0

    def check(self, shape: Shape, classes: int, mean: Any, std: Any, channels_first: bool) -> None:
        """ConfigError unless there is such a network for images of this shape."""
        checked("classes", classes, 2)
        sides, axis = (shape[1:], 0) if channels_first else (shape[:-1], -1)
        layout, n = "(C, H, W)" if channels_first else "(H, W, C)", self.least
        what = f"be {layout}, a channel axis and at least {n} x {n} pixels"
        require(len(shape) == 3 and min(sides) >= n, "shape", what, tuple(shape))
        what = f"be {shape[axis]} numbers, one per channel (those of these data, or None for both)"
        for name, values in (("mean", mean), ("std", std)):
            if mean is not None or std is not None:
                valid = isinstance(values, tuple | list) and len(values) == shape[axis]
                require(valid, name, what, values)
                for value in values:
                    checked(name, value, "(0, inf)" if name == "std" else "(-inf, inf)")


def small_cnn() -> Layout:
    """Two convolutions, pooling, a hidden layer; 151,306 parameters for the digits."""
    convolutions = [("conv", 32, 1), ("conv", 64, 1)]
    return Layout([*convolutions, ("pool",), ("flatten",), ("dense", 128)], least=2, he=False)


def mnist_cnn() -> Layout:
    """The CNN of TRADES (arXiv:1901.08573, and its code) without dropout; 312,202 for MNIST."""
    convolutions = [*[("conv", 32, 0)] * 2, ("pool",), *[("conv", 64, 0)] * 2, ("pool",)]
    return Layout([*convolutions, ("flatten",), ("dense", 200), ("dense", 200)], least=16)


def preact_resnet(widths: Any = (64, 128, 256, 512), blocks: Any = 2, stem: Any = 64) -> Layout:
    """Pre-activation residual network for small images (He et al. 2016, arXiv:1603.05027).

    It has ``blocks`` blocks per entry of ``widths``, with stride 2 at the start of all but the
    first. The default is PreActResNet-18: 11,172,170 parameters for 3 channels and 10 classes.
    """
    valid = isinstance(widths, tuple | list) and len(widths) > 0
    require(valid, "widths", "be the channels of each stage, as in (64, 128, 256, 512)", widths)
    for name, value in (("blocks", blocks), ("stem", stem), *(("widths", w) for w in widths)):
        checked(name, value, 1)
    sizes = [(w, 2 if i and not n else 1) for i, w in enumerate(widths) for n in range(blocks)]
    return Layout([("stem", stem), *(("block", *size) for size in sizes), ("mean",)])


def wide_resnet(depth: Any = 34, width: Any = 10) -> Layout:
    """WRN-depth-width (arXiv:1605.07146, table 1) without dropout; 34-10: 46,160,474 parameters."""
    checked("width", width, 1)
    checked("depth", depth, 10)
    require(depth % 6 == 4, "depth", "be 6 n + 4 for n blocks per stage (10, 16, 22, ...)", depth)
    return preact_resnet((16 * width, 32 * width, 64 * width), (depth - 4) // 6, stem=16)


NETWORKS: dict[str, Callable[..., Layout]] = {
    "small_cnn": small_cnn,
    "mnist_cnn": mnist_cnn,
    "preact_resnet18": preact_resnet,
    "preact_resnet18_narrow": partial(preact_resnet, (16, 32, 64, 128), stem=16),  # for CPUs
    "wrn34_10": wide_resnet,
}
