"""Measure a classifier under attack: validate, load the engine, call it."""

from __future__ import annotations

from typing import Any

from .backends import load_engine
from .config import SPATConfig, check_integer, check_type
from .data import load
from .recipes import RECIPES
from .result import Report


def evaluate(
    model: Any,
    data: Any = "digits",
    *,
    backend: str = "torch",
    config: SPATConfig | None = None,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """Accuracy, clean and under PGD-20 with cross-entropy and with the margin loss.

    The attacks use the full eps and hard labels, never the mask, the smoothing or the guard. An
    example counts as robust only if it is classified correctly clean, at the start and at the
    end of every restart, so no robust accuracy exceeds the clean one.

    Args:
        model: Gives logits (N, K); moved to ``device``, otherwise left as it was.
        data: As for :func:`spatlib.train`; the test part if there is one.
        backend: ``"torch"``, ``"tf"``, or a name that another package registered.
        config: The threat model: eps, norm, bounds. Default: the recipe's for named data, else
            ``SPATConfig()``.
        restarts: Random restarts of each attack.
        batch_size: Examples per pass (ignored for data that comes in batches).
        seed: Fixes the random starts.
        device: Where to evaluate; default: where the model is.

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it.
    """
    check_type("config", config, SPATConfig)
    check_integer("restarts", restarts, 1)
    check_integer("batch_size", batch_size, 1)
    check_integer("seed", seed, 0)
    engine = load_engine(backend)
    dataset = load(data, channels_first=engine.CHANNELS_FIRST)
    if config is None:
        config = RECIPES[data][0] if isinstance(data, str) else SPATConfig()
    measured = dataset.train if dataset.test is None else dataset.test
    return engine.evaluate(model, measured, config, restarts=restarts,
                           batch_size=batch_size, seed=seed, device=device)  # fmt: skip
