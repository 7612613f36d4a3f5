"""When ``make mutants`` fails, by verdicts that are made up."""

from __future__ import annotations

import pytest

from .mutants import page
from .mutants.mutant import Mutant


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
