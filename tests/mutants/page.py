"""The verdicts as a section of docs/verification.md, and whether all survivors are accounted for.

survivors.toml lists those that have been looked at, each with the reason why it is left alive.
"""

from __future__ import annotations

import platform
import tomllib
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from ..table import write_section
from .mutant import Mutant

Outcome = tuple[Mutant, str]
Listed = dict[tuple[str, str, str], str]
LEAST = 0.95  # of the generated mutants of a whole run have to be killed


def survivors() -> Listed:
    """The reason for each (file, line, mutated line)."""
    groups = tomllib.loads(Path(__file__).with_name("survivors.toml").read_text(encoding="utf-8"))
    return {
        (group["file"], line, mutated): group["reason"]
        for group in groups["group"]
        for line, mutated in group["mutants"]
    }


def report(outcomes: list[Outcome], minutes: float, workers: int, *, write: bool) -> int:
    """Say what survived unexpectedly, write the page if told to; the exit status.

    It is 1 too if a whole run (``write``) killed too few of the generated mutants, listed or not.
    """
    by_hand = [outcome for outcome in outcomes if outcome[0].what]
    made = [outcome for outcome in outcomes if not outcome[0].what]
    listed = survivors()
    alive = [mutant for mutant, verdict in outcomes if verdict == "survived"]
    unexpected = [mutant for mutant in alive if key(mutant) not in listed]
    stale = set(listed) - {key(mutant) for mutant in alive}
    print(
        f"\n{killed(by_hand)} of {len(by_hand)} made by hand and {killed(made)} of {len(made)} "
        f"generated were killed, in {minutes:.0f} minutes"
    )
    for mutant in unexpected:
        print("NOT LISTED:", mutant.label)
    if write:
        for file, line, mutated in sorted(stale):
            print(f"listed, but killed: {file}: {line}  ->  {mutated}")
        write_section(
            "mutants",
            section(by_hand, made, listed, f"{minutes:.0f} minutes with {workers} at a time"),
        )
    few = write and killed(made) < LEAST * len(made)
    if few:
        print(
            f"TOO FEW: {killed(made) / len(made):.1%} of the generated mutants were killed, "
            f"{LEAST:.0%} are due"
        )
    return 1 if unexpected or few else 0


def section(by_hand: list[Outcome], made: list[Outcome], listed: Listed, took: str) -> str:
    """What is between the marks, as Markdown."""
    count = Counter(verdict for _, verdict in (*by_hand, *made))
    lines = [
        f"By hand: {killed(by_hand)} of {len(by_hand)} faults noticed. By the operators of "
        f"cosmic-ray {version('cosmic-ray')}: {killed(made)} of {len(made)}. Without a failing "
        f"test: {count['error']} by an error before it, {count['timeout']} by time. Python "
        f"{platform.python_version()}, {took}.",
        "",
        "| file | mutants | killed | survived | score |",
        "| --- | --- | --- | --- | --- |",
    ]
    files = dict.fromkeys(mutant.file for mutant, _ in made)
    lines += [row(file, [o for o in made if o[0].file == file]) for file in files]
    lines += [
        row("all", made),
        "",
        "| survivor | instead | why it is left alive |",
        "| --- | --- | --- |",
    ]
    for mutant, verdict in made:
        if verdict == "survived":
            reason = listed.get(key(mutant), "**not explained**")
            before = f"{mutant.file}: {code(mutant.line)}"
            lines.append(f"| {before} | {code(mutant.mutated)} | {reason} |")
    return "\n".join(lines)


def row(name: str, outcomes: list[Outcome]) -> str:
    count, dead = len(outcomes), killed(outcomes)
    return f"| {name} | {count} | {dead} | {count - dead} | {dead / count:.1%} |"


def key(mutant: Mutant) -> tuple[str, str, str]:
    return mutant.file, mutant.line, mutant.mutated


def killed(outcomes: list[Outcome]) -> int:
    return sum(verdict != "survived" for _, verdict in outcomes)


def code(line: str) -> str:
    return f"`{line.partition('  #')[0].replace('|', chr(92) + '|')}`"
