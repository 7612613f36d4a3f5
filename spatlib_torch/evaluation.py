"""Who survives the attacks of an evaluation, and what an attack makes of a few examples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spatlib.config import SPATConfig, Threat
from spatlib.core.survivors import is_correct
from spatlib.core.survivors import survivors as core
from spatlib.evaluate import Evaluation

from . import ops
from .attack import attacked, draw_start
from .attack import vjp as attack_vjp
from .inputs import check_label_values, check_tensor, logits_of, one_hot, prepare
from .loaders import CPU, Batches, device_of, keeping_globals
from .state import attack_state, unwrap


def survivors(
    model: nn.Module, data: Any, evaluation: Evaluation, batch_size: int, device: str | None
) -> tuple[list[np.ndarray], int]:
    """See :class:`spatlib.engines.Engine`."""
    where = device_of(model, device)
    model.to(where)
    sources = [torch.Generator(where).manual_seed(number) for number in evaluation.seeds]
    table, classes = [], 0
    with keeping_globals(where):  # a loader draws from them
        for x, y in Batches(data, batch_size, model, where, evaluation.threat.bounds):
            x, y = prepare(x, y, evaluation.threat, validate=True)
            with attack_state(unwrap(model), fork=where) as module:
                verdicts, classes = _judge(module, x, y, evaluation, sources)
            rows = [verdicts[key] for key in evaluation.keys]
            table.append(torch.stack([y, *rows]).numpy(force=True))  # one read for all
    return table, classes


def check(data: Any, threat: Threat) -> None:
    """Go through the data once: a DataError now rather than after the training."""
    with keeping_globals(CPU):  # a loader draws from them
        for x, y in Batches(data, 1024, nn.Identity(), CPU, threat.bounds):
            prepare(x, y, threat, validate=True)


def perturb(
    model: nn.Module, x: Any, y: Any, config: SPATConfig, seed: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """See :class:`spatlib.engines.Engine`."""
    device = device_of(model, None)
    x, y = next(iter(Batches((x, y), len(x), model, device, config.bounds)))
    x, y = prepare(x, y, config, validate=True)
    source = torch.Generator(device).manual_seed(seed)
    found = attacked(model, x, y, config, source=source, check=True)
    mask = None if found.mask is None else found.mask.float().numpy(force=True)
    return found.x.float().numpy(force=True), mask


def logits(model: nn.Module, x: Any, batch_size: int = 256) -> np.ndarray:
    """See :class:`spatlib.engines.Engine`."""
    device = device_of(model, None)
    batches = Batches((x, torch.zeros(len(x))), batch_size, model, device, (0, 1))
    with attack_state(unwrap(model), fork=device) as module, torch.no_grad():
        found = torch.cat([logits_of(module, z) for z, _ in batches])
    return found.numpy(force=True)


def vjp(model: nn.Module, x: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """See :class:`spatlib.engines.Engine`."""
    like = next(model.parameters(), torch.zeros(()))
    with attack_state(unwrap(model)) as module:
        z, pull = attack_vjp(module, torch.as_tensor(x).to(like))

    def gradient(cotangent: np.ndarray) -> np.ndarray:
        return pull(torch.as_tensor(cotangent).to(z)).numpy(force=True)

    return z.double().numpy(force=True), gradient


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Put back what attack_state takes as fixed: a callable may set BatchNorm to training mode."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)


def _judge(
    model: nn.Module, x: Tensor, y: Tensor, evaluation: Evaluation, sources: list[torch.Generator]
) -> tuple[dict[str, Tensor], int]:
    """Boolean verdicts (N,) under every attack, and the number of classes; inside attack_state."""
    threat, predict = evaluation.threat, torch.no_grad()(partial(logits_of, model))
    clean = predict(x)
    check_label_values(y, clean.shape[1])
    label = one_hot(y, clean)
    starts = (draw_start(x, threat, source) for source in sources)
    own = partial(attack_vjp, model), predict
    verdicts = core(ops, *own, evaluation.named, threat, (x, clean, label), starts)
    for key, attack in evaluation.callables.items():
        # The callable's own traces are removed as well.
        with _same_buffers(model), attack_state(model, fork=x.device):
            found = attack(model, x.clone(), y.clone())
        found = torch.as_tensor(found) if isinstance(found, np.ndarray) else found
        check_tensor(f"x_adv of {key}", found)
        found = found.detach().to(x)
        before, after = (part.cpu().double().numpy() for part in (x, found))
        evaluation.check_inside(key, before, after, ops.mantissa_bits(x))
        verdicts[key] = verdicts["clean"] & is_correct(ops, predict(found), label)
    return verdicts, clean.shape[1]
