"""Timing on a noisy machine: interleaved rounds, medians, and ratios within the same round."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "torch",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
    "numpy",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
)
Times = dict[str, list[float]]


def interleaved(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 2,
    goes_on: Callable[[Times], bool] = lambda _: True,
) -> tuple[Times, dict[str, float]]:
    """Seconds of each call, by arm: every round calls every arm once, each time in another order.

    An arm has to return after its work is done (synchronise a device, read a result). ``goes_on``
    is told the times after every round, and says whether there is another.

    Returns:
        The timed rounds, and the seconds of the very first call (compilation, tracing).
    """
    first = {name: seconds_of(arm) for name, arm in arms.items()}
    for _ in range(warmup - 1):
        for arm in arms.values():
            arm()
    times: Times = {name: [] for name in arms}
    names = list(arms)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            times[name].append(seconds_of(arms[name]))
        if not goes_on(times):
            break
    return times, first


def ratios(times: Times, base: str) -> dict[str, dict[str, float]]:
    """By arm: median milliseconds, and median and quartiles of the ratio to ``base`` by round."""
    rows = {}
    for name, seconds in times.items():
        pairs = [mine / its for mine, its in zip(seconds, times[base], strict=True)]
        several = pairs if len(pairs) > 1 else pairs * 2  # one alone has no quartiles
        low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
        rows[name] = {
            "ms": 1e3 * statistics.median(seconds),
            "ratio": middle,
            "low": low,
            "high": high,
            "rounds": len(seconds),
        }
    return rows


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown; the keys of the first row are the columns."""
    rows = list(rows)
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[c]) for c in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def hardware(device: str = "cpu") -> dict[str, Any]:
    """What the figures depend on: processor, cores, threads, versions."""
    info: dict[str, Any] = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "device": device,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    for name in PACKAGES:
        try:
            info[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return info


def save(name: str, content: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write ``<name>.json`` in results or another folder, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"{name}.json", folder / f"{name}.json.part"
    part.write_text(json.dumps(content, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    part.replace(path)


def rows_of(name: str) -> list[dict[str, str]]:
    """Of ``benchmarks/results/<name>.csv``, if there is one."""
    path = RESULTS / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def append(name: str, row: dict[str, Any]) -> None:
    """One write, so that several processes can append."""
    values = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.csv"
    new = not path.exists()
    with path.open("a", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, values, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(values)


def peak_resident() -> float:
    """MiB that this process had at most (what getrusage says begins with its parent's)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def seconds_of(function: Callable[[], object]) -> float:
    """Of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if os.name == "posix" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
