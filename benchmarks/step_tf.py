"""``SPATModel.fit`` against a hand-written tf.function loop and ART; see docs/performance.md.

``python -m benchmarks.step_tf small``, or ``xla``, ``classes``, ``resnet18``, ``mlp``, or ``art``,
which needs adversarial-robustness-toolbox. ``--peaks`` after it adds the peak memory of every arm.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from spatlib import SPATConfig

from . import ours_tf, peers_tf
from .harness import RESULTS, hardware, interleaved, ratios, save, table

PLAIN = SPATConfig(smoothing=0, keep=1)
METHODS = {
    "PGD-AT": PLAIN,
    "SPAT": SPATConfig(),
    "SPAT mask_classes=4": SPATConfig(mask_classes=4),
    "SPAT rms": SPATConfig(share="rms"),
}
STEPS = {
    "small": 4,
    "xla": 4,
    "art": 4,
    "classes": 4,
    "resnet18": 1,
    "mlp": 20,
}  # training steps of one timing
ROUNDS = {"small": 9, "xla": 5, "art": 3, "classes": 5, "resnet18": 5, "mlp": 15}
BASE = "by hand"
Arm = Callable[[], Any]


def makers(size: str) -> dict[str, Callable[[], Arm]]:
    """By name, what builds an arm; nothing is built yet."""
    if size == "classes":
        return {
            f"{method}, K={classes}": partial(ours_tf.fit, "small", ours_tf.data(4, classes),
                                              METHODS[method], classes)
            for classes in (10, 100, 1000)
            for method in ("PGD-AT", "SPAT mask_classes=4", "SPAT rms")
        }  # fmt: skip
    if size == "art":  # apart: it traces its training step anew for every batch
        pair = ours_tf.data(STEPS["small"])
        return {
            BASE: partial(peers_tf.by_hand, "small", pair, PLAIN),
            "ART": partial(peers_tf.art, "small", pair, PLAIN),
        }
    if size == "xla":  # apart: compiling takes long
        pair = ours_tf.data(STEPS["small"])
        return {
            BASE: partial(peers_tf.by_hand, "small", pair, PLAIN),
            f"{BASE}, XLA": partial(peers_tf.by_hand, "small", pair, PLAIN, xla=True),
            "fit PGD-AT, XLA": partial(ours_tf.fit, "small", pair, PLAIN, xla=True),
            "fit SPAT, XLA": partial(ours_tf.fit, "small", pair, METHODS["SPAT"], xla=True),
        }
    pair = ours_tf.data(STEPS[size])
    hand = partial(peers_tf.by_hand, size, pair, PLAIN)
    arms: dict[str, Callable[[], Arm]] = {BASE: hand}
    arms |= {f"fit {n}": partial(ours_tf.fit, size, pair, c) for n, c in METHODS.items()}
    if size != "resnet18":
        arms[f"{BASE}, unrolled"] = partial(hand, unrolled=True)
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
        {"arm": name, "ms": round(row["ms"] / STEPS[size], 1),
         **{key: round(row[key], 2) for key in ("ratio", "low", "high")},
         "first s": round(first[name], 1)}
        for name, row in ratios(times, base).items()
    ]  # fmt: skip
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
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        arm = makers(sys.argv[1])[sys.argv[3]]()
        arm()
        arm()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
    elif "--peaks" in sys.argv:
        peaks(sys.argv[1])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "small")
