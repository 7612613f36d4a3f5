"""One training step in PyTorch: ours, loops written by hand, and every peer that is installed.

    python -m benchmarks.step                                 # the small residual network, PGD-AT
    python -m benchmarks.step --compiled                      # the same, compiled
    python -m benchmarks.step --loss trades --mask off min
    python -m benchmarks.step --device cuda --model preact_resnet18 --batch 512 --precision bfloat16

Writes benchmarks/results/step_torch_<device>[_<what differs from the defaults>].json, with
``_selected`` at the end where ``--only`` chose the arms.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from .harness import hardware, interleaved, ratios, save, table
from .setting import MASKS, MLPS, Setting


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=("small", "preact_resnet18", *MLPS), default="small")
    parser.add_argument("--loss", choices=("pgd", "trades", "mart"), default="pgd")
    parser.add_argument("--mask", nargs="+", choices=MASKS, default=Setting().mask)
    for name in ("classes", "batch", "steps"):
        parser.add_argument(f"--{name}", type=int, default=Setting._field_defaults[name])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", default=[""], help="arms whose names begin so")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = vars(parser.parse_args(arguments))
    rounds, only, peak = (options.pop(key) for key in ("rounds", "only", "peak"))
    from . import arms_torch  # after the options, which need no PyTorch

    setting = Setting(**options)
    builders = arms_torch.builders(setting)
    if peak is not None:
        print(json.dumps(arms_torch.peak(setting, builders[peak])))
        return
    base = next(iter(builders))
    chosen = [arm for arm in builders if arm == base or arm.startswith(tuple(only))]
    times, first = interleaved({arm: builders[arm]() for arm in chosen}, rounds)
    rows = ratios(times, base)
    given = sys.argv[1:] if arguments is None else list(arguments)
    for arm, row in rows.items():
        row |= {
            "first_s": first[arm],
            "peak_mib": _peak_of(given, arm),
            "images_per_s": 1e3 * setting.batch / row["ms"],
        }
    facts = arms_torch.finish(setting, rows)
    print(table(_printed(rows)), *(f"{key}: {value}" for key, value in facts.items()), sep="\n")
    differs = [
        "compiled" if value is True else str(value)
        for key, value in setting._asdict().items()
        if key not in ("device", "mask") and value != getattr(Setting(), key)
    ]
    save(
        "_".join(["step_torch", setting.device, *differs, *["selected"] * (only != [""])]),
        {"setting": setting._asdict(), "hardware": hardware(setting.device), **facts, "arms": rows},
    )


def _peak_of(arguments: Sequence[str], arm: str) -> float:
    """Measured in a process of its own: what an arm leaves behind is not the next one's."""
    command = [sys.executable, "-m", "benchmarks.step", *arguments, "--peak", arm]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return float(json.loads(done.stdout.splitlines()[-1]))


def _printed(rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm,
            "ms": f"{row['ms']:.0f}",
            "ratio": f"{row['ratio']:.2f}",
            "quartiles": f"{row['low']:.2f}–{row['high']:.2f}",
            "peak MiB": f"{row['peak_mib']:.0f}",
            "images/s": f"{row['images_per_s']:.0f}",
            **({"TFLOP/s": f"{row['tflops']:.1f}"} if "tflops" in row else {}),
        }
        for arm, row in rows.items()
    ]


if __name__ == "__main__":
    main()
