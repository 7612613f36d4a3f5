"""Our Auto-PGD beside ART's AutoAttack on 200 digits of a trained network, in both frameworks.

python -m benchmarks.autoattack [torch tf]; needs the extra autoattack.
"""

from __future__ import annotations

import json
import sys
import time

import numpy as np

import spatlib
from spatlib import RECIPES
from spatlib.data import as_dataset
from spatlib.engines import load_engine

from .harness import RESULTS

FILE = RESULTS / "autoattack_digits.json"
COUNT, STEPS, EPOCHS = 200, 100, 30


def measure(backend: str) -> dict[str, object]:
    """Accuracies by attack and the seconds each took."""
    training = spatlib.TrainConfig(epochs=EPOCHS, progress=False)
    config = RECIPES["digits"].config
    trained = spatlib.train(data="digits", backend=backend, config=config, training=training)
    x, y = as_dataset("digits", channels_first=load_engine(backend).CHANNELS_FIRST).measured
    np.random.seed(0)  # noqa: NPY002  # ART draws from the global generator
    metrics, seconds = {}, {}
    for attack in ("apgd", "autoattack"):
        began = time.perf_counter()
        part = (x[:COUNT], y[:COUNT])
        report = spatlib.evaluate(trained.model, part, config, attacks=(attack,), steps=STEPS)
        metrics |= report.metrics
        seconds[attack] = round(time.perf_counter() - began, 1)
    return {"count": COUNT, "eps": config.eps, "metrics": metrics, "seconds": seconds}


def main() -> None:
    if "torch" in (backends := sys.argv[1:] or ["torch", "tf"]):
        import torch  # noqa: F401  # before TensorFlow
    rows = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for backend in backends:
        rows[backend] = measure(backend)
        print(backend, rows[backend], flush=True)
        RESULTS.mkdir(exist_ok=True)
        FILE.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
