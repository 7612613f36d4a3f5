"""``make mutants``: the tests have to notice every fault that somebody or something put in.

``python -m tests.mutants.run WORD...`` takes only the mutants with one of the words in their
label, and leaves the page alone. Verdicts are kept in ``.mutants``, by what was copied: a run that
was ended goes on where it was, and one after a change begins anew.
"""

from __future__ import annotations

import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from .kept import Kept
from .mutant import PRELOADED, SERVER, Mutant, copy_of_repository, judge, run

WORKERS = int(os.environ.get("MUTANTS_WORKERS", "2"))
PATIENCE = 5.0  # a mutant may take so many times as long as the tests without it, and a minute
os.environ |= {
    "HYPOTHESIS_PROFILE": "mutants",
    "OMP_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}


def main(words: list[str]) -> int:
    from . import generated, handmade, page  # here: the forks import this module

    chosen = [
        mutant
        for mutant in (*handmade.mutants(), *generated.mutants())
        if not words or any(word in mutant.label for word in words)
    ]
    SERVER.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as scratch:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(WORKERS):
            folders.put(copy_of_repository(Path(scratch, str(number))))
        kept = Kept(Path(scratch, "0"))
        judge_all([mutant for mutant in chosen if mutant not in kept], folders, kept)
    outcomes = [(mutant, kept[mutant][0]) for mutant in chosen]
    minutes = sum(kept[mutant][1] for mutant in chosen) / WORKERS / 60
    return page.report(outcomes, minutes, WORKERS, write=not words)


def judge_all(mutants: list[Mutant], folders: SimpleQueue[Path], kept: Kept) -> None:
    """Keep their verdicts, after those on the tests without a fault; a copy for each worker."""
    limits: dict[tuple[str, ...], float] = {}

    def sound(tests: tuple[str, ...]) -> None:
        folder = folders.get()
        verdict, seconds = run(tests, folder, limit=600)
        if verdict != "survived":
            raise SystemExit(
                f"{verdict} without a fault: {' '.join(tests)}\n"
                + Path(folder, "output.txt").read_text(encoding="utf-8")
            )
        limits[tests] = 60 + PATIENCE * seconds
        folders.put(folder)
        print(f"sound     {seconds:5.1f} s  {' '.join(tests)}", flush=True)

    def outcome(mutant: Mutant) -> None:
        folder = folders.get()
        verdict, seconds = judge(mutant, folder, limits[mutant.tests])
        folders.put(folder)
        kept.add(mutant, verdict, seconds)
        print(f"{verdict:8}  {seconds:5.1f} s  {mutant.label}", flush=True)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(sound, dict.fromkeys(mutant.tests for mutant in mutants)))
        list(pool.map(outcome, mutants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
