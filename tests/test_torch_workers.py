"""Data of map style: items that are dicts, and processes beside the training's that read ahead."""

from __future__ import annotations

import multiprocessing
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import spatlib
from spatlib import ConfigError, NonFiniteError
from spatlib.data import as_dataset

from .looping import BATCH, CONFIG, COUNT, Keeper, Pictures, arrays, fit, network, state, training
from .test_torch_loaders import Stored
from .test_torch_trouble import Failing


class Elsewhere(Pictures):
    """Can be read by a worker only; one of its items may be missing."""

    missing = -1

    def __getitem__(self, index: int) -> Any:
        if get_worker_info() is None or index == self.missing:
            raise FileNotFoundError(f"{index}.png")
        return super().__getitem__(index)


def test_workers_read_what_the_training_itself_would() -> None:
    keeper, others = Keeper(training()), {*multiprocessing.active_children()}
    expected = fit(Pictures(), monitor=keeper)
    assert fit(Elsewhere(), num_workers=2) == expected
    for step in (1, 6):
        rest = Keeper(training(), keeper.kept[step - 1])
        assert fit(Elsewhere(), monitor=rest, num_workers=1) == expected
    assert {*multiprocessing.active_children()} <= others


def test_no_worker_is_left_when_a_training_fails() -> None:
    others = {*multiprocessing.active_children()}  # of other tests
    with pytest.raises(NonFiniteError):
        fit(Elsewhere(), Failing(2, "loss"), num_workers=2)
    assert {*multiprocessing.active_children()} <= others
    data = Elsewhere()
    data.missing = 3
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        fit(data, num_workers=2)


def test_items_may_be_dicts_of_two() -> None:
    class Named(Pictures):
        def __getitem__(self, index: int) -> Any:
            return dict(zip(("image", "label"), super().__getitem__(index), strict=True))

    assert fit(Named(moves=False)) == fit(Pictures(moves=False))


def test_examples_are_held_out_as_of_arrays() -> None:
    class Table(Pictures):
        shape, dtype = COUNT, None  # of its own, though it is no array

    found = []
    for data in (Table(moves=False), arrays()):
        plan = training(validation=5, epochs=1)
        result = spatlib.train(network(), data, config=CONFIG, training=plan)
        (row,) = result.history
        found.append((state(result.model), {k: v for k, v in row.items() if k != "seconds"}))
    assert found[0] == found[1]
    assert "val_pgd10" in found[0][1]


def test_what_a_disk_says_is_passed_on() -> None:
    class Broken(Stored):
        def __getitem__(self, rows: Any) -> Any:
            raise OSError(5, "Input/output error", "x.h5")

    x, y = arrays()
    with pytest.raises(OSError, match=r"x\.h5"):
        fit((Broken(x), y))


@pytest.mark.parametrize("form", [torch.as_tensor, Stored])
def test_held_out_rows_are_gathered_by_batches(form: Any) -> None:
    x, y = arrays()
    held = as_dataset((form(x), torch.as_tensor(y)), True, validation=5).validation
    assert held[0].dataset.shape == x.shape  # a view
    plan = training(batch_size=BATCH, validation=5)
    results = [
        spatlib.train(network(), (part, y), config=CONFIG, training=plan) for part in (form(x), x)
    ]
    assert state(results[0].model) == state(results[1].model)
    assert results[0].history[0]["val_pgd10"] == results[1].history[0]["val_pgd10"]


class Counted(IterableDataset[Any]):
    """Batches, although it has a length and, by its base class, ``__getitem__``."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Any:
        return iter(DataLoader(Pictures(), batch_size=COUNT))


def test_no_examples_are_held_out_of_batches() -> None:
    plan = training(validation=5, epochs=1)
    for data in (Counted(), DataLoader(Pictures()), [arrays()]):
        with pytest.raises(ConfigError, match=r"validation must be at most 0 .* spatlib\.Dataset"):
            spatlib.train(network(), data, config=CONFIG, training=plan)
    with pytest.raises(ConfigError, match="validation must be at most 13"):
        spatlib.train(network(), Pictures(), config=CONFIG, training=training(validation=14))
