"""Train a robust classifier: validate, load the engine, call it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from . import plots
from .backends import Engine, load_engine
from .config import SPATConfig
from .data import NAMES, Dataset, is_pair, load
from .errors import BackendError, ConfigError, NonFiniteError, require_type
from .monitor import CLEAN, ROBUST, Monitor, validation
from .recipes import Recipe, find
from .result import Result
from .run import Run
from .train_config import TrainConfig

FREE = ("progress", "device", "checkpoint_minutes")  # may differ from those of the run resumed


def train(
    model: Any = None,
    data: Any = ...,
    *,
    recipe: str | None = None,
    backend: str | None = None,
    config: SPATConfig | None = None,
    training: TrainConfig | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Train ``model`` by semantics-preserving adversarial training and measure it.

    Args:
        model: Gives logits (N, K); trained in place, where it is (CPU or accelerator). Or the
            name of one to build for these images (``"wrn34_10"``): see ``MODELS`` in the
            engine's ``models``. Default: the recipe's.
        data: A name (``"digits"``), ``(x, y)``, ``((x, y), (x_test, y_test))`` of arrays or
            tensors with x in ``config.bounds``, an iterable of batches such as a DataLoader, or
            a pair of them. Images are (N, C, H, W) for torch, (N, H, W, C) for tf. Left out: the
            recipe's, or the digits.
        recipe: A key of ``spatlib.recipes.RECIPES``, for the arguments that are left out and the
            normalisation of a model that is built. Default: the one of the data's name.
        backend: ``"torch"`` (the default), ``"tf"``, or one that another package registered.
        config: Threat model and method; default: the recipe's, else ``SPATConfig()``.
        training: Schedule; default likewise.
        data_dir: Where the files of named data are; see :func:`spatlib.data.load`.
        run_dir: Directory for settings, metrics, weights and checkpoints (:class:`Run`), written
            from the moment training begins; of several processes each needs its own.
        resume: Go on with the run in ``run_dir``, bit for bit as if it had never stopped (Keras:
            from its last whole epoch). Omitted arguments are read from the run, except a model or
            data of your own, which have to be passed again.
        overwrite: Delete the run in ``run_dir`` first.
        on_epoch: Called with each new row of the history.

    Returns:
        The model, its history and its accuracies. With ``training.validation`` the model has the
        weights of the epoch of the best robust validation accuracy, else the last (averaged, with
        ``training.ema``).

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it.
        NonFiniteError: The loss or a gradient is not finite; the model keeps (and ``.result``
            of the error holds) the last good weights.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; with ``run_dir``, all is saved.
    """
    if config is not None:
        require_type("config", config, SPATConfig)
    if training is not None:
        require_type("training", training, TrainConfig)
    if run_dir is None and (resume or overwrite):
        raise ConfigError("run_dir must name the run to resume or overwrite, got None")
    run = None if run_dir is None else Run(run_dir, resume=resume, overwrite=overwrite)
    if run is not None and resume:
        config, training = _resumed(run, backend, config, training)
        model, data, recipe = _taken_up(run, model, data, recipe)
        backend, data_dir = run.settings["backend"], data_dir or run.settings["data_dir"]
    chosen, data = find(recipe, data)
    config = config or (chosen.config if chosen else SPATConfig())
    training = training or (chosen.training if chosen else TrainConfig())
    backend = backend or "torch"
    settings = {
        "backend": backend,
        "recipe": recipe,
        "data": _absolute(data),
        "data_dir": _absolute(data_dir),
        "config": asdict(config),
        "training": asdict(training),
    }
    engine = load_engine(backend)
    dataset = read_data(data, engine, training, data_dir)
    model = model or (chosen and chosen.model)
    if model is None:
        raise ConfigError(
            "model must be given for data of your own: pass a network that returns logits, "
            "or the name of one"
        )
    built: dict[str, Any] = {}
    if isinstance(model, str):
        built = _architecture(engine, model, dataset, config, chosen)
    elif training.baseline:
        training = replace(training, baseline=False)  # nothing to build the second network from
    for part in (dataset.validation, dataset.test):  # before the time for training is spent
        if part is not None:
            engine.check(part, config)
    if run is not None and not resume:
        run.describe(settings | {"architecture": built})
    fit = partial(_fit, engine, dataset, config, training, on_epoch)
    baseline = None
    if training.baseline:
        own = run and run.part("standard")
        _, baseline = fit(engine.build_model(seed=training.seed, **built), own, ordinary=True)
    if built:
        model = engine.build_model(seed=training.seed, **built)
    try:
        history, report = fit(model, run)
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
    if run is not None:
        _write_plots(run, engine, result, dataset)
    if training.progress:
        print(result)
    return result


def read_data(
    data: Any, engine: Engine, training: TrainConfig, data_dir: str | os.PathLike[str] | None
) -> Dataset:
    """The data in the engine's layout, split and cut to length as ``training`` says."""
    names = ("validation", "seed", "examples", "test_examples")
    parts: dict[str, Any] = {name: getattr(training, name) for name in names}
    return load(data, channels_first=engine.CHANNELS_FIRST, data_dir=data_dir, **parts)


def _fit(
    engine: Engine,
    dataset: Dataset,
    config: SPATConfig,
    training: TrainConfig,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    model: Any,
    run: Run | None,
    *,
    ordinary: bool = False,
) -> tuple[Any, Any]:
    """Train and measure one network."""
    label = "standard" if ordinary else "SPAT"
    if ordinary:  # no attack that could grow
        training = replace(training, eps_warmup=0)
    validate = dataset.validation and validation(engine, dataset.validation, config)
    # Choose ordinary training's best epoch by clean accuracy: its robust accuracy is best before
    # training.
    measure = CLEAN if ordinary else ROBUST
    tell = on_epoch and (lambda row: on_epoch({"network": label, **row}))
    monitor = Monitor(training, validate, run, tell, measure)
    with monitor.signals():
        history = engine.fit(
            model, dataset.train, config, training, label, monitor, ordinary=ordinary
        )
    if monitor.best_weights is not None:
        engine.load_weights(model, monitor.best_weights)
    return history, engine.evaluate(model, dataset.measured, config, device=training.device)


def _resumed(
    run: Run, backend: str | None, config: SPATConfig | None, training: TrainConfig | None
) -> tuple[SPATConfig, TrainConfig]:
    """The settings of the run; ConfigError if others were asked for."""
    saved = run.configs()
    asked = (config or saved[0], training or saved[1])
    values = [json.loads(json.dumps([asdict(c) for c in pair])) for pair in (saved, asked)]
    different = {
        name for mine, its in zip(*values, strict=True) for name in mine if mine[name] != its[name]
    } - set(FREE)
    if backend not in (None, run.settings["backend"]):
        different.add("backend")
    if different:
        raise ConfigError(
            f"resume needs the settings of the run in {run.directory}, got another "
            f"{', '.join(sorted(different))}: leave them out, or begin a new run"
        )
    return saved[0], replace(saved[1], **{name: getattr(asked[1], name) for name in FREE})


def _taken_up(run: Run, model: Any, data: Any, recipe: str | None) -> tuple[Any, Any, str | None]:
    """Model, data and recipe of a resumed run; ConfigError if others were asked for."""
    saved, name = run.settings, run.settings["architecture"].get("name")
    for what, given, its in (
        ("data", data, saved["data"]),
        ("model", model, name),
        ("recipe", recipe, saved["recipe"]),
    ):
        named = isinstance(given, str | os.PathLike)
        if named and _absolute(given) != its:
            raise ConfigError(
                f"{what} must be {its!r}, as in the run, got {given!r}: "
                "leave it out, or begin a new run"
            )
        if its is None and what != "recipe" and (given is None or given is ...):
            raise ConfigError(f"{what} of the run in {run.directory} was your own: pass it again")
    return name or model, saved["data"] or data, saved["recipe"]


def _absolute(data: Any) -> str | None:
    """A name, or a path that is valid from any directory; None for data of the user's own."""
    if isinstance(data, str) and data in NAMES:
        return data
    return os.path.abspath(data) if isinstance(data, str | os.PathLike) else None


def _architecture(
    engine: Engine, name: str, dataset: Dataset, config: SPATConfig, recipe: Recipe | None
) -> dict[str, Any]:
    """What builds the model of this name, for the shape and the classes of the data."""
    if not is_pair(dataset.train):
        raise ConfigError(
            f"model must be a network for data in batches, got the name {name!r}: build it with "
            "MODELS of the engine's models, as batches do not say how many classes there are"
        )
    engine.check(dataset.train, config)
    parts = (dataset.train, dataset.validation, dataset.test)
    labels = [
        np.asarray(part[1].cpu() if hasattr(part[1], "cpu") else part[1])
        for part in parts
        if part is not None and is_pair(part)
    ]
    one_hot = labels[0].ndim == 2 and labels[0].shape[1] > 1
    classes = labels[0].shape[1] if one_hot else 1 + max(int(y.max()) for y in labels)
    return {
        "name": name,
        "shape": tuple(map(int, dataset.train[0].shape[1:])),
        "classes": classes,
        "mean": recipe and recipe.mean,
        "std": recipe and recipe.std,
    }


def _write_plots(run: Run, engine: Engine, result: Result, dataset: Dataset) -> None:
    """Training curves and attacked examples, where Matplotlib is installed."""
    measured = dataset.measured
    try:
        run.write("curves.png", plots.curves(result.history))
        if is_pair(measured) and len(measured[0].shape) == 4:
            shown = engine.examples(result.model, measured, result.config)
            run.write("sheet.png", plots.sheet(shown, result.config.bounds))
    except BackendError as error:
        warnings.warn(f"no plots in {run.directory}: {error}", stacklevel=3)
