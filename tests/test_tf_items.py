"""Data of map style in Keras: read item by item, cut into batches, held out, refused."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import torch

import spatlib
from spatlib import ConfigError, DataError, TrainConfig

from .entry_tf import eagerly
from .test_tf_loop import BATCH, CLASSES, CONFIG, COUNT, QUICK, SHAPE, arrays, fit, network, same


class Items:
    """Examples by their number, each changed by a function of it; knows which were read where."""

    def __init__(self, change: Callable[[int, Any, Any], Any] = lambda _, x, y: (x, y)) -> None:
        (self.x, self.y), self.change = arrays(), change
        self.reads, self.threads = list[int](), set[int]()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        self.reads.append(index)
        self.threads.add(threading.get_ident())
        return self.change(index, self.x[index], int(self.y[index]))


def test_items_train_as_the_arrays_that_they_make_and_threads_read_ahead() -> None:
    def slow(_: int, x: Any, y: Any) -> Any:
        time.sleep(0.005)  # else one thread may have read all before another begins
        return {"image": x, "label": y}

    items, ours, expected = Items(slow), network(), network()
    assert fit(ours, items, epochs=2, num_workers=2) == fit(expected, epochs=2)
    assert same(ours, expected)
    assert len(items.threads - {threading.get_ident()}) > 1
    assert sorted(items.reads[-COUNT:]) == list(range(COUNT))


@pytest.mark.usefixtures("one_attack")
def test_items_are_held_out_and_measured_as_arrays() -> None:
    plan, found = TrainConfig(**QUICK | {"validation": 5, "batch_size": COUNT}), []
    tensors = torch.utils.data.TensorDataset(*map(torch.as_tensor, arrays()))
    for data in (tensors, arrays()):
        with eagerly():
            result = spatlib.train(network(), data, backend="tf", config=CONFIG, training=plan)
        found.append((result.history[0]["val_clean"], result.metrics, result.report.count))
        assert result.report.count == COUNT - 5  # what it was trained on
    assert found[0] == found[1]


BAD: dict[str, tuple[Callable[[int, Any, Any], Any], str]] = {
    "triples": (lambda i, x, y: (x, y, 1), "weights, the third part of data, must be floats"),
    "nothing": (lambda i, x, y: None, "data must hold pairs (x, y), got NoneType"),
    "strings": (lambda i, x, y: ("a", y), "x must be an array or tensor of numbers, got string"),
    "mixed sizes": (lambda i, x, y: (x[i % 2 :], y), "data cannot be read (ValueError: all input"),
    "labels": (lambda i, x, y: (x, y + CLASSES), "y must hold labels from 0 to 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_items_are_refused_before_anything_is_written(case: str, tmp_path: Any) -> None:
    change, words = BAD[case]
    model, how = network(), {"config": CONFIG, "training": TrainConfig(**QUICK), "backend": "tf"}
    with pytest.raises(DataError) as refused:
        spatlib.train(model, Items(change), run_dir=tmp_path / "run", **how)
    assert str(refused.value).startswith(words)
    assert not (tmp_path / "run").exists()
    assert same(model, network())


def test_no_examples_are_held_out_of_batches() -> None:
    loader, plan = torch.utils.data.DataLoader(Items(), BATCH), TrainConfig(**QUICK, validation=4)
    for data in (loader, keras.utils.PyDataset(), np.split(np.zeros((4, *SHAPE)), 2)):
        with pytest.raises(ConfigError, match=r"validation must be at most 0 .* spatlib\.Dataset"):
            spatlib.train(network(), data, backend="tf", config=CONFIG, training=plan)
