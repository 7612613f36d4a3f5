"""The rows of benchmarks/results/evidence_*.csv as the tables of docs/evidence.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from .evidence_arms import ARMS
from .harness import rows_of, table

PAGE = Path(__file__).parents[1] / "docs" / "evidence.md"
SHOWN = ("clean", "worst", "apgd", "held_robust", "success", "drift", "stall_rate")
PERCENT = 100
Rows = dict[str, dict[int, dict[str, float]]]  # by arm and seed


def write(names: Iterable[str]) -> None:
    """Put a table per data set between its marks; a page without the marks is left alone."""
    text = PAGE.read_text(encoding="utf-8")
    for name in names:
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin in text and (rows := _numbers(name)):
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n\n{section(rows)}\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")


def section(rows: Rows) -> str:
    """Means over the seeds with standard errors, and paired differences to the base method."""
    lines = []
    for arm in ARMS:
        if arm in rows:
            mine, base = rows[arm], rows.get("trades" if arm.startswith("trades") else "pgd", {})
            both = sorted(mine.keys() & base.keys())
            seconds = statistics.median(row["seconds_per_epoch"] for row in mine.values())
            lines.append(
                {"arm": arm, "seeds": len(mine)}
                | {key: mean([row[key] for row in mine.values()]) for key in SHOWN}
                | {
                    f"{key} - base": mean([mine[s][key] - base[s][key] for s in both], sign="+")
                    for key in ("clean", "worst", "apgd")
                }
                | {"s/epoch": f"{seconds:.1f}"}
            )
    return table(lines)


def mean(shares: list[float], sign: str = "") -> str:
    """Mean and standard error in percent; without an error for one value."""
    if not shares:
        return ""
    middle = f"{PERCENT * statistics.mean(shares):{sign}.1f}"
    if len(shares) < 2:
        return middle
    return f"{middle} ± {PERCENT * statistics.stdev(shares) / math.sqrt(len(shares)):.1f}"


def _numbers(name: str) -> Rows:
    found: Rows = {}
    for row in rows_of(f"evidence_{name}"):
        values = {key: float(row[key]) for key in (*SHOWN, "seconds_per_epoch")}
        found.setdefault(row["arm"], {})[int(row["seed"])] = values
    return found
