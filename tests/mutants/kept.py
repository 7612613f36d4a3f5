"""The verdicts of a run that was ended, for the next one on the same files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .mutant import ROOT, Mutant


class Kept:
    """The verdicts so far, and their seconds, on the files of a folder as they are."""

    def __init__(self, folder: Path) -> None:
        content = hashlib.sha256()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            content.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
        self.path = ROOT / ".mutants" / f"{content.hexdigest()[:16]}.jsonl"
        self.path.parent.mkdir(exist_ok=True)
        self.path.touch()
        lines = map(json.loads, self.path.read_text(encoding="utf-8").splitlines())
        self.found = {key: (verdict, seconds) for key, verdict, seconds in lines}

    def __contains__(self, mutant: Mutant) -> bool:
        return self.key(mutant) in self.found

    def __getitem__(self, mutant: Mutant) -> tuple[str, float]:
        return self.found[self.key(mutant)]

    def add(self, mutant: Mutant, verdict: str, seconds: float) -> None:
        self.found[self.key(mutant)] = verdict, seconds
        if verdict not in ("survived", "killed"):  # by Ctrl-C, say, or on a busy machine
            return
        with self.path.open("a", encoding="utf-8") as file:  # one write: threads share it
            file.write(json.dumps([self.key(mutant), verdict, seconds]) + "\n")

    @staticmethod
    def key(mutant: Mutant) -> str:
        return hashlib.sha256(f"{mutant.label}\n{mutant.text}".encode()).hexdigest()
