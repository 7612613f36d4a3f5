"""The model of a run, with its weights."""

from __future__ import annotations

import os
from typing import Any

from .arguments import check_choice
from .backends import load_engine
from .errors import ConfigError
from .run import BEST, EMA, LAST, Run

WEIGHTS = {"best": BEST, "ema": EMA, "last": LAST}


def load_model(run_dir: str | os.PathLike[str], weights: str | None = None) -> tuple[Any, Run]:
    """Build the network of a run and put its weights in.

    Args:
        run_dir: Directory of a run of a network that spatlib built, by name.
        weights: ``"best"`` (of the best robust validation accuracy), ``"ema"`` (averaged) or
            ``"last"``; default: the first of these that there is.

    Returns:
        The network, on the CPU, and the run.

    Raises:
        ConfigError: No run, no such weights, or a network of the user's own.
        DataError: The file is damaged.
    """
    run = Run(run_dir, resume=True)
    if weights is not None:
        check_choice("weights", weights, WEIGHTS)
    there = [name for name, file in WEIGHTS.items() if (run.directory / file).exists()]
    name = weights or (there[0] if there else "last")
    if name not in there:
        raise ConfigError(
            "weights",
            expected=f"one of {there} in {run.directory}",
            received=name,
            fix="Let the first epoch finish, or choose one of these.",
        )
    architecture = run.settings["architecture"]
    if not architecture:
        raise ConfigError(
            "run_dir",
            expected="a run of a network that spatlib built by name",
            received="one of your own",
            fix="Build it yourself, and call the engine's load_weights.",
        )
    engine = load_engine(run.settings["backend"])
    model = engine.build_model(seed=0, **architecture)
    path = run.directory / WEIGHTS[name]
    engine.load_weights(model, path.read_bytes(), str(path))
    return model, run
