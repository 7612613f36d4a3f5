"""Run directories of spatlib.train: what they hold, how they go on and are overwritten."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spatlib
from spatlib import ConfigError, Mask, SPATConfig, TrainConfig
from spatlib.cli import main
from spatlib.engines import load_engine
from spatlib.report import evaluation_table
from spatlib.runs import BEST, EMA, LAST, METRICS, Run, load_model

from .running import (
    CONFIG,
    DIGITS,
    RECIPE,
    TRAINING,
    content,
    copied,
    edit,
    older,
    rows,
    saved,
    train,
    train_digits,
    weights,
)

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_a_run_has_its_mark_and_what_decides_its_result(own: Any, digits: Any) -> None:
    settings = saved(own[1])
    assert settings["spatlib_run"] == 3
    assert settings["backend"] == "torch"
    assert (settings["data"], settings["architecture"]) == (None, None)
    assert settings["optimizer"] is False
    assert {"python", "numpy", "torch"} <= set(settings["versions"])
    assert "git" in settings
    assert settings["argv"]
    assert Run(own[1], resume=True).configs() == (CONFIG, TRAINING)
    settings = saved(digits[1])
    assert settings["data"] == {"name": "digits", "dir": None, "limit": 70}
    assert settings["architecture"]["name"] == "small_cnn"
    assert settings["architecture"]["shape"] == [1, 8, 8]


def test_the_weights_of_an_older_run_can_be_loaded(tmp_path: Path, digits: Any) -> None:
    directory = copied(digits[1], tmp_path)
    edit(directory, older)
    with pytest.raises(ConfigError, match="load_weights"):
        load_model(directory)
    engine, built = load_engine("torch"), saved(directory)["architecture"]
    model = engine.build_model(seed=5, **built)
    assert weights(model) != weights(digits[0].model)
    engine.load_weights(model, (directory / LAST).read_bytes())
    assert weights(model) == weights(digits[0].model)


def test_overwriting_deletes_what_the_run_wrote_and_nothing_else(own: Any, tmp_path: Path) -> None:
    directory = copied(own[1], tmp_path)
    events = directory / "tensorboard"
    train(directory, overwrite=True)
    ours = set(events.iterdir())
    kept = {"mine.txt": b"1", "tensorboard/events.out.tfevents.1.host": b"2", "x/config.json": b"3"}
    for name, text in kept.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(text)
    (directory / "standard").mkdir()  # not of this run, which had no baseline
    for path in directory.glob("*.safetensors"):
        (directory / "standard" / path.name).write_bytes(b"4")
    (directory / "audit.json").write_bytes(b"of the old run")
    before = content(directory)
    run = Run(directory, overwrite=True)
    assert content(directory) == before  # nothing is deleted before training begins
    short = replace(TRAINING, epochs=1, ema=0, validation=0)
    train(directory, training=short, overwrite=True)
    after = content(directory)
    assert {name: after[name] for name in kept} == kept
    assert after["standard/last.safetensors"] == b"4"
    gone = {name for name in before if name not in after and "events" not in name}
    assert gone == {BEST, EMA, "audit.json"}
    assert len(ours) == 1
    assert sum("spatlib" in path.name for path in events.iterdir()) == 1  # of the new run
    assert len(Run(directory, resume=True).history()) == 1
    assert run.directory == directory


def test_overwriting_an_empty_or_absent_directory_begins_a_run(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "a" / "b"):
        train(directory, overwrite=True)
        assert len(Run(directory, resume=True).history()) == 2


def test_the_baseline_has_a_run_of_its_own_which_is_overwritten_too(tmp_path: Path) -> None:
    both = RECIPE.change(baseline=True, validation=10)
    result = train_digits(tmp_path, recipe=both)
    standard, run = load_model(tmp_path / "standard")
    part = saved(tmp_path) | {"network": "standard"}
    assert saved(tmp_path / "standard") == run.settings == part
    measured = spatlib.evaluate(standard, DIGITS, both.config).metrics
    assert measured == result.baselines["standard"].metrics
    shown = evaluation_table(json.loads((tmp_path / "result.json").read_bytes()))
    assert shown.cells == result._table().cells  # of all networks
    assert weights(standard) != weights(load_model(tmp_path)[0])
    assert load_model(tmp_path / "PGD-AT")[1].configs()[0] == both.config.baselines["PGD-AT"]
    assert main(("evaluate", str(tmp_path / "standard"), "--limit", "9")) == 0
    told = json.loads((tmp_path / "standard" / "evaluation.json").read_bytes())
    assert told["network"] == "standard"
    with pytest.raises(ConfigError, match="run_dir must be a run of its own"):
        spatlib.train(run_dir=tmp_path / "standard", resume=True)
    again = train_digits(tmp_path, recipe=both, resume=True)
    for one, other in zip(again.baselines.values(), result.baselines.values(), strict=True):
        assert one.metrics == other.metrics
    assert again.metrics == result.metrics
    train_digits(tmp_path, overwrite=True)
    for name in both.config.baselines:
        assert [path.name for path in (tmp_path / name).rglob("*") if path.is_file()] == []


def test_the_best_epoch_of_the_baseline_is_that_of_the_best_clean_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, marked = list[tuple[float, float, bytes]](), list[int]()

    def read(row: dict[str, Any]) -> None:
        if row["network"] == "standard":
            best = (tmp_path / "standard" / BEST).read_bytes()
            told.append((row["val_clean"], row["val_pgd10"], best))

    settings = {"epochs": 5, "batch_size": 16, "validation": 30, "schedule": "constant"}
    recipe = RECIPE.change(baseline=True, smoothing=0, **settings)  # no other baseline
    data = spatlib.load_data("digits", limit=150)
    spatlib.train(data=data, recipe=recipe, run_dir=tmp_path, on_epoch=read)
    clean, robust, files = zip(*told, strict=True)
    higher = [all(value > before for before in clean[:n]) for n, value in enumerate(clean)]
    assert higher == [files[n] not in files[:n] for n in range(5)]
    assert higher != [all(v > before for before in robust[:n]) for n, v in enumerate(robust)]
    monkeypatch.setattr("spatlib.plots.curves", lambda *_: marked.append(_[-1]) or b"")
    assert main(("show", str(tmp_path / "standard"))) == 0
    assert marked == [1 + clean.index(max(clean))] != [1 + robust.index(max(robust))]


def test_a_relative_path_is_that_of_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    train("run", on_epoch=lambda row: os.chdir(tmp_path / "elsewhere"))
    assert content(tmp_path / "elsewhere") == {}
    assert len(Run(tmp_path / "run", resume=True).history()) == 2


def test_resume_begins_where_there_is_no_run_and_goes_on_where_there_is(
    own: Any, tmp_path: Path
) -> None:
    seen: list[dict[str, Any]] = []
    for directory in (tmp_path / "absent", tmp_path):  # which then has a subdirectory
        seen.clear()
        result = train(directory, resume=True, on_epoch=seen.append)
        assert rows(result.history) == rows(own[0].history)
        assert len(seen) == 2
        before = content(directory)
        again = train(directory, resume=True, on_epoch=seen.append)
        (directory / "spatlib.json").write_bytes(before["spatlib.json"])
        assert len(seen) == 2
        assert (again.history, again.metrics) == (result.history, result.metrics)
        assert weights(again.model) == weights(result.model)
        assert content(directory) == before


def test_what_is_left_out_is_read_from_the_run(digits: Any, tmp_path: Path) -> None:
    result, directory = digits[0], copied(digits[1], tmp_path)
    again = spatlib.train(run_dir=directory, resume=True)
    assert (again.config, again.training) == (result.config, result.training)
    assert (again.metrics, weights(again.model)) == (result.metrics, weights(result.model))
    for given in ({"recipe": RECIPE}, {"config": RECIPE.config}, {"training": RECIPE.training}):
        for data in ({"data": DIGITS}, {}):
            again = spatlib.train(run_dir=directory, resume=True, **given, **data)
            assert again.metrics == result.metrics
    edit(directory, lambda settings: settings.update(backend="nothing"))
    with pytest.raises(spatlib.BackendError, match="got 'nothing'"):
        spatlib.train(run_dir=directory, resume=True)


def test_more_epochs_device_and_progress_are_free(
    own: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path, training=replace(TRAINING, epochs=1))
    assert len(first.history) == 1
    others = {"device": "cpu", "progress": True, "checkpoint_minutes": 0.0, "num_workers": 1}
    longer = train(tmp_path, training=replace(TRAINING, **others), resume=True)
    assert rows(longer.history) == rows(own[0].history)
    assert weights(longer.model) == weights(own[0].model)
    assert "accuracy" in capsys.readouterr().out
    assert Run(tmp_path, resume=True).configs() == (CONFIG, replace(TRAINING, **others))
    assert saved(tmp_path)["argv"]
    with_less = train(tmp_path, training=None, config=None, resume=True)
    assert rows(with_less.history) == rows(own[0].history)


def test_whether_there_was_an_optimizer_is_all_that_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, given = load_engine("torch"), []
    fit = engine.fit

    def watched(*arguments: Any, optimizer: Any, **options: Any) -> Any:
        given.append(optimizer)
        return fit(*arguments, **options)

    monkeypatch.setattr(engine, "fit", watched)
    optimizer, training = torch.optim.SGD, TrainConfig(epochs=1, progress=False)
    with pytest.raises(ConfigError, match=r"lr must be left out of training beside optimizer"):
        train(tmp_path, optimizer=optimizer)
    train(tmp_path, optimizer=optimizer, training=training)
    assert given == [optimizer]
    assert saved(tmp_path)["optimizer"] is True
    with pytest.raises(ConfigError, match=r"optimizer of the run in .* pass it again"):
        train(tmp_path, resume=True, training=training)
    train(tmp_path, resume=True, training=training, optimizer=optimizer)
    assert given == [optimizer] * 2


def test_a_rate_of_a_recipe_or_of_the_run_may_stand_beside_an_optimizer(tmp_path: Path) -> None:
    assert RECIPE.training.lr != TrainConfig.lr
    result = train_digits(tmp_path, optimizer=torch.optim.SGD)
    again = spatlib.train(run_dir=tmp_path, resume=True, optimizer=torch.optim.SGD)
    assert again.training == result.training == RECIPE.training
    assert weights(again.model) == weights(result.model)


def test_a_network_of_a_run_comes_back_by_its_name(digits: Any, own: Any) -> None:
    model, run = load_model(digits[1])
    assert weights(model) == weights(digits[0].model)
    assert run.settings["backend"] == "torch"
    with pytest.raises(ConfigError, match=r"weights must be one of \['last'\].*got 'ema'"):
        load_model(digits[1], "ema")
    with pytest.raises(ConfigError, match="model must be given for the run in"):
        load_model(own[1])


def test_metrics_are_a_table_and_signals_are_left_alone_in_threads(tmp_path: Path) -> None:
    done: list[Any] = []
    worker = threading.Thread(target=lambda: done.append(train(tmp_path)))
    worker.start()
    worker.join()
    lines = (tmp_path / METRICS).read_text(encoding="utf-8").splitlines()
    assert lines[0].split(",")[:3] == ["epoch", "loss", "adv_accuracy"]
    assert {"val_clean", "val_pgd10", "val_pgd1"} <= set(lines[0].split(","))
    assert len(lines) == 3
    assert len(done[0].history) == 2


def test_numbers_of_numpy_are_settings_like_others(tmp_path: Path) -> None:
    training = TrainConfig(
        epochs=np.int64(1),
        batch_size=np.int64(16),
        seed=np.int64(1),
        lr=np.float32(0.1),
        progress=False,
    )
    mask = Mask(score="rms", keep=np.float32(0.25), probes=np.int64(1))
    config = SPATConfig(eps=np.float32(0.1), steps=np.int64(1), mask=mask)
    train(tmp_path, training=training, config=config)
    assert Run(tmp_path, resume=True).configs() == (config, training)
    train(tmp_path, training=training, config=config, resume=True)
