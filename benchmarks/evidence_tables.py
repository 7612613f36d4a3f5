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
NETWORKS = {"best": "best", "last": "last", "avg_best": "best average", "avg_last": "last average"}
CONTROLS = (  # of an arm: what it has to beat
    ("rectified 0.8", "pgd"),
    ("rectified 0.8", "eps x 1.25"),
    ("rectified 0.8", "eps x 1.5"),
    ("rectified 0.8", "smooth 0.8"),
    ("rectified 0.5", "pgd"),
    ("rectified 0.5", "eps x 1.25"),
    ("rectified 0.5", "smooth 0.5"),
    ("rectified 0.8, eps x 1.25", "eps x 1.25"),
    ("realloc min x 1.5", "pgd"),
    ("realloc min x 1.5", "eps x 1.25"),
    ("realloc min x 1.5", "eps x 1.5"),
    ("realloc min x 1.5", "realloc random x 1.5"),
    ("mask min", "pgd"),
    ("mask min", "eps x 0.75"),
    ("mask min", "mask random"),
    ("mask random", "pgd"),
    ("mask random", "eps x 0.75"),
)
# By number of seeds, the 97.5 % quantile of Student's t.
T95 = {1: 0.0, 2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
PERCENT = 100
Rows = dict[str, dict[int, dict[str, float]]]  # by arm and seed


def write(names: Iterable[str]) -> None:
    """Put a table per data set between its marks; a page without the marks is left alone."""
    text = PAGE.read_text(encoding="utf-8")
    for name in names:
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if begin in text and (shown := _shown(name)):
            before, _, rest = text.partition(begin)
            text = f"{before}{begin}\n\n{shown}\n\n{end}{rest.partition(end)[2]}"
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


def _shown(name: str) -> str:
    """The tables of a file; none where there are no rows."""
    if name.startswith("judges"):
        rows = [{k: _percent(k, v) for k, v in row.items()} for row in rows_of(name)]
        return table(rows) if rows else ""
    found = numbers(name)
    if "pgd" not in found:
        return ""
    if "worst" in next(iter(found["pgd"].values())):
        return section(found)
    return course(found) if name.startswith("study") else f"{course(found)}\n\n{against(found)}"


def _percent(key: str, value: str) -> str:
    return value if key in ("attack", "eps") else f"{PERCENT * float(value):.1f}"


def course(rows: Rows) -> str:
    """Of a regime: clean / robust accuracy, and paired differences of the robust one to pgd."""
    lines = []
    for arm, mine in rows.items():
        line: dict[str, object] = {"arm": arm, "seeds": len(mine)}
        for name, title in NETWORKS.items():
            keys = robust(rows, name)
            each = ([row[key] for row in mine.values()] for key in (f"{name}_clean", *keys))
            line[title] = " / ".join(map(mean, each))
            apart = (mean(paired(rows, arm, "pgd", key), sign="+") for key in keys)
            line[f"{title} - pgd"] = " / ".join(apart)
        lines.append(line)
    return table(lines)


def against(rows: Rows) -> str:
    """Arms against their controls: paired differences of robust accuracy, 95 % intervals."""
    lines = []
    for arm, control in CONTROLS:
        seeds = len(paired(rows, arm, control, "best_clean"))
        if not seeds:
            continue
        line: dict[str, object] = {"arm": arm, "control": control, "seeds": seeds}
        for name, title in NETWORKS.items():
            apart = (paired(rows, arm, control, key) for key in robust(rows, name))
            line[title] = " / ".join(mean(each, sign="+", errors=T95[seeds]) for each in apart)
        lines.append(line)
    return table(lines)


def robust(rows: Rows, network: str) -> list[str]:
    """The columns of a network's robust accuracies, one per eps."""
    found = next(iter(rows["pgd"].values()))
    return [key for key in found if key.startswith(f"{network}_robust")]


def paired(rows: Rows, arm: str, control: str, key: str) -> list[float]:
    """Differences of the seeds that both have."""
    mine, its = rows.get(arm, {}), rows.get(control, {})
    return [mine[seed][key] - its[seed][key] for seed in sorted(mine.keys() & its.keys())]


def mean(shares: list[float], sign: str = "", errors: float = 1.0) -> str:
    """Mean and so many standard errors in percent; without an error for one value."""
    if not shares:
        return ""
    middle = f"{PERCENT * statistics.mean(shares):{sign}.1f}"
    if len(shares) < 2:
        return middle
    return f"{middle} ± {PERCENT * errors * statistics.stdev(shares) / math.sqrt(len(shares)):.1f}"


def numbers(name: str) -> Rows:
    """The rows of a table, which are in the file of its name (a study's) or in evidence_<name>."""
    found: Rows = {}
    for row in rows_of(name if name.startswith("study") else f"evidence_{name}"):
        named = {key: row[key] for key in row if key not in ("dataset", "arm", "seed")}
        found.setdefault(row["arm"], {})[int(row["seed"])] = {k: float(v) for k, v in named.items()}
    return found
