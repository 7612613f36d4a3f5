"""Train a robust classifier: settings, engine, data, model, fit, measure, plots."""

import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from . import plots
from .config import STANDARD, SPATConfig, TrainConfig
from .data import PARTS, Dataset, as_array, as_dataset, fingerprint, is_map, is_pair, load_data
from .engines import Engine, load_engine
from .errors import ConfigError, NonFiniteError, expect, require
from .evaluate import Evaluation, attacked_examples, measure, threat_of
from .monitor import CLEAN, ROBUST, SINGLE, Monitor, best_epoch
from .recipes import RECIPES, Recipe, find_recipe
from .report import Result, evaluation
from .runs import CURVES, RESULT, SHEET, Run

SGD = ("lr", "momentum", "weight_decay", "bias_decay")  # the settings of the default optimizer


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
    callbacks: Sequence[Any] = (),
) -> Result:
    """Train ``model`` by semantics-preserving adversarial training and measure it.

    Args:
        model: Gives logits (N, K); trained in place, on its device, a torch module in inference
            mode whole, another as its modules stand. Or a name in the engine's
            ``models.MODELS`` (``"wrn34_10"``), built for the images. Default: the recipe's.
        data: A name (``"digits"``), what :func:`spatlib.load_data` returned, ``(x, y)`` in arrays
            or tensors with x in ``config.bounds``, batches such as a DataLoader, a map-style
            data set of (x, y); or a pair of these, to train and to test. A third part, floats (N,),
            weighs the examples' losses. Images are (N, C, H, W) for torch, (N, H, W, C) for tf.
            Default: the recipe's, or the digits.
        recipe: A :class:`spatlib.Recipe` or its name, for the arguments left out and the
            normalisation of a model that is built. Default: the one of the data's name.
        backend: ``"torch"`` (the default), ``"tf"``, or one that another package registered.
        config: Threat model and method; default: the recipe's. Data of your own need one.
        training: Schedule; default: the recipe's, else ``TrainConfig()``.
        optimizer: A function from parameters to a torch optimizer, such as
            ``lambda p: torch.optim.AdamW(p, lr=1e-3)``, or to one and a scheduler of torch, stepped
            after each batch; for tf a Keras optimizer or a function that makes one. Its rate
            follows the schedule, or with ``schedule="constant"`` its own. Default: SGD as
            ``training`` has it.
        run_dir: Directory for settings, metrics, weights, checkpoints (:class:`spatlib.runs.Run`).
        resume: Go on with the run in ``run_dir``, bit for bit (Keras: from its last whole epoch),
            or begin one. What is left out is as in the run, but a model, data or optimizer of your
            own has to be passed again. Only ``epochs``, ``device`` (of the same kind),
            ``progress``, ``checkpoint_minutes`` and ``num_workers`` may change; the schedule is
            then that of as many epochs.
        overwrite: Delete the run in ``run_dir`` first: what spatlib wrote, nothing else.
        on_epoch: Called with each new row of the history.
        callbacks: For tf, keras.callbacks.Callback, in the training of ``model`` only, which is
            what they save.

    Returns:
        The model, its history and its accuracies. With ``training.validation`` the weights are
        those of the most robust epoch, else the last (averaged, with ``training.ema``).

    Raises:
        ConfigError, DataError, BackendError: What was expected, what came, how to fix it.
        NonFiniteError: The loss or a gradient is not finite; ``result`` is of the last whole epoch.
        OSError: A file of the run cannot be written or read; what was there before is whole.
        KeyboardInterrupt, SystemExit: SIGINT or SIGTERM came; with ``run_dir``, all is saved.
    """
    require(run_dir is not None or not (resume or overwrite), "run_dir", "name the run", run_dir)
    run = None if run_dir is None else Run(run_dir, resume=resume, overwrite=overwrite)
    was = {} if run is None else run.settings  # of one that goes on
    what = "be a run of its own, not a baseline of another"
    require("network" not in was, "run_dir", what, run_dir)
    chosen, saved = find_recipe(recipe, data), None
    if run is not None and was:
        saved = _recipe_of(run, model=model, data=data, optimizer=optimizer)
        backend = backend or was["backend"]
        data = load_data(**was["data"]) if data is None else data
        chosen = saved if recipe is None else chosen
    passed = [n for n, v in {"config": config, "training": training}.items() if v is not None]
    dropped = len(passed) == 1 or (passed and recipe is not None)
    if chosen is not None and chosen is not saved and dropped:
        what = f"{' and '.join(passed)} would drop settings of the recipe for {chosen.data!r}"
        both = "" if recipe is not None else ", or pass both config and training"
        raise ConfigError(f"{what}: use recipe=RECIPES[...].change(steps=20, epochs=5){both}")
    config, own = threat_of(config, chosen, "config", SPATConfig), training is not None
    if training is None:
        training = chosen.training if chosen else TrainConfig()
    require(isinstance(training, TrainConfig), "training", "be a spatlib.TrainConfig", training)
    what = "be above 0, such as 0.999, for rectify, which reads the averaged weights"
    require(config.rectify == 0 or training.ema > 0, "ema", what, training.ema)
    # The values of a recipe of ours are for its own optimizer; others are what the user means.
    ours = [r.training for r in RECIPES.values() if not own and chosen and r.data == chosen.data]
    for name in SGD if optimizer is not None and not saved else ():
        value, what = getattr(training, name), "be left out of training beside optimizer"
        known = value in [getattr(plan, name) for plan in (TrainConfig, *ours)]
        require(known, name, f"{what} (set it there)", value)
    data = chosen.data if data is None and chosen else data
    model = chosen.model if model is None and chosen else model
    require(model is not None, "model", "be a network that returns logits, or a name", model)
    if training.baseline and not isinstance(model, str):
        what = "be False for a network of your own (or pass the name of a network)"
        require(not own, "baseline", what, True)
        warnings.warn("no baseline: the recipe's is for networks built by name", stacklevel=2)
        training = replace(training, baseline=False)

    name = backend or "torch"
    fits = name == "tf" and isinstance(callbacks, Sequence)
    fits = fits and all(hasattr(each, "set_model") for each in callbacks)
    what = "be a list of keras.callbacks.Callback, for backend 'tf' only"
    require(fits or not callbacks, "callbacks", what, callbacks)
    engine = load_engine(name)
    with engine.together() as (rank, size):
        # Nothing is written before engine, data and model are checked.
        plan = was.get("training", {})
        if training.batch_size == plan.get("batch_size"):
            whole = was["global_batch"]  # which any number of processes can share
            what = f"divide the run's batch of {whole}"
            require(whole % size == 0, "the number of processes", what, size)
            training = replace(training, batch_size=whole // size)
        if training.precision == "auto":  # settled once for a run
            settle: Any = getattr(engine, "precision", lambda *_: "float32")
            found = plan.get("precision") or settle(model, training.device)
            training = replace(training, precision=found)
        if rank:  # the first process speaks
            on_epoch, training = None, replace(training, progress=False)
        seed, built = training.seed, dict[str, Any]()
        dataset = as_dataset(data, engine.CHANNELS_FIRST, training.validation, seed)
        if size > 1 and training.progress:
            cut = is_pair(dataset.train) or is_map(dataset.train)
            batches = f"batches of {size} x {training.batch_size} examples"
            print(f"{size} processes train on {batches if cut else 'the batches of their loaders'}")
        if isinstance(model, str):
            what = "be a network for data in batches, whose classes are not counted (see MODELS)"
            require(is_pair(dataset.train), "model", what, model)
            built = _architecture(model, dataset, chosen)
        if run is not None:
            run.silent, whole = rank > 0, size * training.batch_size
            facts: dict[str, Any] = {"config": asdict(config), "training": asdict(training)}
            facts |= {"backend": name, "data": dataset.source, "architecture": built or None}
            facts |= {"optimizer": optimizer is not None, "global_batch": whole}
            facts["fingerprint"] = {part: fingerprint(getattr(dataset, part)) for part in PARTS}
            run.describe(facts, engine.threads())

        # Baselines come first, and each is gone before the next network is made.
        on = "training" if dataset.test is None else "test"
        result = Result(model=model, history=[], config=config, training=training, measured_on=on)
        build: Any = partial(engine.build_model, seed=seed, **built) if built else lambda: model
        fit = partial(_fit, engine, dataset, optimizer, on_epoch=on_epoch)
        compared = config.baselines if training.baseline else {}
        parts = {label: run and run.part(label) for label in compared}  # errors before the training
        count = len(compared) + 1
        for turn, (label, method) in enumerate(compared.items(), 1):
            how = {"run": parts[label], "label": label, "turn": f"{turn}/{count}"}
            report: Any = fit(replace(result, model=build(), config=method), **how).report
            result.baselines[label] = report
        how = {"run": run, "label": config.method, "turn": f"{count}/{count}" if compared else ""}
        result = fit(replace(result, model=build()), callbacks=callbacks, **how)
        if run is not None:  # all processes, as a loader may need them to begin; one writes
            try:
                told = evaluation(config.method, result.report, on, result.baselines)
                run.write(RESULT, json.dumps(told, indent=2).encode())
                run.write(CURVES, plots.curves(result.history, config, best_epoch(result.history)))
                some = min(8, training.batch_size)
                shown = attacked_examples(engine, result.model, dataset.measured, config, some)
                if shown["x"].ndim == 4:
                    run.write(SHEET, plots.sheet(shown, config.bounds, dataset.class_names))
            except Exception as error:  # a full disk, a network that takes no other batch
                warnings.warn(f"results or plots lost in {run.directory}: {error}", stacklevel=2)
        if training.progress:
            print(result)
        return result


def _fit(engine: Engine, data: Dataset, optimizer: Any, result: Result, **how: Any) -> Result:
    """The result after ``result.model`` was trained, by a Monitor made of ``how``, and measured."""
    model, config, plan, held = result.model, result.config, result.training, data.validation
    look = partial(measure, engine, batch_size=plan.batch_size)  # which the network may be fixed to
    for part in (held, data.test):  # before the training, not after it
        if part is not None:
            engine.check(model, part, config, plan)
    if ordinary := how["label"] == STANDARD:  # there is no attack that could grow
        plan = replace(plan, eps_warmup=0)

    def validate(net: Any) -> dict[str, float]:
        # One step from a random start is the FGSM of Wong et al., arXiv:2001.03994.
        pgd, fgsm = (look(net, held, Evaluation(config, "pgd", n)) for n in (10, 1))
        found = pgd.metrics | fgsm.metrics
        return {CLEAN: found["clean"], ROBUST: found["pgd10"], SINGLE: found["pgd1"]}

    look_at = validate if held is not None else None
    monitor = Monitor(plan, look_at, ordinary=ordinary, **how)
    try:
        with monitor.signals():
            history = engine.fit(model, data.train, config, monitor, optimizer=optimizer)
    except NonFiniteError as error:
        error.result = replace(result, history=error.history)
        raise
    if (best := monitor.best_weights()) is not None:
        engine.load_weights(model, best)
    shown: Any = {"device": plan.device, "progress": plan.progress}
    report = look(model, data.measured, Evaluation(config), **shown)
    return replace(result, history=history, report=report)


def _recipe_of(run: Run, **passed: Any) -> Recipe:
    """What the run has for the arguments left out; ConfigError if one was the user's own."""
    network, data, own = (run.settings[key] for key in ("architecture", "data", "optimizer"))
    for name, lost in {"model": not network, "data": not data, "optimizer": own}.items():
        if lost and passed[name] is None:
            raise ConfigError(f"{name} of the run in {run.directory} was your own: pass it again")
    config, training = run.configs()
    its: Any = network or dict.fromkeys(("name", "mean", "std"))
    own = {"model": its["name"], "mean": its["mean"], "std": its["std"]}
    return Recipe(data="", config=config, training=training, source="", **own)


def _architecture(name: str, dataset: Dataset, recipe: Recipe | None) -> dict[str, Any]:
    """What builds the network of this name, for the shape and the classes of the data."""
    parts = filter(is_pair, (dataset.train, dataset.validation, dataset.test))
    labels = [as_array(y) for _, y, *_ in parts]
    counted = all(y.dtype.kind in "iu" or y.ndim == 2 for y in labels)
    expect(counted, "y must hold class indices to count the classes of: cast it to integers")
    one_hot = labels[0].ndim == 2 and labels[0].shape[1] > 1
    classes = labels[0].shape[1] if one_hot else 1 + max(int(y.max()) for y in labels)
    shape = tuple(map(int, dataset.train[0].shape[1:]))
    own = {"mean": recipe and recipe.mean, "std": recipe and recipe.std}
    return {"name": name, "shape": shape, "classes": classes, **own}
