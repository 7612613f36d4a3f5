"""Does training under bfloat16 end where float32 ends, and what does it cost on this processor?

    python -m benchmarks.precision digits
    python -m benchmarks.precision cifar10-narrow --data-dir DIR

Pairs of trainings that differ in ``TrainConfig.precision`` alone. Appends to
benchmarks/results/precision.csv, leaves out what is there, and prints the paired differences.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

import spatlib
from spatlib import RECIPES, Recipe

from .evidence import SETTINGS
from .harness import append, rows_of

FILE, KINDS = "precision", ("float32", "bfloat16")
MEASURES = ("clean", "pgd20", "margin20", "worst")
NARROW = {"examples": 5000, "measured": 1000, "epochs": 8}
SEEDS = {"digits": 5, "cifar10-narrow": 3}


def trained(name: str, seed: int, precision: str, data_dir: str | None) -> spatlib.Result:
    own: dict[str, Any] = {"seed": seed, "precision": precision, "progress": False}
    if name == "digits":
        return spatlib.train(recipe=RECIPES["digits"].change(baseline=False, **own))
    setting = SETTINGS[name]
    data = spatlib.load_data("cifar10", data_dir, limit=NARROW["examples"])
    plan = {"config": setting.config, "training": setting.training}
    recipe = Recipe(data=None, model=None, source="", **plan)
    own |= {"epochs": NARROW["epochs"], "validation": 0}
    test = tuple(part[: NARROW["measured"]] for part in data.test)
    return spatlib.train(setting.build(seed), replace(data, test=test), recipe=recipe.change(**own))


def differences(name: str) -> dict[str, str]:
    """bfloat16 minus float32 in points, mean and standard error over seeds; the time's ratio."""
    rows = {(r["seed"], r["precision"]): r for r in rows_of(FILE) if r["dataset"] == name}
    seeds = [seed for seed, kind in rows if kind == KINDS[1] and (seed, KINDS[0]) in rows]
    pairs = [[rows[seed, kind] for kind in KINDS] for seed in seeds]
    found = {"seeds": str(len(pairs))}
    for key in MEASURES:
        each = [100 * (float(low[key]) - float(full[key])) for full, low in pairs]
        error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else float("nan")
        found[key] = f"{statistics.fmean(each or [math.nan]):+.2f} ± {error:.2f}"
    time = [float(low["seconds"]) / float(full["seconds"]) for full, low in pairs]
    return found | {"time": f"{statistics.median(time or [math.nan]):.2f}"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.precision",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("dataset", choices=SEEDS)
    options.add_argument("--data-dir", help="where the official files of CIFAR-10 are")
    options.add_argument("--seeds", nargs="+", type=int)
    options.add_argument("--precisions", nargs="+", choices=KINDS, default=KINDS)
    chosen = options.parse_args(arguments)
    name = chosen.dataset
    for seed in chosen.seeds or range(SEEDS[name]):
        for kind in chosen.precisions if seed % 2 else chosen.precisions[::-1]:
            key = name, kind, str(seed)
            if key in {(r["dataset"], r["precision"], r["seed"]) for r in rows_of(FILE)}:
                continue
            result = trained(name, seed, kind, chosen.data_dir)
            found = {measure: result.metrics[measure] for measure in MEASURES}
            seconds = statistics.median(row["seconds"] for row in result.history)
            row = dict(zip(("dataset", "precision", "seed"), key, strict=True)) | found
            append(FILE, row | {"seconds": seconds, "threads": torch.get_num_threads()})
            print(*key, found, f"{seconds:.2f} s per epoch", flush=True)
    print(name, differences(name))


if __name__ == "__main__":
    main()
