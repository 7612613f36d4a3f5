"""What PyTorch trains on: arrays that stay where they are, map-style data sets, loaders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset

import spatlib
from spatlib import DataError

from .looping import (
    BATCH,
    CLASSES,
    CONFIG,
    COUNT,
    Keeper,
    Pictures,
    Until,
    arrays,
    fit,
    loader,
    network,
    training,
)

STEPS = -(-COUNT // BATCH)


class Watched(np.memmap):
    """A memory map that notes how many rows are read at once."""

    rows: list[int]

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if hasattr(self, "rows") and isinstance(index, np.ndarray):
            self.rows.append(len(index))
            return np.asarray(found)
        return found


class Stored:
    """An array in a file, as h5py has it: rows in ascending order only, never all of them."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.rows: list[int] = []

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        assert (np.diff(rows) > 0).all()
        self.rows.append(len(rows))
        return self.values[rows]


class Labelled:
    """Rows are found by labels, as in a Series of pandas: that of the last row is 0."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype)

    def __getitem__(self, labels: Any) -> Any:
        return self.values[::-1][labels]


def memory_map(path: Path, values: np.ndarray) -> Watched:
    Watched(path, values.dtype, "w+", shape=values.shape)[:] = values
    mapped = Watched(path, values.dtype, "r", shape=values.shape)
    mapped.rows = []
    return mapped


@pytest.mark.parametrize("form", ["memory map", "stored"])
def test_arrays_in_files_are_read_by_batches(form: str, tmp_path: Path) -> None:
    x, y = arrays()
    stored: Any = Stored(x) if form == "stored" else memory_map(tmp_path / "x", x)
    result = spatlib.train(
        network(), (stored, y), config=CONFIG, training=training(batch_size=BATCH)
    )
    assert [row["loss"] for row in result.history] == [row["loss"] for row in fit((x, y))[1]]
    # All are checked, two epochs, and a measurement.
    assert stored.rows == [BATCH, BATCH, BATCH, COUNT - 3 * BATCH] * 4


@pytest.mark.parametrize(
    "kind", ["float64", "fortran", "tensors", "int32 labels", "labelled", "map-style"]
)
def test_the_form_of_the_data_is_of_no_matter(kind: str) -> None:
    x, y = arrays()
    data: dict[str, Any] = {
        "float64": (x.astype(np.float64), y),
        "fortran": (np.asfortranarray(x), y),
        "tensors": (torch.as_tensor(x), torch.as_tensor(y)),
        "int32 labels": (x, y.astype(np.int32)),
        "labelled": (Labelled(x), Labelled(y)),
        "map-style": Pictures(moves=False),
    }
    assert fit(data[kind]) == fit((x, y))


def test_pixels_of_items_are_the_floats_they_stand_for() -> None:
    x, y = arrays()
    pixels = torch.as_tensor((255 * x).astype(np.uint8))
    floats = pixels.numpy() / np.float32(255)
    assert fit(TensorDataset(pixels, torch.as_tensor(y))) == fit((floats, y))


def test_each_epoch_reads_every_item_once_in_an_order_of_its_own() -> None:
    data = Pictures()
    fit(data)
    first, second = data.read[:COUNT], data.read[COUNT:]
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert list(range(COUNT)) != first != second


@pytest.mark.parametrize("done", range(1, STEPS + 1))
def test_items_of_the_steps_that_are_done_are_not_read_again(done: int) -> None:
    whole, rest, keeper = Pictures(), Pictures(), Keeper(training())
    fit(whole, monitor=keeper)
    fit(rest, monitor=Keeper(training(), keeper.kept[done - 1]))
    assert rest.read == whole.read[min(done * BATCH, COUNT) :]


def test_an_item_is_drawn_alike_whatever_is_read_before_it() -> None:
    """In one epoch and of one seed, that is; batches of another size hold the same items."""
    seen: list[dict[int, float]] = []

    class Noted(Pictures):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            seen[-1][index] = float(x.sum())
            return x, y

    for settings in ({}, {"batch_size": 5}, {"seed": 1}):
        seen.append({})
        fit(Noted(), epochs=1, **settings)
    assert seen[0] == seen[1]
    assert all(seen[0][i] != seen[2][i] for i in range(COUNT))


@pytest.mark.parametrize("form", ["arrays", "map-style"])
@pytest.mark.parametrize(("count", "steps"), [(9, 2), (10, 3), (8, 2), (1, 1)])
def test_a_rest_of_one_example_is_left_out(form: str, count: int, steps: int) -> None:
    x, y = map(torch.as_tensor, arrays(count))
    torch.manual_seed(1)  # its first logits are no probabilities, by chance
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32, CLASSES))
    keeper = Keeper(training(epochs=1))
    fit((x, y) if form == "arrays" else TensorDataset(x, y), model, keeper, epochs=1)
    assert len(keeper.kept) == steps


def test_what_is_no_pair_is_refused_and_named() -> None:
    class Named(Pictures):
        def __getitem__(self, index: int) -> Any:
            x, y = super().__getitem__(index)
            return {"image": x, "label": y, "name": index}

    class Listed(Pictures):
        def __getitem__(self, index: int) -> Any:
            return "a.png", 0

    class Uneven(Pictures):
        def __getitem__(self, index: int) -> Any:
            return torch.zeros(2, 4, 4 + index), 0

    with pytest.raises(DataError, match="weights, the third part of data, must be floats"):
        fit(Named())
    how = ": have it hold arrays or tensors of numbers"
    with pytest.raises(DataError, match=rf"data of type tuple cannot be read .*str.*{how}"):
        spatlib.evaluate(network(), Listed(), CONFIG)
    with pytest.raises(DataError, match=rf"data .*equal size.*{how}"):
        fit(Uneven())


def test_map_style_data_are_measured_in_their_order() -> None:
    data, (x, y) = Pictures(moves=False), arrays()
    metrics = spatlib.evaluate(network(), data, CONFIG, steps=2, batch_size=BATCH).metrics
    assert metrics == spatlib.evaluate(network(), (x, y), CONFIG, steps=2).metrics
    assert data.read == list(range(COUNT))
    moved = [spatlib.evaluate(network(), Pictures(), CONFIG, steps=2).metrics for _ in range(2)]
    assert moved[0] == moved[1], "the draws of transforms are the same each time"


class Told(Sampler[int]):
    """Wants to know which epoch it is, before it is asked for an order."""

    def __init__(self) -> None:
        self.epoch, self.orders = -1, list[int]()

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        self.orders.append(self.epoch)
        return iter(np.random.default_rng(self.epoch).permutation(COUNT).tolist())


def test_a_sampler_is_told_the_epoch_also_after_a_stop() -> None:
    def data() -> tuple[Told, DataLoader[Any]]:
        sampler = Told()
        return sampler, DataLoader(Pictures(), batch_size=BATCH, sampler=sampler)

    (sampler, whole), keeper = data(), Keeper(training(epochs=3))
    expected = fit(whole, monitor=keeper, epochs=3)
    assert sampler.orders == [0, 1, 2]
    sampler, rest = data()
    at = Keeper(training(epochs=3), keeper.kept[STEPS + 1])
    assert fit(rest, monitor=at, epochs=3) == expected
    assert sampler.orders == [1, 1, 1, 2]  # twice to see whether it depends on the epoch alone


class Drawn(Sampler[int]):
    """An order by a generator of its own, which goes on from epoch to epoch."""

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return COUNT

    def __iter__(self) -> Iterator[int]:
        return iter(self.generator.permutation(COUNT).tolist())


def drawn() -> DataLoader[Any]:
    return DataLoader(Pictures(moves=False), batch_size=BATCH, sampler=Drawn())


def nested() -> DataLoader[Any]:
    order = RandomSampler(range(COUNT), generator=torch.Generator())
    return DataLoader(Pictures(), batch_sampler=BatchSampler(order, BATCH, drop_last=False))


def kept(moves: bool) -> DataLoader[Any]:
    workers = {"num_workers": 1, "persistent_workers": True}
    return DataLoader(Pictures(moves), batch_size=BATCH, shuffle=True, **workers)


@pytest.mark.parametrize(
    ("make", "alike"), [(drawn, False), (nested, True), (partial(kept, True), False)]
)
def test_a_run_that_cannot_go_on_bit_for_bit_says_so(make: Any, alike: bool) -> None:
    keeper, warned = (
        Keeper(training()),
        pytest.warns(RuntimeWarning, match="passes through its data differ"),
    )
    expected = fit(make(), monitor=keeper)
    with nullcontext() if alike else warned:
        found = fit(make(), monitor=Keeper(training(), keeper.kept[STEPS + 1]))
    assert (found == expected) == alike


def test_the_generator_of_a_loader_is_seeded_in_each_epoch() -> None:
    one, other = (loader(generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    assert fit(one) == fit(other)
    first, second = (fit(one, monitor=Until(training(), n))[1] for n in (1, 2))
    assert first == second[:1]
    read = one.dataset.read[-2 * COUNT :]
    assert read[:COUNT] != read[COUNT:]
