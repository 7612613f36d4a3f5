"""One mutant: a file with a fault in it, and the tests that have to notice."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
COPIED = ("spatlib", "spatlib_torch", "spatlib_tf", "reference", "tests", "pyproject.toml")
MEMORY = 8 * 2**30
VERDICTS = {0: "survived", 1: "killed", None: "timeout"}  # any other exit status is an error

# A fork per mutant of a server that has imported the frameworks, but not run them: a hundred
# milliseconds instead of ten seconds, and no thread that could be lost. torch comes first.
SERVER = multiprocessing.get_context("forkserver")
PRELOADED = ["torch", "keras", "pytest", "hypothesis.extra.numpy"]


@dataclass(frozen=True)
class Mutant:
    """``text`` instead of the file's own, as ``what`` says in words or ``line`` -> ``mutated``."""

    file: str
    text: str
    tests: tuple[str, ...]
    line: str = ""
    mutated: str = ""
    what: str = ""

    @property
    def label(self) -> str:
        return f"{self.file}: {self.what or f'{self.line}  ->  {self.mutated}'}"


def copy_of_repository(folder: Path) -> Path:
    """The packages and the tests, without compiled files, which a fault could hide behind."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def judge(mutant: Mutant, folder: Path, limit: float) -> tuple[str, float]:
    """The verdict of the tests on the mutant in a copy of the repository, and the seconds."""
    path = folder / mutant.file
    original = path.read_text(encoding="utf-8")
    path.write_text(mutant.text, encoding="utf-8")
    try:
        return run(mutant.tests, folder, limit)
    finally:
        path.write_text(original, encoding="utf-8")


def run(tests: tuple[str, ...], folder: Path, limit: float) -> tuple[str, float]:
    """The verdict of these tests on the copy as it stands, and the seconds."""
    began = time.perf_counter()
    process = SERVER.Process(target=_child, args=(tests, folder))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return "timeout", limit
    return VERDICTS.get(process.exitcode, "error"), time.perf_counter() - began


def _child(tests: tuple[str, ...], folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))  # a loop may not end, and fill it
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    # This module is one of ours: the copy's are to be found in its place.
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.dont_write_bytecode = True  # two mutants of one second and length would share a file
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import pytest

    gc.freeze()  # what is imported by now needs no collecting, of which pytest does much
    status = pytest.main([*tests, "-x", "--assert=plain", "-p", "no:cacheprovider"])
    sys.stdout.flush()
    os._exit(int(status))  # a framework's threads need no goodbye
