"""A few attacked examples, to look at."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spatlib.config import SPATConfig

from .attack import perturb
from .batches import Batches, device_of
from .inputs import logits_of
from .mask import shared_mask
from .state import attack_state, unwrap


def examples(
    model: nn.Module, data: Any, config: SPATConfig, *, count: int = 8, seed: int = 0
) -> dict[str, Any]:
    """What :func:`spatlib.plots.sheet` shows, of the first ``count`` examples, in NumPy."""
    device = device_of(model, None)
    x, y = next(Batches(data, count, model, device, config.bounds).go_through())
    x, y = x[:count], y[:count]
    first, second = (torch.Generator(device).manual_seed(seed) for _ in range(2))
    mask = shared_mask(model, x, y, config, generator=first)
    x_adv = perturb(model, x, y, config, mask=mask, generator=second)
    with attack_state(unwrap(model), "eval", device, keep_rng=True), torch.no_grad():
        clean, adversarial = (logits_of(unwrap(model), z).argmax(dim=1) for z in (x, x_adv))
    images = {"x": x, "mask": mask, "x_adv": x_adv}
    classes = {"y": y, "clean": clean, "adversarial": adversarial}
    return {name: image.movedim(1, -1).float().cpu().numpy() for name, image in images.items()} | {
        name: read.cpu().numpy() for name, read in classes.items()
    }


def logits(model: nn.Module, x: Any, batch_size: int = 256) -> Any:
    """See :class:`spatlib.backends.Engine`."""
    device, module = device_of(model, None), unwrap(model)
    batches = Batches((x, torch.zeros(len(x))), batch_size, model, device, (0, 1)).go_through()
    with attack_state(module, "eval", device, keep_rng=True), torch.no_grad():
        return torch.cat([logits_of(module, z) for z, _ in batches]).cpu().numpy()
