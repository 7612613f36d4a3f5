"""A run directory of which a file was changed: an error that names it, or the same result.

Mutated at random: a few in each run of the tests, many more by ``make fuzz``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatlib import SpatlibError
from spatlib.runs import Run, load_model

from .mutations import mutated, outcome
from .running import content, copied, rows, train_digits, weights

pytestmark = pytest.mark.usefixtures("without_pictures")


def resumed(directory: Path) -> Any:
    result = train_digits(directory, resume=True)
    return rows(result.history), weights(result.model), result.metrics


ACTS: dict[str, Callable[[Path], Any]] = {
    "load": lambda directory: weights(load_model(directory)[0]),
    "read": lambda directory: rows(Run(directory, resume=True).history()),
    "resume": resumed,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.mark.parametrize("act", ACTS)
@settings(max_examples=max(settings.default.max_examples // 2, 1))
@given(data=st.data())
def test_a_changed_file_of_a_run_is_named_or_makes_no_difference(
    act: str, data: st.DataObject, digits: Any, place: Path
) -> None:
    directory = copied(digits[1], Path(tempfile.mkdtemp(dir=place)))
    whole = {name: raw for name, raw in content(directory).items() if raw}
    name = data.draw(st.sampled_from(sorted(n for n in whole if not n.endswith("png"))))
    changed = data.draw(mutated(whole[name]).filter(len))  # an empty file counts as none
    (directory / name).write_bytes(changed)
    before = content(directory)
    found, problem = outcome(SpatlibError, lambda: ACTS[act](directory), writes=act == "resume")
    if problem is None:
        assert found == ACTS[act](digits[1])
    else:
        assert str(directory) in problem
        assert content(directory) == before
