"""When ``make mutants`` fails, by verdicts that are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from .mutants import handmade, kept, page
from .mutants.mutant import ROOT, Mutant


@pytest.mark.parametrize(
    ("survived", "listed", "whole", "status"),
    [
        (0, True, True, 0),
        (5, True, True, 0),
        (6, True, True, 1),  # each explained, and yet too many
        (6, True, False, 0),  # of a part of them nothing is demanded
        (1, False, True, 1),
        (1, False, False, 1),
    ],
)
def test_a_run_fails_where_mutants_live_unexplained_or_too_many_live(
    survived: int,
    listed: bool,
    whole: bool,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = [Mutant("core/mask.py", "", (), f"line {n}", "other") for n in range(100)]
    by_hand = [Mutant("core/mask.py", "", (), what="a fault")] * 100  # these do not count
    reasons = {page.key(mutant): "equivalent" for mutant in made} if listed else {}
    monkeypatch.setattr(page, "survivors", lambda: reasons)
    written: list[str] = []
    monkeypatch.setattr(page, "write_section", lambda name, text: written.append(name))
    monkeypatch.setattr(page, "version", lambda _: "0")  # cosmic-ray's, which may not be there
    outcomes = [(mutant, "survived" if n < survived else "killed") for n, mutant in enumerate(made)]
    outcomes += [(mutant, "killed") for mutant in by_hand]
    assert page.report(outcomes, 1.0, 2, write=whole) == status
    printed = capsys.readouterr().out
    assert ("94.0% of the generated mutants were killed, 95% are due" in printed) == (
        listed and status == 1
    )
    assert ("NOT LISTED" in printed) == (not listed)
    assert written == ["mutants"] * whole


def test_the_faults_made_by_hand_still_find_their_places() -> None:
    found = list(handmade.mutants())  # raises where a text is gone or stands twice
    assert len(found) >= 40
    assert all(mutant.text != (ROOT / mutant.file).read_text() for mutant in found)


def test_the_survivors_that_are_explained_still_stand_in_their_files() -> None:
    for file, line, mutated in page.survivors():
        lines = [" ".join(each.split()) for each in (ROOT / file).read_text().splitlines()]
        assert line in lines, file
        assert mutated not in lines or not line, file  # before "def": without its decorator


def test_verdicts_are_kept_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path / "here")
    (tmp_path / "here").mkdir()
    (folder := tmp_path / "copy").mkdir()
    source = folder / "mask.py"
    source.write_text("a = 1")
    one, other = (Mutant("mask.py", text, (), "a = 1", text) for text in ("a = 2", "a = 3"))
    kept.Kept(folder).add(one, "killed", 2.5)
    kept.Kept(folder).add(other, "error", 0.5)  # as when the run is ended
    again = kept.Kept(folder)
    assert again[one] == ("killed", 2.5)
    assert other not in again
    source.write_text("a = 0")
    assert one not in kept.Kept(folder)
    source.write_text("a = 1")
    assert one in kept.Kept(folder)
