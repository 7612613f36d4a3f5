"""Train a robust classifier: validate, load the engine, call it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .backends import load_engine
from .config import SPATConfig, TrainConfig, check_type
from .data import load
from .errors import ConfigError, NonFiniteError
from .recipes import RECIPES
from .result import Result


def train(
    model: Any = None,
    data: Any = "digits",
    *,
    backend: str = "torch",
    config: SPATConfig | None = None,
    training: TrainConfig | None = None,
) -> Result:
    """Train ``model`` by semantics-preserving adversarial training and measure it.

    Args:
        model: Gives logits (N, K); trained in place, where it is (CPU or accelerator). Default
            for named data: the recipe's model.
        data: A name (``"digits"``), ``(x, y)``, ``((x, y), (x_test, y_test))`` of arrays or
            tensors with x in ``config.bounds``, an iterable of batches such as a DataLoader, or
            a pair of them. Images are (N, C, H, W) for torch, (N, H, W, C) for tf.
        backend: ``"torch"``, ``"tf"``, or a name that another package registered.
        config: Threat model and method; default: the recipe's for named data, else
            ``SPATConfig()``.
        training: Schedule; default likewise.

    Returns:
        The model, its history and its accuracies.

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it.
        NonFiniteError: The loss or a gradient is not finite; the model keeps (and ``.result``
            of the error holds) the last good weights.
    """
    check_type("config", config, SPATConfig)
    check_type("training", training, TrainConfig)
    engine = load_engine(backend)
    dataset = load(data, channels_first=engine.CHANNELS_FIRST)
    recipe = data if isinstance(data, str) else None
    recipe_config, recipe_training = RECIPES[recipe] if recipe else (SPATConfig(), TrainConfig())
    config, training = config or recipe_config, training or recipe_training
    if model is None and recipe is None:
        raise ConfigError("model", expected="a model for data of your own", received=None,
                          fix="Pass a network that returns logits.")  # fmt: skip
    if training.baseline and model is not None:
        training = replace(training, baseline=False)  # nothing to build the second network from
    measured = dataset.train if dataset.test is None else dataset.test
    if dataset.test is not None:
        engine.check(dataset.test, config)  # before the time for training is spent

    def fit(network: Any, method: SPATConfig | None, label: str) -> tuple[Any, Any]:
        history = engine.fit(network, dataset.train, method, training, label)
        return history, engine.evaluate(network, measured, config, device=training.device)

    baseline = None
    if training.baseline and recipe:
        _, baseline = fit(engine.build_model(recipe, training.seed), None, "standard")
    if model is None and recipe:
        model = engine.build_model(recipe, training.seed)
    try:
        history, report = fit(model, config, "SPAT")
    except NonFiniteError as error:
        error.result = Result(model=model, history=error.history, config=config, training=training)
        raise
    result = Result(
        model=model,
        history=history,
        metrics=report.metrics,
        measured_on="training" if dataset.test is None else "test",
        config=config,
        training=training,
        report=report,
        baseline=baseline,
    )
    if training.progress:
        print(result)
    return result
