"""``SPATModel.fit`` against a hand-written tf.function loop and ART; see docs/performance.md.

``python -m benchmarks.step_tf small``, or ``xla``, ``classes``, ``resnet18``, ``mlp``, or ``peers``
with adversarial-robustness-toolbox installed. ``--peaks`` after it adds each arm's peak memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from spatlib import Mask, SPATConfig

from . import ours_tf, peers_tf
from .harness import RESULTS, hardware, interleaved, peak_resident, ratios, save, table

EPS = 8 / 255
PLAIN = SPATConfig(eps=EPS, smoothing=0)
METHODS = {
    "PGD-AT": PLAIN,
    "SPAT": SPATConfig(eps=EPS, mask=Mask()),
    "SPAT classes=4": SPATConfig(eps=EPS, mask=Mask(classes=4)),
    "SPAT rms": SPATConfig(eps=EPS, mask=Mask(score="rms")),
}
STEPS = {"mlp": 20}  # training steps of one timing; otherwise one
ROUNDS = {"small": 15, "xla": 7, "peers": 5, "classes": 5, "resnet18": 5, "mlp": 15}
BASE = "by hand"
Arm = Callable[[], Any]


def makers(size: str) -> dict[str, Callable[[], Arm]]:
    """By name, what builds an arm; nothing is built yet."""
    hand, ours = partial(peers_tf.by_hand, "small"), partial(ours_tf.step, "small")
    if size == "classes":
        return {
            f"{method}, K={classes}": partial(ours, METHODS[method], classes)
            for classes in (10, 100, 1000)
            for method in ("PGD-AT", "SPAT classes=4", "SPAT rms")
        }
    if size == "peers":  # whole calls on one batch
        return {
            BASE: partial(hand, PLAIN),
            f"{BASE}, unrolled": partial(hand, PLAIN, unrolled=True),
            "a call of fit, PGD-AT": partial(ours_tf.fit, "small", PLAIN),
            "a call of Keras' fit, no attack": partial(ours_tf.keras_fit, "small"),
            "ART": partial(peers_tf.art, "small", PLAIN),
        }
    if size == "xla":
        return {
            BASE: partial(hand, PLAIN),
            f"{BASE}, XLA": partial(hand, PLAIN, xla=True),
            "fit PGD-AT, XLA": partial(ours, PLAIN, xla=True),
            "fit SPAT, XLA": partial(ours, METHODS["SPAT"], xla=True),
        }
    steps = STEPS.get(size, 1)
    arms: dict[str, Callable[[], Arm]] = {BASE: partial(peers_tf.by_hand, size, PLAIN, steps=steps)}
    for name, config in METHODS.items():
        arms[f"fit {name}"] = partial(ours_tf.step, size, config, steps=steps)
    return arms


def peak_mib(size: str, name: str) -> float:
    """Memory of an arm's own process above that of the imports."""
    command = [sys.executable, "-m", "benchmarks.step_tf", size, "--peak", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(done.stdout.splitlines()[-1])


def main(size: str) -> None:
    build = makers(size)
    times, first = interleaved({name: make() for name, make in build.items()}, ROUNDS[size])
    base = next(iter(build))
    rows = [
        {
            "arm": name,
            "ms": round(row["ms"] / STEPS.get(size, 1), 1),
            **{key: round(row[key], 2) for key in ("ratio", "low", "high")},
            "first s": round(first[name], 1),
        }
        for name, row in ratios(times, base).items()
    ]
    path = RESULTS / "step_tf_cpu.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    save(path.stem, {**old, "hardware": hardware(), size: rows})
    print(table(rows))


def peaks(size: str) -> None:
    """Add the peak memory of every arm to the saved rows."""
    path = RESULTS / "step_tf_cpu.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content[size]:
        row["peak MiB"] = round(peak_mib(size, row["arm"]))
    save(path.stem, content)
    print(table(content[size]))


if __name__ == "__main__":
    if "--peak" in sys.argv:
        before = peak_resident()
        arm = makers(sys.argv[1])[sys.argv[3]]()
        arm()
        arm()
        print(peak_resident() - before)
    elif "--peaks" in sys.argv:
        peaks(sys.argv[1])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "small")
