"""The model of a run, with its weights."""

from __future__ import annotations

import os
from typing import Any

from .backends import load_engine
from .errors import ConfigError, require_choice
from .run import BEST, EMA, LAST, Run

WEIGHTS = {"best": BEST, "ema": EMA, "last": LAST}


def load_model(run_dir: str | os.PathLike[str], weights: str | None = None) -> tuple[Any, Run]:
    """Build the network of a run and put its weights in.

    Args:
        run_dir: Directory of a run of a network that spatlib built, by name.
        weights: ``"best"`` (of the best robust validation accuracy), ``"ema"`` (averaged) or
            ``"last"``; default: the first of these that the run has.

    Returns:
        The network, on the CPU, and the run.

    Raises:
        ConfigError: No run, no such weights, or a network of the user's own.
        DataError: The file is damaged.
    """
    run = Run(run_dir, resume=True)
    if weights is not None:
        require_choice("weights", weights, WEIGHTS)
    there = [name for name, file in WEIGHTS.items() if (run.directory / file).exists()]
    name = weights or (there[0] if there else "last")
    if name not in there:
        raise ConfigError(
            f"weights must be one of {there}, those in {run.directory}, got {name!r}: "
            "choose one of them, or let the first epoch finish"
        )
    architecture = run.settings["architecture"]
    if not architecture:
        raise ConfigError(
            f"run_dir {run_dir} is a run of a network of your own, which spatlib cannot build: "
            "build it, and call the engine's load_weights"
        )
    engine = load_engine(run.settings["backend"])
    model = engine.build_model(seed=0, **architecture)
    path = run.directory / WEIGHTS[name]
    engine.load_weights(model, path.read_bytes(), str(path))
    return model, run
