"""Accuracy, clean and under attack."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig
from spatlib.core import target
from spatlib.core.projection import feasible_box
from spatlib.core.step import initial
from spatlib.result import Report

from . import ops
from .attack import ascend, draw_start
from .batches import Batches, device_of
from .inputs import check_label_values, logits_of, one_hot, prepare
from .state import attack_state, unwrap


def evaluate(
    model: nn.Module,
    data: Any,
    config: SPATConfig,
    *,
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """See :func:`spatlib.evaluate`; the attacks take ``steps`` steps of 2.5 eps / steps."""
    where = device_of(model, device)
    model.to(where)
    # Evaluation attacks hard labels with the full budget, whatever the training attack does.
    threat = config.evaluation(steps)
    names = {f"pgd{steps}": "cross-entropy", f"margin{steps}": "margin"}
    # One source per restart: more of them repeat the fewer and add to them.
    sources = [torch.Generator(where).manual_seed(seed + 7919 * r) for r in range(restarts)]
    correct = dict.fromkeys(("clean", *names), 0)
    count = 0
    with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator
        for x, y in Batches(data, batch_size, model, where).go_through():
            x, y = prepare(x, y, threat, validate=True)
            count += len(y)
            with attack_state(unwrap(model), "eval", where, keep_rng=True):
                clean = correct_on(model, x, y, validate=True)
                correct["clean"] += int(clean.sum())
                for name, objective in names.items():
                    robust = clean
                    for source in sources:
                        robust = robust & robust_on(model, x, y, threat, objective, source)
                    correct[name] += int(robust.sum())
    metrics = {name: number / count for name, number in correct.items()}
    return Report(metrics=metrics, count=count, config=config, restarts=restarts)


def check(data: Any, config: SPATConfig) -> None:
    """Go through the data once: a DataError now rather than after the training."""
    with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator
        for x, y in Batches(data, 1024, nn.Identity(), torch.device("cpu")).go_through():
            prepare(x, y, config, validate=True)


@torch.no_grad()
def correct_on(model: nn.Module, x: Tensor, y: Tensor, *, validate: bool = False) -> Tensor:
    """(N,) whether the largest logit is the label's."""
    logits = logits_of(unwrap(model), x)
    if validate:
        check_label_values(y, logits.shape[1])
    return logits.argmax(dim=1) == y


def robust_on(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: SPATConfig,
    objective: str,
    generator: torch.Generator | None,
) -> Tensor:
    """(N,) whether the label survives one start and the attack from it, inside attack_state."""

    def ascent(logits: Tensor) -> Tensor:
        value: Tensor = target.attack_loss(ops, objective, logits, one_hot(y, logits))
        return value

    lower, upper = feasible_box(ops, x, None, threat.eps, threat.bounds)
    start = draw_start(x, threat, generator)
    d = initial(ops, start, None, lower, upper, threat.eps, threat.norm)
    at_start = correct_on(model, ops.clip(x + d, *threat.bounds), y)
    x_adv = ascend(unwrap(model), x, d, None, lower, upper, threat, ascent)
    return at_start & correct_on(model, x_adv, y)
