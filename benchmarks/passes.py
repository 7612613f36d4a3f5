"""Examples that a network is shown by ``apgd``, beside AutoAttack's order of the same two attacks.

python -m benchmarks.passes

AutoAttack (Croce & Hein 2020) takes all steps of APGD-CE on what is correct clean, then all steps
of the targeted APGD on what is left before each target. What survives everything is shown every
target: a bound from below of what it takes, which needs no run of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import spatlib
from spatlib import RECIPES

from .harness import RESULTS

STEPS = 100


def passes(model: nn.Module, data: Any, threat: spatlib.Threat) -> dict[str, float]:
    """Per example: ours, and AutoAttack's at least."""
    shown = 0

    def count(_: Any, given: tuple[torch.Tensor]) -> None:
        nonlocal shown
        shown += len(given[0])

    with model.register_forward_pre_hook(count):
        found = spatlib.evaluate(model, data, threat, attacks=("apgd",), steps=STEPS)
    clean, robust = found.metrics["clean"], found.metrics[f"apgd{STEPS}"]
    targets = len(np.unique(data[1])) - 1
    least = 1 + (STEPS + 1) * (clean + targets * robust)
    facts = {"clean": clean, "robust": robust, "ours": shown / found.count, "autoattack": least}
    return facts | {"ratio": facts["ours"] / least}


def main() -> None:
    """Of the digits' network and its ordinary baseline, at the recipe's eps and a third of it."""
    config, rows = RECIPES["digits"].config, {}
    with TemporaryDirectory() as place:
        spatlib.train(recipe=RECIPES["digits"].change(progress=False), run_dir=place)
        for name, directory in (("robust", place), ("ordinary", Path(place, "standard"))):
            model, _ = spatlib.load_model(directory)
            x, y = spatlib.load_data("digits").test
            data = np.ascontiguousarray(np.moveaxis(x, -1, 1)), y
            for eps in (config.eps, config.eps / 3):
                threat = spatlib.Threat(eps=eps)
                rows[f"{name}, eps {eps:.2g}"] = passes(model, data, threat)
    (RESULTS / "passes_digits.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for name, facts in rows.items():
        print(name, {key: round(value, 3) for key, value in facts.items()})


if __name__ == "__main__":
    main()
