"""Run directories of spatlib.train: known by their own mark, resumed or begun, never damaged."""

from __future__ import annotations

import ast
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spatlib
from spatlib import RECIPES, ConfigError, DataError, NonFiniteError, SPATConfig, TrainConfig
from spatlib.engines import load_engine
from spatlib.monitor import Monitor
from spatlib.runs import BEST, CHECKPOINT, EMA, LAST, METRICS, Run, load_model

pytestmark = pytest.mark.usefixtures("without_pictures", "handlers")
CONFIG = SPATConfig(eps=0.1, steps=1)
TRAINING = TrainConfig(
    epochs=2, batch_size=12, lr=0.05, schedule="constant", validation=12, ema=0.5, progress=False
)
RECIPE = RECIPES["digits"].change(epochs=1, steps=1, baseline=False, progress=False)
DIGITS = spatlib.load_data("digits", limit=70)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of a process in the foreground: a shell lets its background ignore SIGINT."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(size=(36, 5)).astype(np.float32), rng.integers(3, size=36)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def train(run_dir: Any, **arguments: Any) -> spatlib.Result:
    """Of a network and data of one's own."""
    given = {"model": network(), "data": arrays(), "config": CONFIG, "training": TRAINING}
    return spatlib.train(run_dir=run_dir, **given | arguments)


def train_digits(run_dir: Any, **arguments: Any) -> spatlib.Result:
    """Of a network and data by name."""
    return spatlib.train(run_dir=run_dir, **{"data": DIGITS, "recipe": RECIPE} | arguments)


def weights(model: nn.Module) -> list[Any]:
    return [value.tolist() for value in model.state_dict().values()]


def rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    """Without what the clock says."""
    return [{name: v for name, v in row.items() if name != "seconds"} for row in history]


def content(directory: Path) -> dict[str, bytes | None]:
    """All below a directory, by path; None for a directory."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


def saved(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))


def edit(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Let ``change`` have its way with the settings of a run."""
    settings = saved(directory)
    change(settings)
    (directory / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def older(settings: dict[str, Any]) -> None:
    """Settings as spatlib wrote them before they had a mark."""
    del settings["spatlib_run"], settings["optimizer"]
    settings["data_dir"] = None


def of_numbers(settings: dict[str, Any]) -> None:
    """A mark, and settings that are out of their range."""
    settings["config"]["eps"] = -1


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> tuple[spatlib.Result, Path]:
    """A run of one's own network, never stopped."""
    directory = tmp_path_factory.mktemp("own")
    return train(directory), directory


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[spatlib.Result, Path]:
    """A run of a network by name."""
    directory = tmp_path_factory.mktemp("digits")
    return train_digits(directory), directory


@pytest.fixture
def copy(own: Any, digits: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Makes a copy of one of them."""

    def made(name: str) -> Path:
        source = {"own": own, "digits": digits}[name][1]
        for path in source.glob("*.*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
        return tmp_path

    return made


def test_a_run_has_its_mark_and_what_decides_its_result(own: Any, digits: Any) -> None:
    settings = saved(own[1])
    assert settings["spatlib_run"] == 2
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


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "older": (lambda d: edit(d, older), r"config\.json is .* older format.* load_weights"),
    "newer": (lambda d: edit(d, lambda s: s.update(spatlib_run=3)), "must have format 2, got 3"),
    "another": (lambda d: (d / "config.json").write_text('{"name": "x"}'), "of another program"),
    "a list": (lambda d: (d / "config.json").write_text("[2]"), "of another program"),
    "cut": (lambda d: (d / "config.json").write_text('{"spatlib_run": 2'), "is damaged .* back"),
    "not text": (lambda d: (d / "config.json").write_bytes(b"\xff\xfe{"), "is damaged .* back"),
    "no backend": (lambda d: edit(d, lambda s: s.pop("backend")), "damaged .*'backend'"),
    "no config": (lambda d: edit(d, lambda s: s.update(config=None)), "is damaged"),
    "no such eps": (lambda d: edit(d, of_numbers), "is damaged .*eps must be a number in"),
    "no settings": (lambda d: (d / "config.json").unlink(), "is missing beside .*: put it back"),
}


@pytest.mark.parametrize("mode", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_run_is_refused_in_a_sentence_and_never_touched(
    kind: str, mode: dict[str, Any], copy: Any
) -> None:
    directory, (spoil, message) = copy("digits"), FOREIGN[kind]
    spoil(directory)
    before = content(directory)
    with pytest.raises(ConfigError, match=message) as refusal:
        train_digits(directory, **mode)
    assert str(directory) in str(refusal.value)
    assert "choose another run_dir" in str(refusal.value)
    assert content(directory) == before


@pytest.mark.parametrize("name", [CHECKPOINT, METRICS, LAST, BEST, EMA, "curves.png", "audit.json"])
@pytest.mark.parametrize("mode", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_file_that_has_our_name_but_no_run_is_never_touched(
    name: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"of another")
    with pytest.raises(ConfigError, match=rf"config\.json is missing beside {name}"):
        train(tmp_path, **mode)
    assert content(tmp_path) == {name: b"of another"}


def test_the_weights_of_an_older_run_can_be_loaded(copy: Any, digits: Any) -> None:
    directory = copy("digits")
    edit(directory, older)
    with pytest.raises(ConfigError, match="load_weights"):
        load_model(directory)
    engine, built = load_engine("torch"), saved(directory)["architecture"]
    model = engine.build_model(seed=5, **built)
    assert weights(model) != weights(digits[0].model)
    engine.load_weights(model, (directory / LAST).read_bytes())
    assert weights(model) == weights(digits[0].model)


def test_overwriting_deletes_what_the_run_wrote_and_nothing_else(copy: Any) -> None:
    directory = copy("own")
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
    (directory / "evaluation.json").write_bytes(b"of the old run")
    before = content(directory)
    run = Run(directory, overwrite=True)
    assert content(directory) == before  # nothing is deleted before training begins
    short = replace(TRAINING, epochs=1, ema=0, validation=0)
    train(directory, training=short, overwrite=True)
    after = content(directory)
    assert {name: after[name] for name in kept} == kept
    assert after["standard/last.safetensors"] == b"4"
    gone = {name for name in before if name not in after and "events" not in name}
    assert gone == {BEST, EMA, "evaluation.json"}
    assert len(ours) == 2
    assert sum("spatlib" in path.name for path in events.iterdir()) == 1  # of the new run
    assert len(Run(directory, resume=True).history()) == 1
    assert run.directory == directory


def test_a_run_is_kept_without_being_asked(own: Any) -> None:
    before = content(own[1])
    with pytest.raises(ConfigError, match=r"one with a run, .*resume=True.*overwrite=True"):
        train(own[1])
    with pytest.raises(ConfigError, match=r"resume and overwrite .* leave one"):
        train(own[1], resume=True, overwrite=True)
    assert content(own[1]) == before


def test_overwriting_an_empty_or_absent_directory_begins_a_run(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "a" / "b"):
        train(directory, overwrite=True)
        assert len(Run(directory, resume=True).history()) == 2


def test_the_baseline_has_a_run_of_its_own_which_is_overwritten_too(tmp_path: Path) -> None:
    both = RECIPE.change(baseline=True, validation=10)
    result = train_digits(tmp_path, recipe=both)
    standard, run = load_model(tmp_path / "standard")
    assert saved(tmp_path / "standard") == saved(tmp_path) == run.settings
    measured = spatlib.evaluate(standard, DIGITS, both.config).metrics
    assert measured == result.baseline.metrics
    assert weights(standard) != weights(load_model(tmp_path)[0])
    again = train_digits(tmp_path, recipe=both, resume=True)
    assert (again.metrics, again.baseline.metrics) == (result.metrics, result.baseline.metrics)
    train_digits(tmp_path, overwrite=True)
    assert [path.name for path in (tmp_path / "standard").rglob("*") if path.is_file()] == []


def test_the_best_epoch_of_the_baseline_is_that_of_the_best_clean_accuracy(tmp_path: Path) -> None:
    told: list[tuple[float, float, bytes]] = []

    def read(row: dict[str, Any]) -> None:
        if row["network"] == "standard":
            best = (tmp_path / "standard" / BEST).read_bytes()
            told.append((row["val_clean"], row["val_pgd10"], best))

    settings = {"epochs": 5, "batch_size": 16, "validation": 30, "schedule": "constant"}
    recipe = RECIPE.change(baseline=True, **settings)
    data = spatlib.load_data("digits", limit=150)
    spatlib.train(data=data, recipe=recipe, run_dir=tmp_path, on_epoch=read)
    clean, robust, files = zip(*told, strict=True)
    higher = [all(value > before for before in clean[:n]) for n, value in enumerate(clean)]
    assert higher == [files[n] not in files[:n] for n in range(5)]
    assert higher != [all(v > before for before in robust[:n]) for n, v in enumerate(robust)]


@pytest.mark.parametrize("foreign", [CHECKPOINT, "config.json"])
def test_a_foreign_file_in_the_place_of_the_baseline_is_never_touched(
    foreign: str, tmp_path: Path
) -> None:
    both, place = RECIPE.change(baseline=True), tmp_path / "standard" / foreign
    place.parent.mkdir()
    place.write_text("{}")
    with pytest.raises(ConfigError, match=r"standard/config\.json is"):
        train_digits(tmp_path, recipe=both)
    assert content(tmp_path) == {"standard": None, f"standard/{foreign}": b"{}"}
    place.unlink()
    train_digits(tmp_path, recipe=both)
    (place.parent / "config.json").unlink()
    place.write_text("{}")
    before = content(tmp_path)
    for recipe in (both, RECIPE):
        with pytest.raises(ConfigError, match=r"standard/config\.json is"):
            train_digits(tmp_path, recipe=recipe, overwrite=True)
        assert content(tmp_path) == before


def test_a_run_in_the_place_of_the_baseline_is_of_another(digits: Any, tmp_path: Path) -> None:
    train_digits(tmp_path / "standard")
    train_digits(tmp_path)
    before = content(tmp_path / "standard")
    with pytest.raises(ConfigError, match=r"one with a run, .*standard"):
        train_digits(tmp_path, recipe=RECIPE.change(baseline=True), overwrite=True)
    train_digits(tmp_path, overwrite=True)
    assert content(tmp_path / "standard") == before


@pytest.mark.parametrize("value", ["", 5, None])
def test_run_dir_has_to_name_a_directory(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="run_dir must name"):
        train(value, resume=True)
    assert content(tmp_path) == {}


def test_run_dir_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(ConfigError, match="run_dir must be a directory, got the file"):
        train(tmp_path / "file", overwrite=True)


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
        assert len(seen) == 2
        assert (again.history, again.metrics) == (result.history, result.metrics)
        assert weights(again.model) == weights(result.model)
        assert content(directory) == before


def test_what_is_left_out_is_read_from_the_run(digits: Any, copy: Any) -> None:
    result, directory = digits[0], copy("digits")
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


def test_every_other_setting_is_named_with_both_values(own: Any, digits: Any) -> None:
    config = replace(CONFIG, eps=0.2, mask=spatlib.Mask())
    training = replace(TRAINING, lr=1.0, seed=9)
    with pytest.raises(ConfigError, match="needs the settings of the run in") as refusal:
        train(own[1], resume=True, config=config, training=training)
    text = str(refusal.value)
    assert str(own[1]) in text
    assert "config.eps = 0.2 instead of 0.1" in text
    assert "config.mask = {'score': 'min'," in text
    assert "training.lr = 1.0 instead of 0.05" in text
    assert "training.seed = 9 instead of 0" in text
    assert text.count("instead of") == 4
    assert "leave them out, or begin a new run" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"recipe": RECIPE.change(eps=0.3)}, "config.eps = 0.3 instead of 0.15"),
        ({"recipe": RECIPE.change(mask=spatlib.Mask())}, "config.mask = .* instead of None"),
        ({"recipe": RECIPE.change(mean=(0.5,), std=(1.0,))}, "architecture.mean = .*.std = "),
        ({"data": spatlib.load_data("digits", limit=60)}, "data.limit = 60 instead of 70"),
        ({"data": DIGITS.train}, "data = your own instead of {'name': 'digits'"),
        ({"model": "mnist_cnn"}, "architecture.name = 'mnist_cnn' instead of 'small_cnn'"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10))},
            "architecture = your own instead",
        ),
        ({"backend": "tf"}, "backend = 'tf' instead of 'torch'"),
        ({"optimizer": torch.optim.SGD}, "optimizer = True instead of False"),
    ],
)
def test_whatever_decides_a_result_is_compared(
    change: dict[str, Any], words: str, digits: Any
) -> None:
    before = content(digits[1])
    with pytest.raises(ConfigError, match=f"got .*{words}"):
        train_digits(digits[1], resume=True, **change)
    assert content(digits[1]) == before


def test_a_network_of_ones_own_is_no_network_by_name(own: Any) -> None:
    with pytest.raises(ConfigError, match=r"data = \{'name': 'digits'.* instead of your own"):
        train(own[1], resume=True, data=DIGITS, model=nn.Sequential(nn.Flatten(), network()))


def test_more_epochs_device_and_progress_are_free(
    own: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = train(tmp_path, training=replace(TRAINING, epochs=1))
    assert len(first.history) == 1
    others = {"device": "cpu", "progress": True, "checkpoint_minutes": 0.0}
    longer = train(tmp_path, training=replace(TRAINING, **others), resume=True)
    assert rows(longer.history) == rows(own[0].history)
    assert weights(longer.model) == weights(own[0].model)
    assert "accuracy" in capsys.readouterr().out
    assert Run(tmp_path, resume=True).configs() == (CONFIG, replace(TRAINING, **others))
    assert saved(tmp_path)["argv"]
    with_less = train(tmp_path, training=None, config=None, resume=True)
    assert rows(with_less.history) == rows(own[0].history)


@pytest.mark.parametrize("what", ["model", "data"])
def test_what_was_ones_own_has_to_be_passed_again(what: str, own: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{what} of the run in .* pass it again"):
        train(own[1], resume=True, **{what: None})


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


def test_a_lost_checkpoint_is_said_instead_of_beginning_anew(copy: Any) -> None:
    directory = copy("own")
    (directory / CHECKPOINT).unlink()
    before = content(directory)
    with pytest.raises(DataError, match=rf"{CHECKPOINT} is missing beside {METRICS}: put it back"):
        train(directory, resume=True, training=replace(TRAINING, epochs=3))
    assert content(directory) == before
    (directory / METRICS).unlink()  # nothing is lost of a run without an epoch
    assert len(train(directory, resume=True).history) == 2


def test_damaged_files_of_a_run_are_named(copy: Any) -> None:
    directory = copy("own")
    whole = {name: (directory / name).read_bytes() for name in (CHECKPOINT, BEST, METRICS)}
    (directory / CHECKPOINT).write_bytes(whole[CHECKPOINT][:-5])
    with pytest.raises(DataError, match=r"checkpoint\.safetensors must be .* by spatlib"):
        train(directory, resume=True)
    (directory / CHECKPOINT).write_bytes(whole[CHECKPOINT])
    (directory / BEST).unlink()
    with pytest.raises(
        DataError, match=r"best\.safetensors, the weights of the best epoch.* put it back"
    ):
        train(directory, resume=True)
    (directory / BEST).write_bytes(whole[BEST])
    (directory / METRICS).write_bytes(b"epoch,loss\n1,much\n")
    with pytest.raises(DataError, match=r"metrics\.csv must be a table of numbers .* put it back"):
        Run(directory, resume=True).history()
    train(directory, resume=True)  # the checkpoint has the rows too
    assert (directory / METRICS).read_bytes() == whole[METRICS]


# Settings, then of each of two epochs the best (of the second perhaps not), last and averaged
# weights, the checkpoint, the table.
@pytest.mark.parametrize("nth", range(1, 11))
def test_a_process_that_ends_between_two_files_loses_nothing(
    nth: int, own: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Run.write, []

    def killed(self: Run, name: str, text: bytes) -> None:
        written.append(name)
        if len(written) == nth:
            raise MemoryError  # whatever ends the process here
        write(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write", killed)
        with pytest.raises(MemoryError):
            train(tmp_path)
    result = train(tmp_path, resume=True)
    assert rows(result.history) == rows(own[0].history)
    assert rows(Run(tmp_path, resume=True).history()) == rows(own[0].history)
    for name in (LAST, BEST, EMA):
        assert (tmp_path / name).read_bytes() == (own[1] / name).read_bytes()


def test_a_call_that_is_refused_leaves_everything(own: Any, tmp_path: Path) -> None:
    x, y = arrays()
    before = content(own[1])
    for case in (
        {"data": (9 * x, y)},
        {"data": ((x, y), (9 * x, y))},
        {"training": replace(TRAINING, device="nowhere")},
        {"backend": "nothing"},
        {"model": None},
    ):
        for directory in (own[1], tmp_path / "new"):
            with pytest.raises((spatlib.SpatlibError, RuntimeError)):
                train(directory, overwrite=True, **case)
    assert content(own[1]) == before
    assert not (tmp_path / "new").exists()


def test_a_run_that_is_not_there_is_not_read(tmp_path: Path) -> None:
    for read in (load_model, lambda path: Run(path, resume=True).configs()):
        with pytest.raises(ConfigError, match=r"run_dir must hold a run, got .*nothing"):
            read(tmp_path / "nothing")
    assert content(tmp_path) == {}


def test_a_network_of_a_run_comes_back_by_its_name(digits: Any, own: Any) -> None:
    model, run = load_model(digits[1])
    assert weights(model) == weights(digits[0].model)
    assert run.settings["backend"] == "torch"
    with pytest.raises(ConfigError, match=r"weights must be one of \['last'\].*got 'ema'"):
        load_model(digits[1], "ema")
    with pytest.raises(ConfigError, match="load_weights"):
        load_model(own[1])


def interrupt(number: int, epoch: int) -> Callable[[dict[str, Any]], None]:
    """An on_epoch that has a signal sent to this process."""

    def told(row: dict[str, Any]) -> None:
        if row["epoch"] == epoch:
            signal.raise_signal(number)  # handled before the next line

    return told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_stops_and_leaves_the_handlers_as_they_were(
    number: int, own: Any, tmp_path: Path
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    expected = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit}[number]
    with pytest.raises(expected) as stop:
        train(tmp_path, on_epoch=interrupt(number, 1))
    if number == signal.SIGTERM:
        assert stop.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert len(Run(tmp_path, resume=True).history()) == 1
    result = train(tmp_path, resume=True)
    assert rows(result.history) == rows(own[0].history)
    assert weights(result.model) == weights(own[0].model)


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    def twice(row: dict[str, Any]) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, on_epoch=twice)
    assert signal.getsignal(signal.SIGINT) == handler
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_process_that_ignores_a_signal_is_not_interrupted(own: Any, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    result = train(tmp_path, on_epoch=interrupt(signal.SIGINT, 1))
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    assert rows(result.history) == rows(own[0].history)


def test_handlers_come_back_after_an_error_too(tmp_path: Path) -> None:
    def mine(number: int, frame: Any) -> None:
        raise AssertionError

    def fail(row: dict[str, Any]) -> None:
        assert signal.getsignal(signal.SIGTERM) != mine
        raise ValueError("of the caller")

    signal.signal(signal.SIGTERM, mine)
    with pytest.raises(ValueError, match="of the caller"):
        train(tmp_path, on_epoch=fail)
    assert signal.getsignal(signal.SIGTERM) == mine


def test_signals_are_left_alone_in_a_thread(own: Any, tmp_path: Path) -> None:
    done: list[spatlib.Result] = []
    worker = threading.Thread(target=lambda: done.append(train(tmp_path)))
    worker.start()
    worker.join()
    assert rows(done[0].history) == rows(own[0].history)
    assert len(Run(tmp_path, resume=True).history()) == 2


def row(epoch: int, robust: float, single: float = 0.9) -> dict[str, float]:
    return {"epoch": epoch, "loss": 1.0, "val_clean": 0.9, "val_pgd10": robust, "val_pgd1": single}


def test_the_patience_counts_from_the_best_epoch_and_from_full_eps() -> None:
    history = [row(n, p) for n, p in enumerate((0.1, 0.5, 0.4, 0.5, 0.45, 0.4), 1)]

    def answers(**settings: Any) -> list[bool]:
        monitor = Monitor(TrainConfig(**settings))
        return [monitor.stopped(history[:n]) for n in range(1, 7)]

    assert answers(patience=3, validation=1) == [False] * 4 + [True] * 2
    assert answers(patience=3, validation=1, eps_warmup=3) == [False] * 5 + [True]
    assert answers(epochs=6) == [False] * 5 + [True]
    unvalidated = [{"epoch": n, "loss": 1.0} for n in range(1, 4)]
    assert not Monitor(TrainConfig(patience=1, validation=1)).stopped(unvalidated)


def test_rows_are_written_after_the_checkpoint_that_has_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.describe(
        {
            "backend": "torch",
            "data": None,
            "config": asdict(CONFIG),
            "training": asdict(TRAINING),
            "architecture": None,
            "optimizer": False,
        }
    )
    monitor, history = Monitor(TRAINING, None, run), [row(1, 0.5)]
    assert monitor.checkpoint() is None
    monitor.epoch(history, None, lambda: b"weights", lambda: b"averaged")
    assert run.history() == []
    assert [run.read(name) for name in (BEST, LAST, EMA)] == [b"averaged", b"weights", b"averaged"]
    monitor.save(None)  # an engine without checkpoints
    assert run.history() == history
    history.append(row(2, 0.4))
    monitor.epoch(history, None, lambda: b"2")
    monitor.save(b"checkpoint")
    assert run.history() == history
    assert (run.read(CHECKPOINT), run.read(BEST)) == (b"checkpoint", b"averaged")
    again = Monitor(TRAINING, None, Run(tmp_path, resume=True))
    assert again.checkpoint() == b"checkpoint"
    again.resume(history)
    assert again.best_weights == b"averaged"


def test_the_result_so_far_comes_with_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    wild = replace(TRAINING, lr=1e30, validation=0, ema=0.0)
    with pytest.raises(NonFiniteError) as stop:
        train(tmp_path, training=wild)
    result = stop.value.result
    assert (result.config, result.training) == (CONFIG, wild)
    assert (result.report, result.metrics) == (None, {})
    assert all(torch.isfinite(value).all() for value in result.model.state_dict().values())


ROOT = Path(spatlib.__file__).parent


def imports(path: Path) -> list[Path]:
    """The modules of spatlib that one imports when it is imported itself."""
    package, found = path.parent, []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            where = package
            for _ in range(node.level - 1):
                where = where.parent
            base = where.joinpath(*(node.module or "").split(".")) if node.module else where
            names = [base / f"{alias.name}.py" for alias in node.names]
            found += [name if name.exists() else base.with_suffix(".py") for name in names]
    return [module for module in found if module.exists() and module != path]


@cache
def chain(path: Path) -> tuple[str, ...]:
    """The longest way down from a module, itself included."""
    longest = max((chain(module) for module in imports(path)), key=len, default=())
    return (str(path.relative_to(ROOT)), *longest)


@pytest.mark.parametrize("name", ["__init__.py", "train.py", "evaluate.py", "audit.py"])
def test_chains_of_imports_are_short(name: str) -> None:
    found = chain(ROOT / name)
    assert len(found) > 3  # they are found at all
    assert len(found) <= 7, " -> ".join(found)
