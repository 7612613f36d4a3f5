"""Train a robust classifier: settings, engine, data, model, fit, measure, plots."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from . import plots
from .config import SPATConfig
from .data import Dataset, as_dataset, is_pair, load_data
from .engines import Engine, load_engine
from .errors import BackendError, ConfigError, NonFiniteError, require_type
from .evaluate import Evaluation, Report, attacked_examples, measure, table, threat_of
from .monitor import CLEAN, ROBUST, SINGLE, Monitor
from .recipes import Recipe, find_recipe
from .runs import STANDARD, Run
from .training import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Result:
    """A trained model and the record of its training.

    Attributes:
        model: The trained model, with its best, averaged or last weights (:func:`spatlib.train`).
        history: One dict per epoch: ``epoch``, ``loss``, ``adv_accuracy`` (on the training
            batches under their attack), ``stall_rate``, ``lr``, ``seconds``.
        config, training: The settings used.
        measured_on: ``"test"``, or ``"training"`` if there are no other data.
        report, baseline: The reports on ``model`` and, if asked for, on an ordinarily trained
            network of the same architecture, schedule and seed.
    """

    model: Any
    history: list[dict[str, float]]
    config: SPATConfig
    training: TrainConfig
    measured_on: str = "test"
    report: Report | None = None
    baseline: Report | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """The accuracies of ``report``, empty if there is none."""
        return {} if self.report is None else self.report.metrics

    def __str__(self) -> str:
        if self.report is None:
            return "not evaluated"
        rows = {"standard": self.baseline, "SPAT": self.report}
        text = table({name: row for name, row in rows.items() if row is not None}, self.report)
        return text if self.measured_on == "test" else f"{text}; these are the training data"


def train(
    model: Any = None,
    data: Any = None,
    *,
    recipe: str | Recipe | None = None,
    backend: str | None = None,
    config: SPATConfig | None = None,
    training: TrainConfig | None = None,
    optimizer: Any = None,
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
        data: A name (``"digits"``), what :func:`spatlib.load_data` returned, ``(x, y)``,
            ``((x, y), (x_test, y_test))`` of arrays or tensors with x in ``config.bounds``, an
            iterable of batches such as a DataLoader, for torch a map-style data set of items
            (x, y), or a pair of them. Images are (N, C, H, W) for torch, (N, H, W, C) for tf. Left
            out: the recipe's, or the digits.
        recipe: A :class:`spatlib.Recipe` or the name of one, for the arguments that are left out
            and the normalisation of a model that is built. Default: the one of the data's name.
            ``RECIPES["mnist"].change(steps=20, epochs=5)`` has other settings.
        backend: ``"torch"`` (the default), ``"tf"``, or one that another package registered.
        config: Threat model and method; default: the recipe's. Data of your own need one.
        training: Schedule; default: the recipe's, else ``TrainConfig()``.
        optimizer: A function from parameters to a torch optimizer, such as
            ``lambda p: torch.optim.AdamW(p, lr=1e-3)``; for tf a Keras optimizer or a function
            that makes one. Default: SGD with ``lr``, ``momentum`` and ``weight_decay`` of
            ``training``; the schedule is applied to its rate in either case.
        run_dir: Directory for settings, metrics, weights and checkpoints, written from the moment
            training begins (:class:`spatlib.runs.Run`); of several processes each needs its own.
        resume: Go on with the run in ``run_dir``, bit for bit as if it had never stopped (Keras:
            from its last whole epoch), or begin one. What neither an argument nor ``recipe``
            settles is read from the run, and so are omitted data; but a model, data or an
            optimizer of your own have to be passed again. Settings may differ from the run's in
            ``epochs``, ``device`` (of the same kind), ``progress`` and ``checkpoint_minutes``
            only. With more epochs a schedule other than ``"constant"`` goes on where it would be
            in a run of that length.
        overwrite: Delete the run in ``run_dir`` first: what spatlib wrote, nothing else.
        on_epoch: Called with each new row of the history.

    Returns:
        The model, its history and its accuracies. With ``training.validation`` the model has the
        weights of the epoch of the best robust validation accuracy, else the last (averaged, with
        ``training.ema``).

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it.
        NonFiniteError: The loss or a gradient is not finite; the model keeps (and ``.result``
            of the error holds) the weights of the last whole epoch.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; with ``run_dir``, all is saved.
    """
    if run_dir is None and (resume or overwrite):
        raise ConfigError("run_dir must name the run to resume or overwrite, got None")
    if optimizer is not None and training is not None:
        _check_beside(training)
    run = None if run_dir is None else Run(run_dir, resume=resume, overwrite=overwrite)

    # Settings: those passed, else those of the run that goes on, else the recipe's.
    chosen = find_recipe(recipe, data)
    if run is not None and run.resumed:
        saved = _recipe_of(run, model=model, data=data, optimizer=optimizer)
        backend = backend or run.settings["backend"]
        data = load_data(**run.settings["data"]) if data is None else data
        if recipe is None:
            chosen, config, training = saved, config or saved.config, training or saved.training
    config, training = _settings(chosen, recipe is not None, config, training)
    if chosen is not None:
        data = chosen.data if data is None else data
        model = chosen.model if model is None else model
    if model is None:
        what = "a network that returns logits, or the name of one"
        raise ConfigError(f"model must be given for data of your own: pass {what}")
    if training.baseline and not isinstance(model, str):
        if chosen is None or training is not chosen.training:
            what = "a network of your own, of which spatlib cannot build a second one"
            raise ConfigError(f"baseline must be False for {what}: pass the name of a network")
        warnings.warn("no baseline: the recipe's is for networks built by name", stacklevel=2)
        training = replace(training, baseline=False)

    # Engine, data, model; nothing is written before all of them are checked.
    backend = backend or "torch"
    engine = load_engine(backend)
    first, held = engine.CHANNELS_FIRST, training.validation
    dataset = as_dataset(data, channels_first=first, validation=held, seed=training.seed)
    built = None
    if isinstance(model, str):
        built = _architecture(engine, model, dataset, config, chosen)
    if run is not None:
        settings = {"backend": backend, "data": dataset.source, "architecture": built}
        settings |= {"config": asdict(config), "training": asdict(training)}
        run.describe(settings | {"optimizer": optimizer is not None})
    for part in (dataset.validation, dataset.test):
        if part is not None:
            engine.check(part, config)

    # Fit and measure, the baseline first.
    fit = partial(_fit, engine, dataset, (config, training), optimizer, on_epoch)
    baseline = None
    if built is not None:
        if training.baseline:
            standard = engine.build_model(seed=training.seed, **built)
            _, baseline = fit(standard, run and run.part(STANDARD), ordinary=True)
        model = engine.build_model(seed=training.seed, **built)
    known = {"model": model, "config": config, "training": training, "baseline": baseline}
    try:
        history, report = fit(model, run)
    except NonFiniteError as error:
        error.result = Result(**known, history=error.history)
        raise
    measured_on = "training" if dataset.test is None else "test"
    result = Result(**known, history=history, report=report, measured_on=measured_on)

    # Plots.
    if run is not None:
        _write_plots(run, engine, result, dataset.measured)
    if training.progress:
        print(result)
    return result


def _recipe_of(run: Run, **passed: Any) -> Recipe:
    """What the run has for the arguments left out; ConfigError if one was the user's own."""
    config, training = run.configs()
    network, data = run.settings["architecture"], run.settings["data"]
    own = {"model": not network, "data": not data, "optimizer": run.settings["optimizer"]}
    for name, value in passed.items():
        if value is None and own[name]:
            raise ConfigError(f"{name} of the run in {run.directory} was your own: pass it again")
    parts = {"mean": network["mean"], "std": network["std"]} if network else {}
    name, source = network["name"] if network else "", str(run.directory)
    return Recipe(data="", model=name, config=config, training=training, source=source, **parts)


def _settings(
    chosen: Recipe | None, named: bool, config: SPATConfig | None, training: TrainConfig | None
) -> tuple[SPATConfig, TrainConfig]:
    """Those passed, else the recipe's; ConfigError if parts of a recipe would get lost."""
    given = {"config": (config, SPATConfig), "training": (training, TrainConfig)}
    passed = [name for name, (value, _) in given.items() if value is not None]
    for name in passed:
        require_type(name, *given[name])
    if chosen is not None and (len(passed) == 1 or (named and passed)):
        raise ConfigError(
            f"{' and '.join(passed)} would drop settings of the recipe for {chosen.data!r}: change "
            "those that you mean, recipe=RECIPES[...].change(steps=20, epochs=5)"
            + ("" if named else ", or pass both config and training")
        )
    if chosen is not None:
        return config or chosen.config, training or chosen.training
    if config is None:
        threat_of(None, None, "config")  # raises the error that says how to state one
    return config, training or TrainConfig()  # type: ignore[return-value]


def _check_beside(training: TrainConfig) -> None:
    """ConfigError for settings that an optimizer of one's own would ignore."""
    for name in ("lr", "momentum", "weight_decay"):
        value, default = getattr(training, name), getattr(TrainConfig, name)
        if value != default:
            raise ConfigError(
                f"{name} must be left out of training beside optimizer, got {value}: set it in the "
                "optimizer that the function makes"
            )


def _fit(
    engine: Engine,
    dataset: Dataset,
    settings: tuple[SPATConfig, TrainConfig],
    optimizer: Any,
    on_epoch: Callable[[dict[str, Any]], None] | None,
    model: Any,
    run: Run | None,
    *,
    ordinary: bool = False,
) -> tuple[list[dict[str, float]], Report]:
    """Train and measure one network."""
    (config, training), held = settings, dataset.validation
    # Choose ordinary training's best epoch by clean accuracy: its robust accuracy is best before
    # training.
    label, goal = ("standard", CLEAN) if ordinary else ("SPAT", ROBUST)
    if ordinary:  # no attack that could grow
        training = replace(training, eps_warmup=0)

    def validate(model: Any) -> dict[str, float]:
        pgd, fgsm = (  # one step from a random start: the FGSM of Wong et al., arXiv:2001.03994
            measure(engine, model, held, Evaluation(config, ("pgd",), steps)).metrics
            for steps in (10, 1)
        )
        return {CLEAN: pgd["clean"], ROBUST: pgd["pgd10"], SINGLE: fgsm["pgd1"]}

    tell = on_epoch and (lambda row: on_epoch({"network": label, **row}))
    monitor = Monitor(training, None if held is None else validate, run, tell, goal)
    own = {"ordinary": ordinary, "optimizer": optimizer}
    with monitor.signals():
        history = engine.fit(model, dataset.train, config, training, label, monitor, **own)
    if monitor.best_weights is not None:
        engine.load_weights(model, monitor.best_weights)
    evaluation = Evaluation(config)
    return history, measure(engine, model, dataset.measured, evaluation, device=training.device)


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
    parts = [part for part in (dataset.train, dataset.validation, dataset.test) if is_pair(part)]
    labels = [np.asarray(y.cpu() if hasattr(y, "cpu") else y) for _, y in parts]
    one_hot = labels[0].ndim == 2 and labels[0].shape[1] > 1
    classes = labels[0].shape[1] if one_hot else 1 + max(int(y.max()) for y in labels)
    shape = tuple(map(int, dataset.train[0].shape[1:]))
    own = {"mean": recipe and recipe.mean, "std": recipe and recipe.std}
    return {"name": name, "shape": shape, "classes": classes, **own}


def _write_plots(run: Run, engine: Engine, result: Result, data: Any) -> None:
    """Training curves and attacked examples, where Matplotlib is installed."""
    try:
        run.write("curves.png", plots.curves(result.history))
        if is_pair(data) and len(data[0].shape) == 4:
            shown = attacked_examples(engine, result.model, data, result.config)
            run.write("sheet.png", plots.sheet(shown, result.config.bounds))
    except BackendError as error:
        warnings.warn(f"no plots in {run.directory}: {error}", stacklevel=3)
