"""Items and loaders are looked at, in their first batch, before a run touches its directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import spatlib
from spatlib import DataError

from .looping import BATCH, CONFIG, COUNT, Pictures, network, training
from .running import content

pytestmark = pytest.mark.usefixtures("without_pictures")
GOOD = torch.zeros(2, 4, 4)
ITEMS: dict[str, tuple[Any, str]] = {
    "triples": ((GOOD, 0, 1), "weights, the third part of data, must be floats"),
    "strings": (("a.png", 0), "arrays or tensors of numbers"),
    "nothing": (None, "hold"),
    "out of bounds": ((GOOD + 2, 0), "finite values in"),
    "integers": ((GOOD.int(), 0), "floats, got torch.int32"),
    "no class": ((GOOD, 99), "labels from 0 to 2"),
    "a label of no class": ((GOOD, 0.5), "class indices, got torch.float"),
}


class Same(Dataset[Any]):
    """One item again and again."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.item


class Once:
    """Batches for each epoch, which it has only when it is asked for them; notes how often."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        return iter(DataLoader(Pictures(), batch_size=BATCH))


def as_items(item: Any) -> Any:
    return Same(item)


def as_loader(item: Any) -> Any:
    return DataLoader(Same(item), batch_size=BATCH, collate_fn=lambda items: collated(items[0]))


def collated(item: Any) -> Any:
    """A batch as a loader might make it of such items."""
    if item is None or isinstance(item[0], str):
        return item
    return [torch.as_tensor(part)[None].repeat_interleave(BATCH, 0) for part in item]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    place = tmp_path_factory.mktemp("run")
    train(Pictures(), place, epochs=1)
    return place


def train(data: Any, place: Path | None = None, epochs: int = 2, **how: Any) -> Any:
    plan = training(epochs=epochs, schedule="constant")
    return spatlib.train(network(), data, config=CONFIG, training=plan, run_dir=place, **how)


@pytest.mark.parametrize("make", [as_items, as_loader])
@pytest.mark.parametrize("case", ITEMS)
def test_bad_items_are_refused_before_anything_is_written(
    case: str, make: Callable[[Any], Any], run: Path, tmp_path: Path
) -> None:
    (item, word), before = ITEMS[case], content(run)
    parts = {"train": make(item)}, {"train": Pictures(), "test": make(item)}
    for part in (*parts, {"train": Pictures(), "validation": make(item)}):
        for place, how in ((tmp_path / "new", {}), (run, {"overwrite": True})):
            with pytest.raises(DataError, match=word):
                train(spatlib.Dataset(**part), place, **how)
    if make is as_items:  # which a fingerprint knows by their number alone
        with pytest.raises(DataError, match=word):
            train(make(item), run, resume=True)
    assert content(run) == before
    assert not (tmp_path / "new").exists()


def test_the_batch_that_is_looked_at_is_trained_on() -> None:
    data = Once()
    train(data)
    assert data.passes == 3  # two epochs and a measurement
