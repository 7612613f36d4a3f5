"""A stopped run goes on bit for bit, in both engines, wherever it was stopped."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import torch
from torch import nn

import spatlib
from spatlib import ConfigError, DataError, Mask, SPATConfig, TrainConfig
from spatlib.data import as_dataset
from spatlib.engines import load_engine
from spatlib.monitor import Monitor
from spatlib.runs import BEST, CHECKPOINT, EMA, LAST, Run

pytestmark = pytest.mark.usefixtures("without_pictures", "one_attack")
CONFIG = SPATConfig(eps=0.1, steps=1, mask=Mask(score="rms"))
TRAINING = TrainConfig(
    epochs=3,
    batch_size=16,
    ema=0.9,
    progress=False,
    augment="crop",
    validation=20,
    checkpoint_minutes=0,
    momentum=0.8,
    eps_warmup=2,
)
STEPS = 4  # per epoch, of 60 examples, the last of 12


def images(framework: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(80, 1, 6, 6)).astype(np.float32)
    return (x if framework == "torch" else np.moveaxis(x, 1, -1)), rng.integers(3, size=80)


def network(framework: str) -> Any:
    """BatchNorm and dropout: statistics and draws that have to come back too."""
    if framework == "torch":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return nn.Sequential(
                nn.Flatten(),
                nn.Linear(36, 8),
                nn.BatchNorm1d(8),
                nn.ReLU(),
                nn.Dropout(0.3),
                nn.Linear(8, 3),
            )
    layers = keras.layers
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            layers.Input((6, 6, 1)),
            layers.Flatten(),
            layers.Dense(8),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.3, seed=1),
            layers.Dense(3),
        ]
    )


def values(model: Any) -> list[np.ndarray]:
    if isinstance(model, nn.Module):
        return [v.numpy().copy() for v in model.state_dict().values()]
    return model.get_weights()


def rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without what the clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def train(framework: str, directory: Path, data: Any = None, **arguments: Any) -> Any:
    settings = {"config": CONFIG, "training": TRAINING, "backend": framework} | arguments
    data = images(framework) if data is None else data
    return spatlib.train(network(framework), data, run_dir=directory, **settings)


def cut(monkeypatch: pytest.MonkeyPatch, after: int, how: Callable[[], None]) -> None:
    """Let ``how`` happen when the checkpoint has been written so many times."""
    save, count = Monitor.save, [0]

    def counted(self: Monitor, checkpoint: bytes | None) -> None:
        count[0] += checkpoint is not None
        if count[0] == after and checkpoint is not None:  # once
            how()
        save(self, checkpoint)

    monkeypatch.setattr(Monitor, "save", counted)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)  # handled before the next line


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """The run that was never stopped, of each engine."""
    made: dict[str, tuple[Any, Path]] = {}

    def run(framework: str) -> tuple[Any, Path]:
        if framework not in made:
            directory = tmp_path_factory.mktemp(framework)
            made[framework] = train(framework, directory), directory
        return made[framework]

    return run


@pytest.mark.parametrize(
    ("framework", "after"),
    [
        *(("torch", n) for n in (1, 3, STEPS, STEPS + 1, STEPS + 2, 2 * STEPS + 3, 3 * STEPS + 3)),
        *(("tf", n) for n in (1, 2, 3)),
    ],
)
def test_a_resumed_run_equals_the_one_that_was_never_stopped(
    framework: str, after: int, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, whole = straight(framework)
    with monkeypatch.context() as patch:
        cut(patch, after, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(framework, tmp_path)
    assert (tmp_path / CHECKPOINT).exists()
    torch.rand(5)  # what else the process drew does not matter
    result = train(framework, tmp_path, resume=True, config=None, training=None)
    assert rows(result.history) == rows(expected.history)
    assert len(result.history) == 3
    for mine, its in zip(values(result.model), values(expected.model), strict=True):
        np.testing.assert_array_equal(mine, its)
    for name in (LAST, BEST, EMA):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert result.metrics == expected.metrics
    assert Run(tmp_path, resume=True).history()[-1]["epoch"] == 3


def test_a_finished_run_is_measured_again_and_not_trained(straight: Any) -> None:
    expected, directory = straight("torch")
    before = (directory / CHECKPOINT).read_bytes()
    again = train("torch", directory, resume=True)
    assert again.metrics == expected.metrics
    assert (directory / CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (
            {"config": replace(CONFIG, eps=0.2, step_size=0.5)},
            r"config\.eps = 0\.2 instead of 0\.1, config\.step_size = 0\.5 instead of None",
        ),
        ({"config": replace(CONFIG, mask=Mask())}, r"config\.mask\.score = 'min' instead of 'rms'"),
        ({"config": replace(CONFIG, mask=None)}, r"config\.mask = None instead of .*'rms'"),
        ({"training": TrainConfig(epochs=9)}, r"global_batch = .* instead of 16"),
        ({"backend": "toy"}, "backend = 'toy' instead of 'torch'"),
    ],
)
def test_a_run_is_not_resumed_with_other_settings(
    change: dict[str, Any], word: str, straight: Any
) -> None:
    _, directory = straight("torch")
    with pytest.raises(ConfigError, match=word):
        train("torch", directory, resume=True, **change)


def test_a_checkpoint_of_another_network_is_refused(straight: Any, tmp_path: Path) -> None:
    directory = shutil.copytree(straight("torch")[1], tmp_path / "run")
    wide = nn.Sequential(nn.Flatten(), nn.Linear(36, 9), nn.Linear(9, 3))
    with pytest.raises(DataError, match="this architecture"):
        spatlib.train(wide, images("torch"), run_dir=directory, resume=True)


@pytest.mark.parametrize("framework", ["torch", "tf"])
def test_best_last_and_average_are_kept_apart(framework: str, straight: Any) -> None:
    result, directory = straight(framework)
    module = load_engine(framework)
    best = max(result.history, key=lambda row: row["val_pgd10"])
    loaded = {}
    for name in (BEST, LAST, EMA):
        loaded[name] = network(framework)
        module.load_weights(loaded[name], (directory / name).read_bytes())
    for mine, its in zip(values(loaded[BEST]), values(result.model), strict=True):
        np.testing.assert_array_equal(mine, its)
    assert any(
        (a != b).any() for a, b in zip(*map(values, (loaded[LAST], loaded[EMA])), strict=True)
    )
    x, y = images(framework)
    held = as_dataset((x, y), channels_first=True, validation=20, seed=0).validation
    report = spatlib.evaluate(loaded[BEST], held, CONFIG, attacks=("pgd",), steps=10)
    assert report.metrics["pgd10"] == best["val_pgd10"]
    assert report.metrics["clean"] == best["val_clean"]


FILES = 5 * 3  # settings, then best, last, average, metrics and checkpoint of three epochs


@pytest.mark.parametrize("nth", range(1, FILES + 1, 2))
def test_a_kill_between_any_two_files_loses_nothing(
    nth: int, straight: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, whole = straight("torch")
    write, count = Run.write, [0]

    def killed(self: Run, name: str, content: bytes) -> None:
        count[0] += 1
        if count[0] == nth:
            raise MemoryError  # whatever ends the process here
        write(self, name, content)

    once = replace(TRAINING, checkpoint_minutes=9)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", killed)
        with pytest.raises(MemoryError):
            train("torch", tmp_path, training=once)
    again = {"resume": True} if (tmp_path / "config.json").exists() else {}
    result = train("torch", tmp_path, training=once, **again)
    assert rows(result.history) == rows(expected.history)
    for name in (LAST, BEST, EMA):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_nothing_is_written_or_deleted_for_a_call_that_is_refused(
    straight: Any, tmp_path: Path
) -> None:
    _, directory = straight("torch")
    before = sorted(directory.iterdir())
    bad = (
        (np.full((8, 1, 6, 6), 7.0, np.float32), np.zeros(8, np.int64)),
        {"training": replace(TRAINING, device="nowhere")},
        {"backend": "nothing"},
    )
    for target in (directory, tmp_path / "new"):
        for case in bad:
            arguments = case if isinstance(case, dict) else {}
            with pytest.raises(spatlib.SpatlibError):
                train("torch", target, None if arguments else case, overwrite=True, **arguments)
    assert sorted(directory.iterdir()) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"data": None}, "data of the run in .* was your own: pass it again"),
        ({"data": "digits"}, r"data = \{'name': 'digits'.*\} instead of your own: leave"),
        ({"model": "small_cnn"}, r"architecture = \{'name': 'small_cnn'.* instead of your own"),
        ({"model": None}, "model of the run in .* was your own: pass it again"),
    ],
)
def test_what_was_ones_own_is_passed_again(
    arguments: dict[str, Any], word: str, straight: Any
) -> None:
    _, directory = straight("torch")
    given = {"model": network("torch"), "data": images("torch")} | arguments
    with pytest.raises(ConfigError, match=word):
        spatlib.train(**given, run_dir=directory, resume=True)
