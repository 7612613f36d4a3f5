"""What is no run, or a run of something else, is refused in a sentence and never touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spatlib
from spatlib import ConfigError
from spatlib.runs import BEST, CHECKPOINT, EMA, LAST, METRICS, Run, load_model

from .running import (
    CONFIG,
    DIGITS,
    RECIPE,
    TRAINING,
    arrays,
    content,
    copied,
    edit,
    network,
    older,
    train,
    train_digits,
)

pytestmark = pytest.mark.usefixtures("without_pictures")


def unsealed(directory: Path, text: bytes) -> None:
    """Another config.json, of a program that has no checksums."""
    (directory / "spatlib.json").unlink()
    (directory / "config.json").write_bytes(text)


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "older": (lambda d: edit(d, older), r"format 1 .* load_weights"),
    "newer": (
        lambda d: edit(d, lambda s: s.update(spatlib_run=4)),
        "a run of format 3, got format 4 .* load_weights",
    ),
    "unsealed": (
        lambda d: (d / "spatlib.json").unlink(),
        "a run of format 3, got format 3 without spatlib.json",
    ),
    "another": (lambda d: unsealed(d, b'{"name": "x"}'), "of another program"),
    "a list": (lambda d: unsealed(d, b"[2]"), "no valid config.json"),
    "cut": (lambda d: unsealed(d, b'{"spatlib_run": 3'), "no valid config.json .* back"),
    "not text": (lambda d: unsealed(d, b"\xff\xfe{"), "no valid config.json .* back"),
    "no settings": (
        lambda d: [(d / name).unlink() for name in ("config.json", "spatlib.json")],
        r"which has .*, must .* no valid config\.json .* back",
    ),
}


@pytest.mark.parametrize("mode", [{}, {"resume": True}, {"overwrite": True}], ids=str)
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_run_is_refused_in_a_sentence_and_never_touched(
    kind: str, mode: dict[str, Any], digits: Any, tmp_path: Path
) -> None:
    directory, (spoil, message) = copied(digits[1], tmp_path), FOREIGN[kind]
    spoil(directory)
    before = content(directory)
    with pytest.raises(ConfigError, match=message) as refusal:
        train_digits(directory, **mode)
    assert str(directory) in str(refusal.value)
    assert "choose another run_dir" in str(refusal.value)
    assert content(directory) == before


@pytest.mark.parametrize(
    "name", [CHECKPOINT, METRICS, LAST, BEST, EMA, "curves.png", "report.html"]
)
@pytest.mark.parametrize("mode", [{}, {"resume": True}, {"overwrite": True}], ids=str)
def test_a_file_that_has_our_name_but_no_run_is_never_touched(
    name: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"of another")
    with pytest.raises(
        ConfigError, match=rf"which has {name}, must hold a run .*no valid config\.json"
    ):
        train(tmp_path, **mode)
    assert content(tmp_path) == {name: b"of another"}


def test_a_run_is_kept_without_being_asked(own: Any) -> None:
    before = content(own[1])
    with pytest.raises(
        ConfigError, match=r"must be new, got .* with a run: .*resume=True.*overwrite=True"
    ):
        train(own[1])
    with pytest.raises(ConfigError, match=r"resume must be left out beside overwrite"):
        train(own[1], resume=True, overwrite=True)
    assert content(own[1]) == before


@pytest.mark.parametrize(
    ("name", "foreign"),
    [("standard", CHECKPOINT), ("standard", "config.json"), ("PGD-AT", "config.json")],
)
def test_a_foreign_file_in_the_place_of_a_baseline_is_never_touched(
    name: str, foreign: str, tmp_path: Path
) -> None:
    both, place = RECIPE.change(baseline=True), tmp_path / name / foreign
    place.parent.mkdir()
    place.write_text("{}")
    with pytest.raises(ConfigError, match=rf"{name}, which has .*, must hold a run"):
        train_digits(tmp_path, recipe=both)
    assert content(tmp_path) == {name: None, f"{name}/{foreign}": b"{}"}
    place.unlink()
    train_digits(tmp_path, recipe=both)
    (place.parent / "config.json").unlink()
    (place.parent / "spatlib.json").unlink()
    place.write_text("{}")
    before = content(tmp_path)
    for recipe in (both, RECIPE):
        with pytest.raises(ConfigError, match=rf"{name}, which has .*, must hold a run"):
            train_digits(tmp_path, recipe=recipe, overwrite=True)
        assert content(tmp_path) == before


@pytest.mark.parametrize("name", ["standard", "PGD-AT"])
def test_a_run_in_the_place_of_a_baseline_is_of_another(name: str, tmp_path: Path) -> None:
    train_digits(tmp_path / name)
    train_digits(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ConfigError, match=rf"run_dir must be new, got .*{name} with a run"):
        train_digits(tmp_path, recipe=RECIPE.change(baseline=True), overwrite=True)
    assert content(tmp_path) == before
    train_digits(tmp_path, overwrite=True)
    after = content(tmp_path)
    assert {k: v for k, v in before.items() if name in k}.items() <= after.items()


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
    with pytest.raises(ConfigError, match=r"run_dir must name a directory, got .*file"):
        train(tmp_path / "file", overwrite=True)


def test_every_other_setting_is_named_with_both_values(own: Any, digits: Any) -> None:
    config = replace(CONFIG, eps=0.2, mask=spatlib.Mask())
    training = replace(TRAINING, lr=1.0, seed=9)
    with pytest.raises(ConfigError, match="needs the settings and data of the run in") as refusal:
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


@pytest.mark.parametrize("what", ["model", "data"])
def test_what_was_ones_own_has_to_be_passed_again(what: str, own: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{what} of the run in .* pass it again"):
        train(own[1], resume=True, **{what: None})


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
