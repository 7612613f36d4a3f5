"""One training step in PyTorch: ours, loops written by hand, and every peer that is installed.

    python -m benchmarks.step                                 # the small residual network, PGD-AT
    python -m benchmarks.step --compiled                      # the same, compiled
    python -m benchmarks.step --loss trades --mask off min
    python -m benchmarks.step --device cuda --model preact_resnet18 --batch 512 --precision bfloat16

Writes benchmarks/results/step_torch_<device>[_<what differs from the defaults>].json, with
``_selected`` at the end where ``--only`` chose the arms: first what is known before any timing, and
anew with every arm and round, so that what ends it early leaves the rest. An arm that fails, or
for which ``--seconds`` leave no time, is named there with the reason; so is what one warned of,
such as an attack that could not be captured.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from .harness import RESULTS, Times, hardware, interleaved, ratios, save, seconds_of, table
from .setting import MASKS, MLPS, SIZES, Arm, Setting

NETWORKS = ("small", "preact_resnet18", "wrn34_10", "tiny", *MLPS)
BUILDING = 2 / 3  # of the time there is; then the rounds begin with the arms that are there


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=NETWORKS, default="small")
    parser.add_argument("--loss", choices=("pgd", "trades", "mart"), default="pgd")
    parser.add_argument("--norm", choices=SIZES, default="Linf")
    parser.add_argument("--mask", nargs="+", choices=MASKS, default=Setting().mask)
    for name in ("classes", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, default=Setting._field_defaults[name])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all of it")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of the file")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="arms whose names begin so, in this order"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = vars(parser.parse_args(arguments))
    given = sys.argv[1:] if arguments is None else list(arguments)
    limited = math.isfinite(seconds := options.pop("seconds"))
    end = time.monotonic() + seconds
    rounds, out, only, peak = (options.pop(key) for key in ("rounds", "out", "only", "peak"))
    from . import arms_torch  # after the options, which need no PyTorch

    setting = Setting(**options)
    builders = arms_torch.builders(setting)
    if peak is not None:
        print(json.dumps(arms_torch.peak(builders[peak])))
        return
    base = next(iter(builders))
    chosen = dict.fromkeys(
        [base, *(arm for text in only for arm in builders if arm.startswith(text))]
    )
    differs = [
        "compiled" if value is True else str(value)
        for key, value in setting._asdict().items()
        if key not in ("device", "mask") and value != getattr(Setting(), key)
    ]
    name = "_".join(["step_torch", setting.device, *differs, *["selected"] * (only != [""])])
    content: dict[str, Any] = {
        "setting": setting._asdict(),
        "hardware": hardware(setting.device),
        **arms_torch.facts(setting),
        "gflop_per_image": arms_torch.gflop_per_image(setting),
        "left_out": {},
        "arms": {},
    }
    keep = partial(save, name, content, out)
    keep()
    measure({arm: builders[arm] for arm in chosen}, content, keep, rounds, end)
    for arm, row in content["arms"].items() if setting.device == "cpu" and not limited else ():
        row["peak_mib"] = _peak_of(given, arm)
        keep()
    heads = [key for key in content if key not in ("setting", "hardware", "arms")]
    print(_table(content["arms"]), *(f"{key}: {content[key]}" for key in heads), sep="\n")


def measure(
    builders: Mapping[str, Callable[[], Arm]],
    content: dict[str, Any],
    keep: Callable[[], None],
    rounds: int,
    end: float,
) -> None:
    """Put a row for each arm into ``content``, which ``keep`` writes, until ``end`` is near."""
    from spatlib_torch.graphs import WARM

    from .arms_torch import allocated

    setting, work, rows = (content[key] for key in ("setting", "gflop_per_image", "arms"))
    began, arms, times = time.monotonic(), dict[str, Arm](), Times()

    def told(times: Times) -> bool:
        for arm, row in ratios(times, next(iter(times))).items():
            images = 1e3 * setting["batch"] / row["ms"]
            done = work.get(arm.removeprefix("ours, "), work["off"])
            rows[arm] |= {**row, "images_per_s": images, "tflops": done * images / 1e3}
        keep()
        return time.monotonic() < end

    for arm, build in builders.items():
        if arms and time.monotonic() - began > BUILDING * (end - began):
            content["left_out"][arm] = "no time for it"
            continue
        try:
            before = allocated()
            with warnings.catch_warnings(action="always", record=True) as seen:
                step = build()
                row: dict[str, Any] = {"first_s": seconds_of(step)}
                for _ in range(WARM):  # compiled and captured
                    step()
            if before is not None:
                row["peak_mib"] = allocated(peak=True) - before
            if seen:
                row["warnings"] = sorted({str(warning.message)[:300] for warning in seen})
            times[arm] = [seconds_of(step)]
        except Exception as error:  # of one arm among many
            content["left_out"][arm] = f"{type(error).__name__}: {error}"[:500]
        else:
            arms[arm], rows[arm] = step, row
            told(times)
    if arms:
        interleaved(arms, rounds, 1, told)


def _peak_of(arguments: Sequence[str], arm: str) -> float:
    """Measured in a process of its own: what an arm leaves behind is not the next one's."""
    command = [sys.executable, "-m", "benchmarks.step", *arguments, "--peak", arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(json.loads(done.stdout.splitlines()[-1]))


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    return table(
        {
            "arm": arm,
            "ms": f"{row['ms']:.0f}",
            "ratio": f"{row['ratio']:.2f}",
            "quartiles": f"{row['low']:.2f}–{row['high']:.2f}",
            "peak MiB": f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
            "images/s": f"{row['images_per_s']:.0f}",
            "TFLOP/s": f"{row['tflops']:.2g}",
        }
        for arm, row in rows.items()
    )


if __name__ == "__main__":
    main()
