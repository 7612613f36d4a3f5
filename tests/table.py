"""The verification page: its tables are generated, each between a pair of marks."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "verification.md"
HEAD = ("property", "backends", "dtypes", "examples", "largest deviation", "in ulp", "")
ORDER = ("numpy", "toy", "torch", "tf")
FRAMEWORKS = ("numpy", "torch", "tensorflow-cpu", "keras", "hypothesis")


def property_table(reports: Iterable[Any]) -> str:
    """One row per test function, over all its parameters, from pytest's reports, as Markdown."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for report in reports:
        for name, seen in report.user_properties:
            if name == "verified":
                path, _, test = report.nodeid.partition("::")
                area = Path(path).stem.removeprefix("test_").replace("_", " ")
                title = test.partition("[")[0].removeprefix("test_").replace("_", " ")
                _add(rows.setdefault((area, title), {}), seen, report.outcome)
    lines = []
    for area in sorted({area for area, _ in rows}):
        lines += ["", f"### {area.capitalize()}", "", _line(HEAD), _line(["---"] * len(HEAD))]
        lines += [_line(_cells(title, row)) for (a, title), row in rows.items() if a == area]
    failed = sum(row["failed"] for row in rows.values())
    examples = sum(row["examples"] for row in rows.values())
    versions = ", ".join(f"{name} {version(name)}" for name in FRAMEWORKS)
    summary = (
        f"{len(rows)} properties, {examples:,} examples, {failed} failed. "
        f"Python {platform.python_version()}, {versions}."
    )
    return "\n".join([summary, *lines])


def write_section(name: str, text: str) -> None:
    """Replace what stands between the marks of this name in docs/verification.md."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(begin)
    _, mark, after = rest.partition(end)
    if not mark:
        raise ValueError(f"{PAGE} has no marks {begin.strip()} ... {end}")
    PAGE.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}", encoding="utf-8")


def _add(row: dict[str, Any], seen: dict[str, Any], outcome: str) -> None:
    row["backends"] = row.get("backends", set()) | set(seen["backends"])
    row["dtypes"] = row.get("dtypes", set()) | set(seen["dtypes"])
    row["examples"] = row.get("examples", 0) + seen["examples"]
    row["failed"] = row.get("failed", False) or outcome != "passed"
    row["ulps"] = max(row.get("ulps", 0.0), seen["ulps"])
    deviations = [d for d in (row.get("deviation"), seen["deviation"]) if d is not None]
    row["deviation"] = max(deviations, default=None)


def _cells(title: str, row: dict[str, Any]) -> list[str]:
    backends = sorted(row["backends"], key=lambda name: (*ORDER, name).index(name))
    exact = row["deviation"] is None
    return [
        title,
        ", ".join(backends),
        ", ".join(sorted(row["dtypes"])),
        f"{row['examples']:,}",
        "exact" if exact else f"{row['deviation']:.2g}",
        "" if exact else f"{row['ulps']:.2g}",
        "**failed**" if row["failed"] else "passed",
    ]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
