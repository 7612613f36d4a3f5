"""Data of map style: items that are dicts, and processes beside the training's that read ahead."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
from torch.utils.data import get_worker_info

from spatlib import NonFiniteError

from .looping import Keeper, Pictures, fit, training
from .test_torch_trouble import Failing


class Elsewhere(Pictures):
    """Can be read by a worker only; one of its items may be missing."""

    missing = -1

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is None or index == self.missing:
            raise FileNotFoundError(f"{index}.png")
        return super().__getitem__(index)


def test_workers_read_what_the_training_itself_would() -> None:
    keeper = Keeper(training())
    expected = fit(Pictures(), monitor=keeper)
    assert fit(Elsewhere(), num_workers=2) == expected
    for step in (1, 6):
        rest = Keeper(training(), keeper.kept[step - 1])
        assert fit(Elsewhere(), monitor=rest, num_workers=1) == expected
    assert not multiprocessing.active_children()


def test_no_worker_is_left_when_a_training_fails() -> None:
    with pytest.raises(NonFiniteError):
        fit(Elsewhere(), Failing(2, "loss"), num_workers=2)
    assert not multiprocessing.active_children()
    data = Elsewhere()
    data.missing = 3
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        fit(data, num_workers=2)


def test_items_may_be_dicts_of_two() -> None:
    class Named(Pictures):
        def __getitem__(self, index: int) -> Any:
            return dict(zip(("image", "label"), super().__getitem__(index), strict=True))

    assert fit(Named(moves=False)) == fit(Pictures(moves=False))
