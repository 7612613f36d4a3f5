"""Is a network of benchmarks.evidence robust, or are its gradients only of no use?

    python -m benchmarks.masking digits --arms pgd mart --seeds 0 1

Needs the networks of ``python -m benchmarks.evidence``, and the extra autoattack. Appends to
benchmarks/results/masking_<data set>.csv; what is there is left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import spatlib
from spatlib_torch import perturb

from .evidence import RESTARTS, STEPS, Experiment, append, rows_of
from .evidence_arms import ARMS

COUNT = 200  # test examples


def check(experiment: Experiment, name: str, seed: int) -> dict[str, Any]:
    """White-box, black-box and unbounded attacks on one network, accuracies of each.

    White-box PGD must not leave much more than AutoAttack does, which ends with a search that
    takes no gradient; examples made for another PGD-AT network, the judge, must not fool more
    than the network's own; and an attack that may do anything must leave nothing.
    """
    model, other = experiment.trained(name, seed).model, experiment.judge.model
    config, data = experiment.setting.config, tuple(part[:COUNT] for part in experiment.test)
    low, high = config.bounds
    starts = torch.Generator().manual_seed(seed)

    def transfer(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return perturb(other, x, y, config.evaluation(STEPS), generator=starts)

    measure = partial(spatlib.evaluate, model, data, steps=STEPS)
    attacks = ("pgd", "margin", transfer, "autoattack")
    found = measure(config=config, attacks=attacks, restarts=RESTARTS).metrics
    row = {"dataset": experiment.name, "arm": name, "seed": seed, "clean": found["clean"],
           "worst": min(found[f"{attack}{STEPS}"] for attack in ("pgd", "margin")),
           **{key: found[key] for key in ("autoattack", "transfer")}}  # fmt: skip
    for column, eps in {"eps x 2": 2 * config.eps, "eps x 4": 4 * config.eps,
                        "whole range": high - low}.items():  # fmt: skip
        larger = replace(config, eps=min(eps, high - low))
        row[column] = measure(config=larger, attacks=("pgd",)).metrics[f"pgd{STEPS}"]
    return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.masking", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("dataset", choices=("digits",))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["pgd"], metavar="ARM")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    chosen = parser.parse_args(arguments)
    experiment, file = Experiment(chosen.dataset, None, None, None), f"masking_{chosen.dataset}"
    for seed in chosen.seeds:
        for arm in chosen.arms:
            if (arm, str(seed)) not in {(row["arm"], row["seed"]) for row in rows_of(file)}:
                row = check(experiment, arm, seed)
                append(file, row)
                print(row, flush=True)


if __name__ == "__main__":
    main()
