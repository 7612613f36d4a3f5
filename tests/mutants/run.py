"""``make mutants``: the tests have to notice every fault that somebody or something put in.

``python -m tests.mutants.run WORD...`` takes only the mutants with one of the words in their
label, and leaves the page alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

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
    began = time.perf_counter()
    SERVER.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as scratch:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(WORKERS):
            folders.put(copy_of_repository(Path(scratch, str(number))))
        outcomes = judge_all(chosen, folders)
    minutes = (time.perf_counter() - began) / 60
    return page.report(outcomes, minutes, WORKERS, write=not words)


def judge_all(mutants: list[Mutant], folders: SimpleQueue[Path]) -> list[tuple[Mutant, str]]:
    """Their verdicts, after those on the tests without a fault; one copy for each worker."""
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

    def outcome(mutant: Mutant) -> tuple[Mutant, str]:
        folder = folders.get()
        verdict, seconds = judge(mutant, folder, limits[mutant.tests])
        folders.put(folder)
        print(f"{verdict:8}  {seconds:5.1f} s  {mutant.label}", flush=True)
        return mutant, verdict

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(sound, dict.fromkeys(mutant.tests for mutant in mutants)))
        return list(pool.map(outcome, mutants))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
