"""What is compared: arms as settings of the library, and controls that put something else in."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest import mock

from spatlib import Mask, SPATConfig
from spatlib.core import mask as core
from spatlib.monitor import Monitor
from spatlib_torch import attack, ops

SMOOTHING = 0.1  # of the labels in the outer loss, for the control that has it there
PLAIN: dict[str, Any] = {"smoothing": 0.0, "mask": None}


class Arm(NamedTuple):
    """Settings of SPATConfig, ``stretch``: the training eps in units of the evaluation's."""

    config: dict[str, Any]
    control: str = ""
    stretch: float = 1.0

    def attack(self, threat: SPATConfig) -> SPATConfig:
        """The training attack on a data set's threat model."""
        eps, length = self.stretch * threat.eps, self.stretch * threat.alpha
        return replace(threat, eps=eps, step_size=length, **self.config)


def mask(score: str = "min", keep: float = 0.5, floor: float = 0.5) -> dict[str, Any]:
    return {"smoothing": 0.0, "mask": Mask(score=score, keep=keep, floor=floor)}


def _smoothed(a: float, guard: bool) -> dict[str, Any]:
    return {**PLAIN, "smoothing": a, "guard": guard}


ARMS = {
    "standard": Arm(PLAIN, "ordinary"),
    "pgd": Arm(PLAIN),
    "trades": Arm({**PLAIN, "loss": "trades"}),
    "mart": Arm({**PLAIN, "loss": "mart"}),
    "pgd, labels smoothed": Arm(PLAIN, "labels"),
    **{f"pgd, eps x {s:.2f}": Arm(PLAIN, "", s) for s in (1 / 2, 2 / 3, 5 / 6, 4 / 3, 5 / 3)},
    **{f"smooth {a}": Arm(_smoothed(a, False)) for a in (0.1, 0.3, 0.5)},
    **{f"smooth {a} guarded": Arm(_smoothed(a, True)) for a in (0.1, 0.3, 0.7)},
    **{f"mask {name}": Arm(mask(name)) for name in ("min", "mean", "rms", "neutral", "random")},
    "mask min inverted": Arm(mask(), "inverted"),
    "mask mean inverted": Arm(mask("mean"), "inverted"),
    "mask min, keep .25": Arm(mask(keep=0.25)),
    "mask min, keep .75": Arm(mask(keep=0.75)),
    "mask min, floor 0": Arm(mask(floor=0.0)),
    "mask min, floor .75": Arm(mask(floor=0.75)),
    "smooth 0.1 guarded, mask min": Arm({**mask(), "smoothing": 0.1}),
    # As much as the evaluation takes everywhere, and more on the chosen pixels.
    **{
        f"realloc {name} x {s:.2f}": Arm(mask(name, floor=1 / s), "", s)
        for name in ("min", "mean", "neutral", "random")
        for s in (4 / 3, 5 / 3)
    },
    "realloc min x 1.33, smooth 0.1 guarded": Arm(
        {**mask(floor=0.75), "smoothing": 0.1}, "", 4 / 3
    ),
}
ARMS |= {
    f"trades, {name}": arm._replace(config={**arm.config, "loss": "trades"})
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
    "trades, eps x 0.83": Arm({**PLAIN, "loss": "trades"}, "", 5 / 6),
    "trades, eps x 1.33": Arm({**PLAIN, "loss": "trades"}, "", 4 / 3),
}


@contextmanager
def control(kind: str) -> Iterator[None]:
    """Train (and attack) otherwise than the library can be asked to.

    Args:
        kind: ``"ordinary"``: no attack, and the best epoch is the one of the best clean accuracy.
            ``"labels"``: the outer loss takes smoothed labels. ``"inverted"``: the mask has the
            least shared pixels. Or ``""``.
    """
    with ExitStack() as stack:
        for owner, name, value in _replacements(kind):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def _replacements(kind: str) -> list[tuple[Any, str, Any]]:
    finish, one_hot, outer = core.finish, ops.one_hot, attack.outer

    def inverted(ops: Any, state: Any, *rest: Any) -> Any:
        return finish(ops, state._replace(score=-state.score), *rest)

    def smoothed(y: Any, logits: Any) -> Any:
        return (1 - SMOOTHING) * one_hot(y, logits) + SMOOTHING / logits.shape[1]

    def smoothed_outer(*arguments: Any, **named: Any) -> Any:
        with mock.patch.object(ops, "one_hot", smoothed):
            return outer(*arguments, **named)

    if kind == "ordinary":

        def ordinary(*arguments: Any, **named: Any) -> Monitor:
            return Monitor(*arguments, **named | {"ordinary": True})

        return [(sys.modules["spatlib.train"], "Monitor", ordinary)]
    if kind == "labels":
        return [(attack, "outer", smoothed_outer)]
    return [(core, "finish", inverted)] if kind == "inverted" else []
