"""Mutants made by hand: faults that somebody could write, and that would be hard to see."""

from __future__ import annotations

from collections.abc import Iterator

from . import faults_core, faults_tf, faults_torch
from .generated import SELECTION
from .mutant import ROOT, Mutant

CORE = {
    (f"spatlib/core/{name}.py", SELECTION[f"spatlib/core/{name}.py"]): faults
    for name, faults in faults_core.FAULTS.items()
}


def mutants() -> Iterator[Mutant]:
    """All of them.

    Raises:
        ValueError: A text to replace is not in its file, or more than once.
    """
    for (file, tests), faults in (CORE | faults_torch.FAULTS | faults_tf.FAULTS).items():
        source = (ROOT / file).read_text(encoding="utf-8")
        for what, (old, new) in faults.items():
            if source.count(old) != 1:
                raise ValueError(f"{file} has {source.count(old)} times {old!r} ({what})")
            yield Mutant(file, source.replace(old, new), tests, what=what)
