"""Do new weights leave log K at the eps of MNIST, with and without ``TrainConfig.eps_warmup``?

    python -m benchmarks.warmup strided 0 --data-dir DIR    # the network of benchmarks.evidence
    python -m benchmarks.warmup mnist_cnn 5 --data-dir DIR  # the one of the recipe

Writes benchmarks/results/eps_warmup_mnist.csv, a row per epoch; what is there is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import spatlib
from spatlib import RECIPES

from .evidence import SETTINGS
from .harness import append, rows_of

FILE = "eps_warmup_mnist"
SHOWN = ("loss", "adv_accuracy", "val_clean", "val_pgd10", "seconds")
# Step size of PGD-10, schedule; 9,000 images in batches of 20: about the recipe's steps per epoch.
PLANS: dict[str, tuple[float, dict[str, Any]]] = {
    "strided": (0.075, {"epochs": 12, "batch_size": 64, "schedule": "onecycle", "lr": 0.05}),
    "mnist_cnn": (0.03, {"epochs": 7, "batch_size": 20}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.warmup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("network", choices=PLANS)
    options.add_argument("eps_warmup", type=int)
    options.add_argument("--data-dir")
    chosen = options.parse_args(arguments)
    name, warmup = chosen.network, chosen.eps_warmup
    if (name, str(warmup)) in {(row["network"], row["eps_warmup"]) for row in rows_of(FILE)}:
        return
    step_size, plan = PLANS[name]
    changes = {"steps": 10, "step_size": step_size, "eps_warmup": warmup, "progress": False}
    data = spatlib.load_data("mnist", chosen.data_dir, limit=10_000)
    result = spatlib.train(
        SETTINGS["mnist"].build(0) if name == "strided" else name,
        replace(data, test=tuple(part[:500] for part in data.test)),
        recipe=RECIPES["mnist"].change(**plan, **changes),
    )
    for row in result.history:
        found = {key: row[key] for key in SHOWN}
        append(FILE, {"network": name, "eps_warmup": warmup, "epoch": row["epoch"], **found})
    print(name, warmup, result.metrics)


if __name__ == "__main__":
    main()
