"""The command line, as a user runs it: in a process of its own, on the digits."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatlib import RECIPES, SPATConfig, TrainConfig, load_data
from spatlib.cli import main
from spatlib.runs import EVALUATION, RESULT, Run

from .running import edit

OPTIONS = "--epochs 2 --steps 1 --batch-size 128 --no-baseline --seed 3 --limit 600"
QUICK, JSON_NPZ = tuple(OPTIONS.split()), ("json", "npz")
BACKENDS = pytest.mark.parametrize("framework", ["torch", "tf"])


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "spatlib", *map(str, arguments)]
    return subprocess.Popen(
        command, text=True, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    )


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@BACKENDS
def test_train_evaluate_show(
    framework: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return main([str(argument) for argument in arguments]), *capsys.readouterr()

    directory = tmp_path / "run"
    options = ("--eps", "8/255", "--validation", "100", "--patience", "5")
    code, out, error = run(
        "train", "--backend", framework, "--run-dir", directory, *QUICK, *options
    )
    assert code == 0, error
    *rows, last = lines(out)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(0 <= row["val_pgd10"] <= row["val_clean"] <= 1 for row in rows)
    assert json.loads((directory / RESULT).read_bytes())["metrics"] == last["metrics"]
    config, training = Run(directory, resume=True).configs()
    assert config == SPATConfig(eps=8 / 255, steps=1)
    assert training == TrainConfig(
        epochs=2, batch_size=128, lr=0.05, seed=3, validation=100, patience=5, progress=False
    )

    code, out, error = run("evaluate", directory, "--attacks", "pgd", "--steps", "20")
    assert code == 0, error
    (report,) = lines(out)
    same = {k: last["metrics"][k] for k in ("clean", "pgd20")}
    assert report["metrics"] == same | {"worst": same["pgd20"]}
    assert report["count"] == 450
    assert len(report["per_class"]["pgd20"]) == 10
    low, high = report["interval"]["clean"]
    assert low < report["metrics"]["clean"] < high
    assert (report["measured_on"], report["seed"]) == ("test", 0)
    assert json.loads((directory / EVALUATION).read_bytes()) == report

    code, out, error = run("show", directory, "--count", "3", "--html")
    assert code == 0, error
    *pictures, page = [Path(line) for line in out.splitlines()]
    assert [picture.name for picture in pictures] == ["curves.png", "sheet.png"]
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert page == directory / "report.html"
    assert "PGD-20" in page.read_text()
    assert page.read_text().count("<table>") == 2  # after the training, and evaluate's

    quick = ("--attacks", "pgd", "--limit", "20", "--eps", "1/255", "--keep")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)  # capsys' own
    code, out, error = run("evaluate", directory, *quick)
    assert code == 0, error
    assert "PGD-20" in out
    assert out.splitlines()[-2:] == [str(directory / f"evaluation.{kind}") for kind in JSON_NPZ]
    facts = json.loads((directory / EVALUATION).read_bytes())
    with np.load(directory / "evaluation.npz", allow_pickle=False) as arrays:
        assert arrays["outcomes_pgd20"].mean() == facts["metrics"]["pgd20"]
        x_adv = arrays["x_adv_pgd20"]  # of one channel, first or last
        moved = np.abs(x_adv - load_data("digits").test[0][:20].reshape(x_adv.shape)).max()
    assert 0 < moved <= 1 / 255 + 1e-6
    assert (facts["count"], facts["threat"]["eps"]) == (20, 1 / 255)


def test_a_killed_run_is_resumed_by_its_directory_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    often = (*QUICK, "--epochs", "4", "--checkpoint-minutes", "0")
    assert main(("train", "--run-dir", str(whole), *often)) == 0, capsys.readouterr().err
    expected = capsys.readouterr().out
    for number in (signal.SIGKILL, signal.SIGINT):
        options = ("--resume",) if killed.exists() else often
        process = start("train", "--run-dir", killed, *options)
        before = time.time()
        while not any(p.stat().st_mtime > before for p in killed.glob("checkpoint.safetensors")):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == {2: 130, 9: -9}[number]
    resume = ("train", "--run-dir", str(killed), "--resume")
    assert main((*resume, "--steps", "2", "--lr", "1")) == 2
    error = capsys.readouterr().err
    assert "config.steps = 2 instead of 1, training.lr = 1.0 instead of 0.05" in error
    assert "leave them out" in error
    assert main((*resume, "--device", "cpu", "--no-progress")) == 0, capsys.readouterr().err
    assert lines(capsys.readouterr().out)[-1] == lines(expected)[-1]
    name = "last.safetensors"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert len(Run(killed, resume=True).history()) == 4


def npz(path: Path) -> Path:
    (x, y), _ = (part := load_data("digits", limit=60)).train, part.test
    np.savez(path, x=x, y=y)
    return path


def test_one_setting_leaves_all_others_of_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None
) -> None:
    changed = "--eps 1/8 --steps 1 --epochs 6 --validation 20 --batch-size 40 --model small_cnn"
    where = ("--data", str(npz(tmp_path / "own.npz")), "--run-dir", str(tmp_path / "run"))
    assert main(("train", "mnist", *where, *changed.split())) == 0, capsys.readouterr().err
    written = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    recipe = RECIPES["mnist"].change(
        eps=0.125, steps=1, epochs=6, validation=20, batch_size=40, progress=False
    )
    assert SPATConfig.from_dict(written["config"]) == recipe.config
    assert TrainConfig(**written["training"]) == recipe.training
    kept = {"eps_warmup": 5, "lr": 0.01, "weight_decay": 0, "schedule": "piecewise"}
    assert kept.items() <= written["training"].items()
    assert (written["config"]["step_size"], written["config"]["smoothing"]) == (0.01, 0)
    assert (written["architecture"]["name"], written["data"]["name"]) == ("small_cnn", where[1])


def test_a_run_is_evaluated_on_its_data_wherever_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None
) -> None:
    run, path = tmp_path / "run", npz(tmp_path / "own.npz")
    options = ("--data", str(path), "--eps", "0.15", *QUICK, "--limit", "50")
    assert main(("train", "--run-dir", str(run), *options)) == 0
    capsys.readouterr()
    assert main(("evaluate", str(run), "--attacks", "pgd")) == 0
    (report,) = lines(capsys.readouterr().out)
    assert (report["count"], report["measured_on"]) == (50, "training")
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):  # with files that are not MNIST's, which the error names
        folder.mkdir()
        (folder / "t10k-labels-idx1-ubyte").write_bytes(b"other")
    edit(run, lambda s: s.update(data={"name": "mnist", "dir": str(old), "limit": None}))
    for given, folder in (((), old), (("--data-dir", str(new)), new)):
        assert main(("evaluate", str(run), *given)) == 2
        assert str(folder) in capsys.readouterr().err


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("recipes",)) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RECIPES)


def test_a_run_of_another_recipe_is_resumed_by_its_directory_or_by_its_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None
) -> None:
    options = "--steps 1 --epochs 1 --validation 20 --batch-size 40 --no-mask"
    where = ("--run-dir", str(tmp_path / "run"))
    x, y = load_data("digits", limit=60).train
    np.savez(path := tmp_path / "own.npz", x=x.repeat(2, 1).repeat(2, 2), y=y)
    data = ("--data", str(path), "--eps", "0.3", "--limit", "50")
    assert main(("train", "mnist", *where, *data, *options.split())) == 0
    expected = lines(capsys.readouterr().out)[-1]
    for again in (("train",), ("train", "mnist", *options.split())):
        assert main((*again, *where, "--resume")) == 0, capsys.readouterr().err
        assert lines(capsys.readouterr().out) == [expected]
    for other, words in {
        ("--model", "small_cnn"): "architecture.name = 'small_cnn' instead of 'mnist_cnn'",
        ("--limit", "40"): "data.limit = 40 instead of 50",
        ("--mask.keep", "1/4"): "config.mask = {'score': 'min', 'keep': 0.25",
    }.items():
        assert main(("train", *where, "--resume", *other)) == 2
        assert words in capsys.readouterr().err
    assert main(("train", "cifar10", "--validation", "20", *where, "--resume")) == 2
    assert "architecture.name = 'preact_resnet18' instead of" in capsys.readouterr().err


def test_an_existing_run_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None
) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    for option in ((), ("--overwrite",), ("--resume",)):
        assert main(("train", "--run-dir", str(tmp_path), *option)) == 2
        printed = capsys.readouterr().err
        assert f"{tmp_path}, which has config.json, must hold a run" in printed
        assert "or a config.json of another program" in printed
        assert "choose another --run-dir" in printed
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == "{}"
    run = tmp_path / "run"
    train = ("train", *QUICK, "--limit", "60", "--epochs", "1", "--run-dir", str(run))
    assert main((*train, "--resume")) == 0  # there is none, so one begins
    before = (run / "last.safetensors").read_bytes()
    capsys.readouterr()
    assert main(train) == 2
    printed = capsys.readouterr().err
    assert f"{run} with a run" in printed
    assert "--resume, or delete it by --overwrite" in printed
    assert (run / "last.safetensors").read_bytes() == before


def test_a_terminal_shows_the_bar_and_a_table() -> None:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 120))
    process = start(
        "train", *QUICK, "--baseline", "--limit", "200", stdout=follower, stderr=follower
    )
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
    assert "standard 1/3: 100%" in text
    assert "SPAT 3/3: 100%" in text
    assert "measuring, Linf eps 0.15:   0%" in text
    assert "the network will not be kept: pass --run-dir DIRECTORY to keep it" in text
    assert "step/s" in text
    assert "loss=" in text
    assert "adv=" in text
    assert "CW margin PGD-20" in text
    assert "{" not in text
