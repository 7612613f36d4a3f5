"""What test_tf_strategies runs: trainings on one device and on two, set up before TensorFlow is."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import spatlib
import spatlib_tf
from spatlib import Mask, SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib_tf import engine

from .test_tf_loop import Fails

COUNT, CLASSES, BATCH, SHAPE = 24, 3, 8, (6, 6, 1)
TRAINING = TrainConfig(
    epochs=2, batch_size=BATCH, lr=0.25, momentum=0.5, weight_decay=0, progress=False
)
LOSSES = {
    "pgd": SPATConfig(eps=0.1, steps=2, mask=Mask()),
    "trades": SPATConfig(eps=0.5, norm="L2", steps=2, loss="trades", mask=Mask(score="rms")),
    "mart": SPATConfig(eps=1, norm="L1", steps=2, loss="mart", mask=Mask(classes=2)),
}
EXTRAS = {"augment": "crop-flip", "ema": 0.5, "validation": BATCH, "schedule": "constant"}


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(COUNT, *SHAPE)), rng.integers(CLASSES, size=COUNT)


def network(*end: keras.Layer) -> keras.Sequential:
    keras.utils.set_random_seed(0)
    first, last = layers.Conv2D(4, 3, activation="relu"), layers.Dense(CLASSES)
    return keras.Sequential([layers.Input(SHAPE), first, layers.Flatten(), last, *end])


def facts(model: keras.Model, rows: list[dict[str, float]]) -> dict[str, Any]:
    history = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return {"weights": [w.tolist() for w in model.get_weights()], "history": history}


def trained(loss: str, model: keras.Model | None = None, **settings: Any) -> dict[str, Any]:
    """Without the evaluation at the end of spatlib.train."""
    model, training = model or network(), TrainConfig(**{**vars(TRAINING), **settings})
    return facts(model, engine.fit(model, arrays(), LOSSES[loss], Monitor(training)))


def run(directory: Path | None = None, epochs: int = 2) -> dict[str, Any]:
    model, training = network(), TrainConfig(**{**vars(TRAINING), **EXTRAS, "epochs": epochs})
    how = {"training": training, "run_dir": directory, "resume": directory is not None}
    found = spatlib.train(model, arrays(), backend="tf", config=LOSSES["pgd"], **how)
    return facts(model, found.history)


def fitted(model: keras.Model | None = None) -> dict[str, Any]:
    """By SPATModel, with soft labels, weights, a schedule of Keras, its metrics, validation."""
    base = model or network()
    x, y = arrays()
    soft = 0.7 * np.eye(CLASSES)[y] + 0.1
    model = spatlib_tf.SPATModel(base, LOSSES["pgd"], seed=0, evaluation_steps=2)
    with model.distribute_strategy.scope():
        rate = keras.optimizers.schedules.CosineDecay(0.25, 9)
        model.compile(keras.optimizers.SGD(rate), metrics=["accuracy"])
    settings = {"batch_size": BATCH, "epochs": 2, "shuffle": False, "verbose": 0}
    own = {"sample_weight": np.linspace(0, 1, COUNT), "validation_data": (x, soft)}
    found = model.fit(x, soft, **settings, **own).history
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    return facts(base, rows)


def draws(strategy: Any) -> list[list[Any]]:
    """Of two steps, the perturbed inputs of each replica, which have the same inputs."""
    generator, (x, y) = keras.random.SeedGenerator(0), arrays()
    model, config = network(), SPATConfig(eps=0.1, steps=1, step_size=1e-12)

    @tf.function
    def both() -> Any:
        batch = tf.constant(x[:4]), tf.constant(y[:4])
        own = {"generator": generator}
        return strategy.run(lambda: spatlib_tf.perturb(model, *batch, config, **own))

    return [[value.numpy().tolist() for value in both().values] for _ in range(2)]


def refusal(**settings: Any) -> str:
    try:
        trained("pgd", **settings)
    except spatlib.ConfigError as error:
        return str(error)
    return ""


def stopped() -> bool:
    model = network(Fails(2, "loss"))
    before = model.get_weights()
    try:
        trained("pgd", model, schedule="constant")
    except spatlib.NonFiniteError:
        return all(map(np.array_equal, before, model.get_weights()))
    return False


def outside(strategy: Any) -> str:
    """What is said of a network made outside the scope in which it is to train."""
    model = network()
    with strategy.scope():
        try:
            fitted(model)
        except spatlib.ConfigError as error:
            return str(error)
    return ""


class Sees(layers.Layer):
    """Notes the sizes of the batches that pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: set[int] = set()

    def call(self, x: Any) -> Any:
        tf.py_function(lambda count: self.sizes.add(int(count)), [tf.shape(x)[0]], [])
        return x


def parallel() -> dict[str, Any]:
    """What a training inside Keras' own DataParallel gives, and on which devices."""
    sees = Sees()
    with keras.distribution.DataParallel().scope():
        model = network(sees)
        found = trained("mart", model)
    places = {variable.value.device for variable in model.variables}
    return found | {"sizes": [*sees.sizes], "devices": len(places)}


def compared(directory: Path) -> dict[str, Any]:
    """By name what one device gives, and what two give."""
    keras.backend.set_floatx("float64")
    cpus = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpus[0], two)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    results: dict[str, Any] = {}
    for name, scope in (("one", nullcontext), ("two", strategy.scope)):
        with scope():
            own = {loss: trained(loss) for loss in ("trades", "mart")}
            own["fit"] = fitted()
            if name == "one":
                own["run"] = run()
            else:
                run(directory / "run", epochs=1)
                own["resumed"] = run(directory / "run")
                own["draws"] = draws(strategy)
                own["odd"], own["clipped"] = refusal(batch_size=9), refusal(clip_grad_norm=1.0)
                made = network()
        results[name] = own
    results["two"]["wrapped outside"] = fitted(made)
    results["two"]["made outside"] = outside(strategy)
    with strategy.scope():
        results["two"]["stopped"] = stopped()
    results["parallel"] = parallel()
    return results


if __name__ == "__main__":
    print(json.dumps(compared(Path(sys.argv[1]))))
