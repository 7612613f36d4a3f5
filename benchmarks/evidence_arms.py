"""What is compared: arms as settings of the library, and controls that put something else in."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch

import spatlib_torch.losses
from spatlib.core import mask as core
from spatlib.monitor import CLEAN
from spatlib_torch import loop

SMOOTHING = 0.1  # of the labels in the outer loss, for the control that has it there
PLAIN = {"smoothing": 0.0, "keep": 1.0}


class Arm(NamedTuple):
    """Settings of SPATConfig, ``stretch``: the training eps in units of the evaluation's."""

    config: dict[str, Any]
    control: str = ""
    stretch: float = 1.0


def mask(share: str = "min", keep: float = 0.5, floor: float = 0.5) -> dict[str, Any]:
    return {"smoothing": 0.0, "share": share, "keep": keep, "floor": floor}


def _smoothed(a: float, guard: bool) -> dict[str, Any]:
    return {**PLAIN, "smoothing": a, "guard": guard}


ARMS = {
    "standard": Arm(PLAIN, "ordinary"),
    "pgd": Arm(PLAIN),
    "trades": Arm({**PLAIN, "base": "trades"}),
    "mart": Arm({**PLAIN, "base": "mart"}),
    "pgd, labels smoothed": Arm(PLAIN, "labels"),
    **{f"pgd, eps x {s:.2f}": Arm(PLAIN, "", s) for s in (1 / 2, 2 / 3, 5 / 6, 4 / 3, 5 / 3)},
    **{f"smooth {a}": Arm(_smoothed(a, False)) for a in (0.1, 0.3, 0.5)},
    **{f"smooth {a} guarded": Arm(_smoothed(a, True)) for a in (0.1, 0.3, 0.7)},
    **{f"mask {share}": Arm(mask(share)) for share in ("min", "mean", "rms", "neutral")},
    "mask random": Arm(mask(), "random"),
    "mask min inverted": Arm(mask(), "inverted"),
    "mask mean inverted": Arm(mask("mean"), "inverted"),
    "mask min, keep .25": Arm(mask(keep=0.25)),
    "mask min, keep .75": Arm(mask(keep=0.75)),
    "mask min, floor 0": Arm(mask(floor=0.0)),
    "mask min, floor .75": Arm(mask(floor=0.75)),
    "smooth 0.1 guarded, mask min": Arm({**mask(), "smoothing": 0.1}),
    # As much as the evaluation takes everywhere, and more on the chosen pixels.
    **{
        f"realloc {share} x {s:.2f}": Arm(mask(share, floor=1 / s), "", s)
        for share in ("min", "mean", "neutral")
        for s in (4 / 3, 5 / 3)
    },
    **{f"realloc random x {s:.2f}": Arm(mask(floor=1 / s), "random", s) for s in (4 / 3, 5 / 3)},
    "realloc min x 1.33, smooth 0.1 guarded": Arm(
        {**mask(floor=0.75), "smoothing": 0.1}, "", 4 / 3
    ),
}
ARMS |= {
    f"trades, {name}": arm._replace(config={**arm.config, "base": "trades"})
    for name, arm in ARMS.items()
    if name
    in (
        "smooth 0.1 guarded",
        "smooth 0.3 guarded",
        "mask min",
        "mask random",
        "smooth 0.1 guarded, mask min",
        "realloc min x 1.33",
        "realloc random x 1.33",
    )
} | {
    "trades, eps x 0.83": Arm({**PLAIN, "base": "trades"}, "", 5 / 6),
    "trades, eps x 1.33": Arm({**PLAIN, "base": "trades"}, "", 4 / 3),
}


@contextmanager
def control(kind: str, seed: int) -> Iterator[None]:
    """Train (and attack) otherwise than the library can be asked to.

    Args:
        kind: ``"ordinary"``: no attack, and the best epoch is the one of the best clean accuracy.
            ``"labels"``: the outer loss takes smoothed labels. ``"random"``: scores of the mask
            that are drawn. ``"inverted"``: the least shared pixels. Or ``""``.
    """
    with ExitStack() as stack:
        for owner, name, value in _replacements(kind, seed):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def _replacements(kind: str, seed: int) -> list[tuple[Any, str, Any]]:
    finish, one_hot = core.finish, spatlib_torch.losses.one_hot
    draws = torch.Generator().manual_seed(seed)

    def scored(score_of: Callable[[Any], Any]) -> Any:
        return lambda ops, state, *rest: finish(ops, (score_of(state[0]), state[1]), *rest)

    if kind == "ordinary":
        # Under attack a network is best before it has learnt anything.
        train = sys.modules["spatlib.train"]
        return [(loop, "batch_loss", loop._standard_loss), (train, "ROBUST", CLEAN)]
    if kind == "labels":
        return [
            (
                spatlib_torch.losses,
                "one_hot",
                lambda y, logits: (
                    (1 - SMOOTHING) * one_hot(y, logits) + SMOOTHING / logits.shape[1]
                ),
            )
        ]
    if kind == "random":
        drawn = scored(lambda score: torch.rand(score.shape, generator=draws).to(score))
        return [(core, "finish", drawn)]
    return [(core, "finish", scored(lambda score: -score))] if kind == "inverted" else []
