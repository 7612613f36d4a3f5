"""A network and data of one's own on the command line, by factories that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import spatlib
from spatlib.cli import main
from spatlib.runs import Run

TORCH = """
import numpy as np
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 8), nn.ReLU(), nn.Linear(8, 3))

def pictures(count=24):
    rng = np.random.default_rng(0)
    return rng.uniform(size=(count, 2, 3, 3)).astype(np.float32), rng.integers(3, size=count)

def parts():
    return pictures(), pictures(12)

class Items(torch.utils.data.Dataset):
    def __init__(self, moves=True):
        (self.x, self.y), self.moves = pictures(), moves
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        return torch.as_tensor(self.x[index]), int(self.y[index])

class ImageNet(Items):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.x = rng.integers(256, size=(20, 3, 224, 224), dtype=np.uint8)
        self.y = rng.integers(1000, size=20)

def small():
    convolution = nn.Conv2d(3, 4, 7, stride=16)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000)
    return nn.Sequential(convolution, nn.ReLU(), *pooled)

number = 3
nothing = lambda: None
fails = lambda: 1 / 0
"""
KERAS = """
import keras

from factories import pictures as first

def network():
    inner = [keras.layers.Flatten(), keras.layers.Dense(3)]
    return keras.Sequential([keras.Input((3, 3, 2)), *inner])

def pictures():
    x, y = first()
    return x.transpose(0, 2, 3, 1), y
"""
SETTINGS = "--eps 0.1 --steps 1 --epochs 1 --batch-size 8 --no-baseline"


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_pictures: None) -> None:
    """Modules with factories, in the directory where the command is called."""
    (tmp_path / "factories.py").write_text(TORCH, encoding="utf-8")
    (tmp_path / "keras_factories.py").write_text(KERAS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def called(capsys: pytest.CaptureFixture[str], line: str) -> list[dict[str, Any]]:
    code, (out, error) = main(line.split()), capsys.readouterr()
    assert code == 0, error
    return [json.loads(row) for row in out.splitlines() if row.startswith("{")]


def refused(capsys: pytest.CaptureFixture[str], line: str, *words: str) -> None:
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(word in error for word in words), error


def test_ones_own_network_and_data_have_the_whole_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = "--model factories:network --data factories:parts"
    for run, seed in (("a", 0), ("b", 1), ("c", 0)):
        *_, last = called(capsys, f"train --run-dir {run} --seed {seed} {own} {SETTINGS}")
    assert last["measured_on"] == "test"
    weights = [Path(run, "last.safetensors").read_bytes() for run in "abc"]
    assert weights[0] == weights[2] != weights[1]  # the seed is that of a factory too
    (report,) = called(capsys, f"evaluate a {own} --attacks pgd")
    assert (report["count"], report["metrics"]["clean"]) == (12, last["metrics"]["clean"])
    (report,) = called(capsys, f"evaluate a {own} --attacks pgd --limit 5")
    assert report["count"] == 5
    judge = "--judge b --judge-model factories:network"
    (facts,) = called(capsys, f"audit a {judge} {own} --shown 0")
    assert facts["attacks"]["pgd"]["count"] == 12
    called(capsys, f"show a {own}")
    again = called(capsys, f"train --run-dir a --resume --epochs 2 {own}")
    assert again[0]["epoch"] == 2  # trained on, by the settings of the run


def test_it_is_asked_for_again_and_never_imported_by_a_file(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model, data = "--model factories:network", "--data factories:pictures"
    called(capsys, f"train --run-dir a {model} {data} {SETTINGS}")
    refused(capsys, f"train --run-dir a --resume {data}", "model of the run in", "pass it again")
    refused(capsys, f"train --run-dir a --resume {model}", "data of the run in", "pass it again")
    for command in ("evaluate a", "show a", "audit a --judge b"):
        refused(capsys, f"{command} {data}", "model must be given for the run in", "your own")
        refused(capsys, f"{command} {model}", "data must be given for the run in", "your own")
    refused(capsys, f"evaluate a {data} --model factories:pictures", "model must be a torch")
    refused(capsys, f"evaluate a {data} --model factories", "--model must name a factory, package")
    judged = f"audit a {model} {data} --judge"
    refused(capsys, f"{judged} nowhere", "--judge must hold a run")
    called(capsys, f"train --run-dir b {model} {data} {SETTINGS}")
    refused(capsys, f"{judged} b", "--judge-model must be given for the run in")
    refused(capsys, f"{judged} b --judge-model factories", "--judge-model must name a factory")
    refused(capsys, f"evaluate a {data} --model keras_factories:network", "the 2 arrays of this")


def test_a_data_set_of_items_is_evaluated_and_drawn(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = "--model factories:network --data factories:Items"
    called(capsys, f"train --run-dir a {own} {SETTINGS}")
    (report,) = called(capsys, f"evaluate a {own} --attacks pgd")
    assert report["count"] == 24
    refused(capsys, f"evaluate a {own} --limit 3", "limit must be left out for data in batches")
    Path("a", "sheet.png").unlink()  # of the training
    called(capsys, f"show a {own}")
    assert Path("a", "sheet.png").exists()


def test_the_recipe_of_imagenet_is_rehearsed(capsys: pytest.CaptureFixture[str]) -> None:
    own = "--model factories:small --data factories:ImageNet"
    few = "--batch-size 2 --epochs 2 --num-workers 1 --bounds 0 1"
    rows = called(capsys, f"train imagenet --run-dir a {own} {few}")
    assert [row["lr"] for row in rows[:2]] == pytest.approx([0.0578, 0.0006], abs=1e-4)
    assert all(row["loss"] < 20 for row in rows[:2])
    config, training = Run("a", resume=True).configs()
    assert config == spatlib.RECIPES["imagenet"].config
    assert (training.schedule, training.weight_decay) == ("cosine", 1e-4)
    refused(capsys, "train imagenet --run-dir b", "model must be a network that returns logits")
    refused(
        capsys,
        "train imagenet --run-dir b --model factories:small",
        "data must be (x, y)",
        "NoneType",
    )


def test_factories_of_keras(capsys: pytest.CaptureFixture[str]) -> None:
    own = "--model keras_factories:network --data keras_factories:pictures"
    *_, last = called(capsys, f"train --backend tf --run-dir a {own} {SETTINGS}")
    (report,) = called(capsys, f"evaluate a {own} --attacks pgd")
    assert report["metrics"]["pgd20"] == last["metrics"]["pgd20"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--model nowhere:network", ("nowhere:network must be a factory", "ModuleNotFoundError")),
        ("--model factories:nowhere", ("factories:nowhere must be a factory", "AttributeError")),
        ("--model factories:number", ("factories:number must be a factory, to call", "got 3")),
        ("--model factories:nothing", ("--model factories:nothing must return", "got None")),
        ("--model factories:fails", ("factories:fails must return", "ZeroDivisionError: divis")),
        ("--model factories:pictures", ("model must be",)),
        ("--data factories:nothing", ("--data factories:nothing must return", "got None")),
        ("--data factories:fails", ("factories:fails must return", "ZeroDivisionError: divis")),
        ("--data factories:dict", ("factories:dict must be a factory", "AttributeError")),
        ("--data builtins:object", ("data must be (x, y)", "got object")),
        ("--data factories:pictures --limit 3", ("--data-dir or --limit", "['limit']")),
    ],
)
def test_a_bad_factory_is_refused_before_anything_is_written(
    given: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, f"train --run-dir new {given} {SETTINGS}", *words)
    assert not Path("new").exists()


def test_a_training_begins_with_the_weights_of_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = "--model factories:network --data factories:pictures"
    called(capsys, f"train --run-dir a {own} {SETTINGS}")
    import factories  # type: ignore[import-not-found]

    model, run = spatlib.load_model("a", model=factories.network())
    before = [p.detach().clone() for p in model.parameters()]
    config, slow = spatlib.SPATConfig(eps=0.1), spatlib.TrainConfig(epochs=1, lr=1e-9)
    result = spatlib.train(model, factories.pictures(), config=config, training=slow)
    assert result.model is model
    for ours, first in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(ours.detach(), first)
    assert run.history()[-1]["epoch"] == 1
