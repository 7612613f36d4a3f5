"""The suite's own instruments: comparisons that fail, counts and tables that are right."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from . import record, table


@pytest.mark.parametrize(
    ("actual", "expected", "limits"),
    [
        (1.0, 1.1, {"atol": 0.09}),
        (np.nan, 1.0, {"atol": 9.0}),
        (1.0, np.nan, {"atol": 9.0}),
        (np.inf, 1.0, {"rtol": 9.0}),
        (1.0, np.inf, {"rtol": 9.0}),
        (np.inf, -np.inf, {"rtol": 9.0}),
        ([1.0, 2.0], [1.0, 2.1], {"atol": np.array([1.0, 0.0])}),
        (1.0, 1.0 + 1e-15, {}),
    ],
)
def test_what_differs_by_more_than_the_limit_fails(
    actual: Any, expected: Any, limits: dict[str, Any]
) -> None:
    with pytest.raises(AssertionError, match="entries differ"):
        record.agree(actual, expected, **limits)


def test_the_largest_deviation_is_kept_in_units_of_the_type() -> None:
    seen = record.begin()
    record.agree(np.float32([1, 4]), [1, 4])
    assert (seen.deviation, seen.ulps) == (0.0, 0.0)
    record.agree(np.float32([1, 2]), [1, 2 + 2**-20], atol=1e-5)
    record.agree([np.inf, -np.inf], [np.inf, -np.inf])
    assert (seen.deviation, seen.ulps) == (2**-20, 2**-20 / 2**-22)
    assert seen.dtypes == {"float32", "float64"}


def test_what_exceeds_a_bound_is_kept_and_fails_beyond_the_slack() -> None:
    seen = record.begin()
    record.at_most(np.float32([1, 3]), np.float32([2, 3]))
    record.at_most(-np.inf, np.inf)
    assert (seen.deviation, seen.ulps) == (0.0, 0.0)
    record.at_most(np.float32([1, 3]), [2.0, 2.75], 0.25, scale=4)
    assert (seen.deviation, seen.ulps) == (0.25, 0.25 / 2**-21)
    for actual, limit in ((3.0, 2.5), (np.nan, 1.0), (1.0, np.nan)):
        with pytest.raises(AssertionError, match="entries differ"):
            record.at_most(actual, limit, 0.25)


def test_dtypes_are_kept_by_name_where_there_is_no_array() -> None:
    seen = record.begin()
    record.saw("bfloat16")
    record.saw_dtypes((np.float32(1), np.zeros(1, np.float16), np.zeros(1, int)))
    assert seen.as_json()["dtypes"] == ["bfloat16", "float16"]


def test_examples_are_counted_where_they_finish() -> None:
    seen = record.begin()

    @settings(max_examples=17, database=None)
    @given(st.integers())
    def passes(number: int) -> None:
        assert number == number

    passes.hypothesis.inner_test = record.counted(passes.hypothesis.inner_test)
    passes()
    assert seen.examples == 17


def report(test: str, outcome: str, **seen: Any) -> SimpleNamespace:
    row = {"backends": ["tf"], "dtypes": ["float32"], "examples": 5, "deviation": None, "ulps": 0.0}
    return SimpleNamespace(
        nodeid=f"tests/test_some_area.py::test_{test}",
        outcome=outcome,
        user_properties=[("verified", row | seen)],
    )


def test_table_has_a_row_per_property_over_all_its_parameters() -> None:
    text = table.property_table(
        [
            report("sum_is_right[tf-1]", "passed", deviation=1e-7, ulps=0.5),
            report(
                "sum_is_right[numpy-2]", "passed", backends=["numpy"], deviation=3e-7, ulps=0.25
            ),
            report("bits_are_equal[tf]", "passed"),
            report("bits_are_equal[torch]", "failed", backends=["torch"], dtypes=["float64"]),
        ]
    )
    assert "2 properties, 20 examples, 1 failed" in text
    assert "### Some area" in text
    assert "| sum is right | numpy, tf | float32 | 10 | 3e-07 | 0.5 | passed |" in text
    assert "| bits are equal | torch, tf | float32, float64 | 10 | exact |  | **failed** |" in text


def test_a_section_is_replaced_and_the_rest_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(table, "PAGE", page)
    page.write_text("before\n<!-- one -->\n\nold\n\n<!-- end of one -->\nafter\n", encoding="utf-8")
    table.write_section("one", "new")
    expected = "before\n<!-- one -->\n\nnew\n\n<!-- end of one -->\nafter\n"
    assert page.read_text(encoding="utf-8") == expected
    with pytest.raises(ValueError, match="no marks"):
        table.write_section("two", "new")
    assert page.read_text(encoding="utf-8") == expected
