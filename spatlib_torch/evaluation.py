"""Accuracy, clean and under attack."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig
from spatlib.evaluate import Evaluation, is_correct, survivors
from spatlib.result import Report

from . import ops
from .attack import draw_start
from .batches import Batches, device_of
from .inputs import check_graph, check_label_values, check_tensor, logits_of, one_hot, prepare
from .state import attack_state, unwrap


def evaluate(
    model: nn.Module,
    data: Any,
    config: SPATConfig,
    *,
    attacks: Sequence[Any] = ("pgd", "margin"),
    steps: int = 20,
    restarts: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    device: str | None = None,
) -> Report:
    """See :func:`spatlib.evaluate`."""
    evaluation = Evaluation(config, attacks, steps, restarts, seed)
    where = device_of(model, device)
    model.to(where)
    sources = [torch.Generator(where).manual_seed(number) for number in evaluation.seeds]
    table, classes = [], 0
    with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator
        for x, y in Batches(data, batch_size, model, where, config.bounds).go_through():
            x, y = prepare(x, y, evaluation.threat, validate=True)
            with attack_state(unwrap(model), "eval", where, keep_rng=True):
                verdicts, classes = _judge(unwrap(model), x, y, evaluation, sources)
            rows = [verdicts[key] for key in evaluation.keys]
            table.append(torch.stack([y, *rows]).numpy(force=True))  # one read for all
    return evaluation.report(table, classes)


def check(data: Any, config: SPATConfig) -> None:
    """Raise DataError for data that :func:`evaluate` would refuse, before training on others."""
    with torch.random.fork_rng(devices=[]):  # a loader draws from the global generator
        batches = Batches(data, 1024, nn.Identity(), torch.device("cpu"), config.bounds)
        for x, y in batches.go_through():
            prepare(x, y, config, validate=True)


def _judge(
    model: nn.Module, x: Tensor, y: Tensor, evaluation: Evaluation, sources: list[torch.Generator]
) -> tuple[dict[str, Tensor], int]:
    """(N,) verdicts under every attack, and the number of classes; inside attack_state."""
    threat, predict = evaluation.threat, torch.no_grad()(partial(logits_of, model))

    def slope(z: Tensor, loss: Any) -> tuple[Tensor, Tensor, Tensor]:
        leaf = z.detach().requires_grad_()
        logits = logits_of(model, leaf)
        check_graph(logits)
        values = loss(logits)
        (grad,) = torch.autograd.grad(values.sum(), leaf)
        return values.detach(), grad, logits.detach()

    clean = predict(x)
    check_label_values(y, clean.shape[1])
    label = one_hot(y, clean)
    batch, starts = (x, clean, label), (draw_start(x, threat, source) for source in sources)
    verdicts = survivors(ops, threat, evaluation.named, batch, predict, slope, starts)
    for key, attack in evaluation.callables.items():
        # "train" puts the buffers back too; here the modules are in inference mode already.
        with attack_state(model, "train", x.device, keep_rng=True):
            found = attack(model, x.clone(), y.clone())
        check_tensor(f"x_adv of {key}", found)
        found = found.detach().to(x)
        before, after = (t.cpu().double().numpy() for t in (x, found))
        evaluation.check_inside(key, before, after, ops.mantissa_bits(x))
        verdicts[key] = verdicts["clean"] & is_correct(ops, predict(found), label)
    return verdicts, clean.shape[1]
