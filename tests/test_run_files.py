"""A run goes on from its own files and data alone: all else is refused before a step."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spatlib
from spatlib import ConfigError, DataError, SPATConfig, TrainConfig
from spatlib.data import fingerprint
from spatlib.runs import BEST, CHECKPOINT, CONFIG, EMA, LAST, METRICS, Run, load_model

from .running import TRAINING, arrays, content, copied, edit, rows, saved, train, train_digits

pytestmark = pytest.mark.usefixtures("without_pictures", "one_attack")
SUMS = "spatlib.json"
LONGER = replace(TRAINING, epochs=3)


def goes_on(directory: Path, **arguments: Any) -> list[Any]:
    """The epochs that a resumed training had, of which there are none where it is refused."""
    told: list[Any] = []
    train(directory, resume=True, **{"training": LONGER, "on_epoch": told.append} | arguments)
    return told


@pytest.mark.parametrize("name", [CONFIG, CHECKPOINT, BEST, LAST, EMA, METRICS, SUMS])
def test_a_flipped_bit_is_an_error_that_names_the_file(name: str, own: Any, tmp_path: Path) -> None:
    directory, rng, told = copied(own[1], tmp_path), random.Random(name), list[Any]()
    # Not of the second half of the checksums, where those of replaced files are.
    whole = (directory / name).read_bytes()
    for _ in range(5):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole) // 2)] ^= 1 << rng.randrange(8)
        (directory / name).write_bytes(damaged)
        before = content(directory)
        with pytest.raises(DataError, match=r"put the file of this run back") as refusal:
            train(directory, resume=True, training=LONGER, on_epoch=told.append)
        assert str(directory) in str(refusal.value)
        assert name == SUMS or str(directory / name) in str(refusal.value)
        assert content(directory) == before | {".spatlib.lock": b""}
    (directory / name).write_bytes(whole)
    assert told == []
    assert len(goes_on(directory)) == 1


@pytest.mark.parametrize("name", [CONFIG, CHECKPOINT, BEST, LAST, METRICS, SUMS])
def test_a_file_of_another_run_is_refused(name: str, own: Any, tmp_path: Path) -> None:
    other = tmp_path / "other"
    train(other, training=replace(TRAINING, seed=5))
    directory = shutil.copytree(own[1], tmp_path / "run")
    shutil.copy(other / name, directory / name)
    with pytest.raises(DataError, match="is damaged, or that of another run: put the file of"):
        train(directory, resume=True, training=LONGER)


@pytest.mark.parametrize("sums", ['{"config.json": 5}', "[]", "null", "[" * 100_000, "\xff"])
def test_checksums_that_are_none_are_named(sums: str, own: Any, tmp_path: Path) -> None:
    directory = copied(own[1], tmp_path)
    (directory / SUMS).write_text(sums, encoding="latin1")
    with pytest.raises(DataError, match=r"spatlib\.json cannot be read \(.*: put the file of this"):
        goes_on(directory)


def test_weights_are_checked_when_a_network_is_loaded(digits: Any, tmp_path: Path) -> None:
    directory = copied(digits[1], tmp_path)
    damaged = bytearray((directory / LAST).read_bytes())
    damaged[-1] ^= 1
    (directory / LAST).write_bytes(damaged)
    with pytest.raises(DataError, match=r"last\.safetensors is damaged"):
        load_model(directory)


def test_what_a_training_writes_again_may_be_deleted(own: Any, tmp_path: Path) -> None:
    directory = copied(own[1], tmp_path)
    for name in (METRICS, LAST, EMA):
        (directory / name).unlink()
    assert len(goes_on(directory)) == 1
    assert len(Run(directory, resume=True).history()) == 3
    for name in (CHECKPOINT, BEST):
        shutil.copy(directory / name, tmp_path / "kept")
        (directory / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is missing: put the file of this run back$"):
            goes_on(directory)
        shutil.move(tmp_path / "kept", directory / name)


@pytest.mark.parametrize("nth", range(3, 22, 2))  # an even one is of the checksums
def test_a_kill_between_the_checksums_and_their_file_loses_nothing(
    nth: int, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_file, count = Path.replace, [0]

    def killed(self: Path, target: Path) -> Any:
        count[0] += 1
        if count[0] == nth:
            raise MemoryError  # whatever ends the process here
        return replace_file(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(MemoryError):
            train(tmp_path)
    result = train(tmp_path, resume=True)
    assert rows(result.history) == rows(own[0].history)
    for name in (LAST, BEST, EMA):
        assert (tmp_path / name).read_bytes() == (own[1] / name).read_bytes()


X, Y = arrays()
OTHERS: dict[str, tuple[Any, str]] = {
    "inputs": ((X[::-1].copy(), Y), r"fingerprint\.train\.values = "),
    "labels": ((X, (Y + 1) % 3), r"fingerprint\.train\.labels = "),
    "the last": ((np.vstack([X[:-1], X[:1]]), Y), r"fingerprint\.(train|validation)\.values = "),
    "dtype": (
        (X.astype(np.float64), Y),
        r"fingerprint\.train\.dtype = 'float64' instead of 'float32'",
    ),
    "fewer": ((X[:30], Y[:30]), r"fingerprint\.train\.shape = \[18, 5\] instead of \[24, 5\]"),
    "test": (((X, Y), (X, Y)), r"fingerprint\.test = \{'shape': \[36, 5\].* instead of None"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_data_of_ones_own_are_named(kind: str, own: Any) -> None:
    other, words = OTHERS[kind]
    before = content(own[1])
    with pytest.raises(ConfigError, match=f"needs the settings and data .*got {words}"):
        goes_on(own[1], data=other)
    assert content(own[1]) == before


def test_tensors_are_the_arrays_that_they_hold(own: Any, tmp_path: Path) -> None:
    assert len(goes_on(copied(own[1], tmp_path), data=(torch.tensor(X), torch.tensor(Y)))) == 1


def test_batches_are_known_by_their_number(tmp_path: Path) -> None:
    short = replace(TRAINING, validation=0, ema=0.0, epochs=1)
    data = TensorDataset(torch.tensor(X), torch.tensor(Y))
    train(tmp_path, data=DataLoader(data, batch_size=12), training=short)
    assert saved(tmp_path)["fingerprint"]["train"] == {"length": 3}
    with pytest.raises(ConfigError, match=r"fingerprint\.train\.length = 2 instead of 3"):
        goes_on(tmp_path, data=DataLoader(data, batch_size=18), training=short)


def test_few_rows_of_large_data_are_read() -> None:
    read: list[int] = []

    class Rows:
        """A million examples, which are not there."""

        shape, dtype = (1_000_000, 2), np.dtype("float32")

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, rows: slice) -> np.ndarray:
            read.extend(range(rows.start, rows.stop))
            return np.zeros((rows.stop - rows.start, 2), np.float32)

    mark = fingerprint((Rows(), np.zeros(1_000_000, np.int8)))
    assert mark is not None
    assert (mark["shape"], mark["dtype"]) == ([1_000_000, 2], "float32")
    assert len(set(read)) == len(read) == 1002
    assert (min(read), max(read)) == (0, 999_999)
    assert max(np.diff(read)) < 1000
    half = torch.ones(3, 2, dtype=torch.bfloat16), torch.zeros(3)
    assert fingerprint(half) == fingerprint((half[0].float(), half[1]))


def test_data_that_were_moved_are_found_where_they_are(digits: Any, tmp_path: Path) -> None:
    x, y = spatlib.load_data("digits", limit=60).train
    old, new, run = tmp_path / "old.npz", tmp_path / "new.npz", tmp_path / "run"
    np.savez(old, x=x, y=y)
    first = train_digits(run, data=str(old))
    old.rename(new)
    with pytest.raises(DataError, match=r"old\.npz"):
        spatlib.train(run_dir=run, resume=True)
    assert spatlib.train(data=str(new), run_dir=run, resume=True).metrics == first.metrics
    assert saved(run)["data"]["name"] == str(new)
    np.savez(new, x=x, y=y[::-1])
    with pytest.raises(ConfigError, match=r"fingerprint\.train\.labels = "):
        spatlib.train(run_dir=run, resume=True)


def test_other_versions_or_threads_are_a_warning(own: Any, tmp_path: Path) -> None:
    directory = copied(own[1], tmp_path)
    edit(directory, lambda settings: settings["versions"].update(torch="0.1", threads="99"))
    with pytest.warns(RuntimeWarning, match=r"perhaps not bit for bit: .*'99'.*") as seen:
        goes_on(directory)
    text = str(seen[0].message)
    assert f"torch = {torch.__version__!r} instead of '0.1'".replace("+cpu", "") in text.replace(
        "+cpu", ""
    )
    assert f"threads = '{torch.get_num_threads()}' instead of '99'" in text
    assert "numpy" not in text


def test_the_network_of_a_run_may_be_given_by_its_name(digits: Any) -> None:
    again = train_digits(digits[1], model="small_cnn", resume=True)
    assert again.metrics == digits[0].metrics


class Torch(nn.Module):
    """Two layers of one shape, of which either may be defined first."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__()
        for name in (first, second):
            setattr(self, name, nn.Linear(5, 5))
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.b(torch.relu(self.a(x)))))


def of_keras(first: str, second: str) -> Any:
    net = keras.Sequential([keras.layers.Input((5,))])
    for name in (first, second):
        net.add(keras.layers.Dense(5, activation="relu", name=name))
    net.add(keras.layers.Dense(3))
    return net


def frozen(net: Any) -> Any:
    if isinstance(net, nn.Module):
        net.a.requires_grad_(False)
    else:
        net.layers[0].trainable = False
    return net


@pytest.mark.parametrize("build", [Torch, of_keras], ids=["torch", "tf"])
def test_layers_that_were_swapped_or_frozen_are_noticed(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    plan = TrainConfig(epochs=1, batch_size=12, momentum=0.0, weight_decay=0.0, progress=False)
    how: dict[str, Any] = {"config": SPATConfig(eps=0.1, steps=1, check_logits=False)}
    how |= {"backend": "torch" if build is Torch else "tf", "run_dir": tmp_path, "data": (X, Y)}
    spatlib.train(
        build("block_1", "block_2") if build is of_keras else build("a", "b"), **how, training=plan
    )
    before = content(tmp_path)
    names = ("block_2", "block_1") if build is of_keras else ("b", "a")
    for other in (build(*names), frozen(build(*names[::-1]))):
        with pytest.raises(ConfigError, match="with which the run began"):
            spatlib.train(other, **how, training=replace(plan, epochs=2), resume=True)
    after = content(tmp_path)
    assert {k for k in before if before[k] != after[k]} <= {CONFIG, SUMS}
    spatlib.train(build(*names[::-1]), **how, training=replace(plan, epochs=2), resume=True)
    assert len(Run(tmp_path, resume=True).history()) == 2
