"""Is a network of benchmarks.evidence robust, or are its gradients only of no use?

    python -m benchmarks.masking digits --arms pgd mart --seeds 0 1

Needs the networks of ``python -m benchmarks.evidence``, and the extra autoattack. Appends to
benchmarks/results/masking_<data set>.csv; what is there is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import spatlib
from spatlib.config import plain_pgd
from spatlib_torch import perturb

from .evidence import RESTARTS, STEPS, Experiment, experiment, parser
from .evidence_arms import ARMS
from .harness import append, rows_of

COUNT = 200  # test examples


def check(runs: Experiment, name: str, seed: int) -> dict[str, Any]:
    """White-box, black-box and unbounded attacks on one network, accuracies of each.

    White-box PGD must not leave much more than AutoAttack does, which ends with a search that
    takes no gradient; examples made for another PGD-AT network, the judge, must not fool more
    than the network's own; and an attack that may do anything must leave nothing.
    """
    model, other = runs.trained(name, seed).model, runs.judge.model
    config, data = runs.setting.config, tuple(part[:COUNT] for part in runs.test)
    low, high = config.bounds
    starts = torch.Generator().manual_seed(seed)

    def transfer(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return perturb(other, x, y, plain_pgd(config, STEPS), generator=starts)

    measure = partial(spatlib.evaluate, model, data, steps=STEPS)
    attacks = ("pgd", "margin", "apgd", transfer, "autoattack")
    found = measure(threat=config, attacks=attacks, restarts=RESTARTS).metrics
    row = {
        "dataset": runs.name,
        "arm": name,
        "seed": seed,
        "clean": found["clean"],
        "worst": min(found[f"{attack}{STEPS}"] for attack in ("pgd", "margin")),
        "apgd": found[f"apgd{STEPS}"],
        **{key: found[key] for key in ("autoattack", "transfer")},
    }
    for column, eps in {
        "eps x 2": 2 * config.eps,
        "eps x 4": 4 * config.eps,
        "whole range": high - low,
    }.items():
        larger = replace(config, eps=min(eps, high - low))
        row[column] = measure(threat=larger, attacks=("pgd",)).metrics[f"pgd{STEPS}"]
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser("masking", __doc__)
    options.add_argument("--arms", nargs="+", choices=ARMS, default=["pgd"], metavar="ARM")
    options.add_argument("--seeds", nargs="+", type=int, default=[0])
    chosen = options.parse_args(arguments)
    runs, file = experiment(chosen), f"masking_{chosen.dataset}"
    for seed in chosen.seeds:
        for arm in chosen.arms:
            if (arm, str(seed)) not in {(row["arm"], row["seed"]) for row in rows_of(file)}:
                row = check(runs, arm, seed)
                append(file, row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
