"""The command line, as a user runs it: in a process of its own, on the digits."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatlib import RECIPES, Report, SPATConfig, TrainConfig, plots
from spatlib.cli import main
from spatlib.run import EVALUATION, Run

QUICK = (
    "--epochs",
    "2",
    "--steps",
    "1",
    "--batch-size",
    "128",
    "--no-baseline",
    "--seed",
    "3",
    "--examples",
    "600",
    "--test-examples",
    "50",
)
BACKENDS = pytest.mark.parametrize("framework", ["torch", "tf"])


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "spatlib", *map(str, arguments)]
    return subprocess.Popen(
        command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    )


def run(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, error = process.communicate(timeout=300)
    return process.returncode, out, error


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@BACKENDS
def test_train_evaluate_show_compare(
    framework: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    directory = tmp_path / "run"
    code, out, error = run(
        "train",
        "--backend",
        framework,
        "--run-dir",
        directory,
        *QUICK,
        "--eps",
        "8/255",
        "--validation",
        "100",
        "--patience",
        "5",
    )
    assert code == 0, error
    *rows, last = lines(out)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= row["val_pgd10"] <= row["val_clean"] <= 1 for row in rows)
    config, training = Run(directory, resume=True).configs()
    assert config == SPATConfig(eps=8 / 255, steps=1)
    assert training == TrainConfig(
        epochs=2,
        batch_size=128,
        lr=0.05,
        seed=3,
        validation=100,
        patience=5,
        progress=False,
        examples=600,
        test_examples=50,
    )

    code, _, error = run("compare", directory)
    assert code == 2
    assert "spatlib evaluate" in error

    code, out, error = run("evaluate", directory, "--attacks", "pgd", "--steps", "20")
    assert code == 0, error
    (report,) = lines(out)
    assert report["metrics"] == {k: last["metrics"][k] for k in ("clean", "pgd20")}
    assert report["count"] == 50
    assert len(report["per_class"]["pgd20"]) == 10
    low, high = report["interval"]["clean"]
    assert low < report["metrics"]["clean"] < high
    again = json.loads(json.dumps(Report.from_json(report).as_json()))
    assert {k: report[k] for k in again} == again

    code, out, error = run("show", directory, "--count", "3")
    assert code == 0, error
    pictures = [Path(line) for line in out.splitlines()]
    assert [picture.name for picture in pictures] == ["curves.png", "sheet.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)

    code, out, error = run("compare", directory, directory)
    assert code == 0, error
    facts = {k: v for k, v in report.items() if k not in ("weights", "seed", "measured_on")}
    assert json.loads(out) == {str(directory): facts}
    assert (report["measured_on"], report["seed"]) == ("test", 0)

    shutil.copytree(directory, other := tmp_path / "other")
    (other / EVALUATION).write_text(json.dumps({**report, "count": 49}), encoding="utf-8")
    code, _, error = run("compare", directory, other)
    assert code == 2
    assert "measured alike" in error


def test_the_sheet_has_a_column_for_the_mask_if_there_is_one() -> None:
    def width(mask: float) -> int:
        images = {name: np.zeros((2, 4, 4, 1)) for name in ("x", "x_adv")}
        shown = {**images, "mask": np.full((2, 4, 4, 1), mask)}
        labels = {name: np.zeros(2, int) for name in ("y", "clean", "adversarial")}
        return int.from_bytes(plots.sheet(shown | labels, (0, 1))[16:20], "big")  # of a PNG

    assert width(0.5) / width(1.0) == pytest.approx(4 / 3, rel=0.01)


def test_a_killed_run_is_resumed_by_its_directory_alone(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    often = (*QUICK, "--epochs", "4", "--checkpoint-minutes", "0")
    code, expected, error = run("train", "--run-dir", whole, *often)
    assert code == 0, error
    for number in (signal.SIGKILL, signal.SIGINT):
        resume = ("--resume",) if killed.exists() else often
        process = start("train", "--run-dir", killed, *resume)
        before = time.time()
        while not any(p.stat().st_mtime > before for p in killed.glob("checkpoint.safetensors")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == {2: 130, 9: -9}[number]
    code, out, error = run("train", "--run-dir", killed, "--resume")
    assert code == 0, error
    assert lines(out)[-1] == lines(expected)[-1]
    name = "last.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert len(Run(killed, resume=True).history()) == 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("train", "--recipe", "imagenet"), "'cifar10-wrn'"),
        (("evaluate", "nowhere"), "nowhere"),
        (("train", "--backend", "jax"), "'torch'"),
        (("train", "--resume"), "run_dir"),
        (("train", "--data", "nothing.npz"), "nothing.npz"),
        (("train", "--run-dir", "nowhere", "--resume"), "nowhere holds no run"),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    arguments: tuple[str, ...], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("spatlib: ")
    assert word in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--eps", "8"),
        ("train", "--eps", "8/0"),
        ("train", "--epsilon", "1"),
        ("train", "--epochs", "0"),
        ("evaluate",),
        ("prove",),
    ],
)
def test_a_bad_option_is_refused_with_a_hint(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "--help" in capsys.readouterr().err


def test_every_setting_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(("train", "--help"))
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for kind in (SPATConfig, TrainConfig):
        for name in kind.__dataclass_fields__:
            assert f"--{name.replace('_', '-')}" in text
    assert "Radius of the perturbation" in text


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("recipes",)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


def test_an_existing_run_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert main(("train", "--run-dir", str(tmp_path))) == 2
    assert "overwrite" in capsys.readouterr().err


def test_a_terminal_shows_the_bar_and_a_table() -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 120))
    process = start("train", *QUICK, "--test-examples", "50", stdout=follower, stderr=follower)
    os.close(follower)
    shown = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    assert process.wait(timeout=60) == 0
    text = shown.decode()
    assert "SPAT: 100%" in text
    assert "step/s" in text
    assert "loss=" in text
    assert "adv_accuracy=" in text
    assert "margin PGD-20 (CW)" in text
    assert "{" not in text
