"""An entry is enough: what is listed under test is tested."""

from __future__ import annotations

from typing import Any

import pytest

from . import conftest
from .backends import BACKENDS
from .engines import ENGINES
from .entry import Entry


class Asked:
    """A test with the fixture ``engine``, as pytest shows it to the hook."""

    fixturenames = ("engine",)

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.values = config, list[str]()

    def parametrize(self, argument: str, values: list[str], **_: Any) -> None:
        assert argument == "engine"
        self.values = values


def test_the_fixture_takes_every_entry(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENGINES, "other", ENGINES["torch"])
    monkeypatch.setattr(conftest, "selected", lambda _: [*BACKENDS, "other"])
    asked = Asked(request.config)
    conftest.pytest_generate_tests(asked)  # type: ignore[arg-type]
    assert asked.values == list(ENGINES)
    assert set(asked.values) - {"other"} <= set(BACKENDS)


@pytest.mark.parametrize("name", ENGINES)
def test_an_entry_has_all_that_is_asked_of_one(name: str) -> None:
    asked = {part for part in (*vars(Entry), "module") if not part.startswith("_")}
    assert {"train_step", "evaluate", "draws", "module"} < asked
    own = {part for base in ENGINES[name].__mro__ if base is not Entry for part in vars(base)}
    assert asked <= own
