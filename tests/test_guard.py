"""The guard of the smoothed ascent target: when it lets go, and that it never raises the label."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from .backends import Backend
from .record import agree, at_most
from .strategies import rows
from .test_target import Case, ascended, cases, exact, over_guards, ulps

pytestmark = pytest.mark.verifies


@given(case=cases())
def test_guarded_ascent_never_raises_the_label(backend: Backend, case: Case) -> None:
    """p_y - q_y is at most half of p_y - b_y where the label has lost probability, else p_y - b_y.

    So it is never positive for a one-hot b, and never above max(p_y - b_y, 0) for any b.
    """
    c, wanted = ascended(backend, case, guard=True), exact(case, guard=True)
    lost = wanted.lost
    pull = np.where(lost < 0, lost / 2, lost)
    at_most(case.at_label(c), pull, wanted.error, like=c, scale=1)
    if case.clean is None:
        assert np.all(case.at_label(c) <= 0)


@given(case=cases())
def test_guard_only_ever_shrinks_the_smoothing(backend: Backend, case: Case) -> None:
    """The guarded gradient is between that of the base method and the unguarded one."""
    ways = (replace(case, smoothing=0.0), False), (case, False), (case, True)
    first, second, middle = (rows(ascended(backend, *way)) for way in ways)
    errors = [exact(*way).error for way in ways]
    for n in range(len(middle)):
        ends, near = np.stack([first[n], second[n]], axis=1), [error[n] for error in errors]
        excess = []
        for chosen in ([1, 1], [1, 0], [0, 1]):
            shares = np.linalg.lstsq(ends * chosen, middle[n], rcond=None)[0].clip(0)
            room = shares @ near[:2] + near[2] + ulps(case.z, case.classes)
            excess.append(np.abs(ends @ shares - middle[n]).max() - 2 * room)
        assert min(excess) <= 0


@over_guards
@pytest.mark.parametrize(("p_y", "q_y"), [(0.1, 0.84), (0.6, 0.84), (0.9, 0.95), (0.9999, 0.99995)])
def test_target_of_a_label_is_smoothed_by_a_and_guarded_at_half_way(
    backend: Backend, guard: bool, p_y: float, q_y: float
) -> None:
    """K = 3, a = 0.24: q_y = 1 - a + a / K = 0.84, and with the guard at least (1 + p_y) / 2."""
    p, q_y = np.array([p_y, (1 - p_y) * 0.75, (1 - p_y) * 0.25]), q_y if guard else 0.84
    slope = p - [q_y, (1 - q_y) / 2, (1 - q_y) / 2]
    case = Case(np.log(p)[None], np.array([0]), None, 0.24)
    agree(ascended(backend, case, guard), [slope / np.abs(slope).max()], atol=1e-12)


@pytest.mark.parametrize(
    ("b", "p_y"),
    [
        ([0.2, 0.8], 0.05),
        ([0.2499, 0.6001, 0.1, 0.05], 0.1),
        ([0.25, 0.6, 0.1, 0.05], 0.1),
        ([0.6, 0.4], 0.9),
    ],
    ids=["below 1 / K", "just below 1 / K", "at 1 / K", "above its base target"],
)
def test_guard_forbids_smoothing_that_would_raise_the_label(
    backend: Backend, b: list[float], p_y: float
) -> None:
    others = [(1 - p_y) / (len(b) - 1)] * (len(b) - 1)
    case = Case(np.log([[p_y, *others]]), np.array([0]), np.log([b]), 0.24)
    base = ascended(backend, replace(case, smoothing=0.0), guard=True)
    np.testing.assert_array_equal(ascended(backend, case, guard=True), base)
    assert len(b) == 2 or np.abs(ascended(backend, case, guard=False) - base).max() > 0.1
