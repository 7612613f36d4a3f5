"""What the options of the command line mean, what is refused, and what the help says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import spatlib.cli
from spatlib import RECIPES, Mask, Recipe, SPATConfig, TrainConfig
from spatlib.cli import Evaluate, Train, main
from spatlib.options import named

from .test_cli import npz


class AskedError(Exception):
    """What spatlib.train was asked for."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    def train(model: Any, data: Any, **options: Any) -> None:
        raise AskedError(model, data, options)

    def ask(*arguments: str) -> tuple[Any, Any, Recipe]:
        with pytest.raises(AskedError) as told:
            main(("train", *arguments))
        model, data, options = told.value.args
        return model, data, options["recipe"]

    monkeypatch.setattr(spatlib, "train", train)
    return ask


@pytest.mark.parametrize(
    ("arguments", "mask"),
    [
        ("digits", None),
        ("digits --mask", Mask()),
        ("--mask.score rms --mask.keep 1/4", Mask(score="rms", keep=0.25)),
        ("mnist", Mask()),
        ("mnist --mask.classes 3", Mask(classes=3)),
        ("mnist --no-mask", None),
    ],
)
def test_a_mask_is_on_off_or_changed(arguments: str, mask: Mask | None, asked: Any) -> None:
    assert asked(*arguments.split())[2].config.mask == mask


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_choice_and_a_value_is_none(name: str, asked: Any) -> None:
    quiet = {each: recipe.change(progress=False) for each, recipe in RECIPES.items()}
    assert asked(name) == (None, None, quiet[name])
    for option in ("--run-dir", "--run_dir"):
        assert asked("--model", name, option, "cifar100") == (name, None, quiet["digits"])


def test_a_recipe_may_come_after_options(asked: Any) -> None:
    first = asked("mnist", "--run-dir", "q", "--eps", "1/8", "--no-mask")
    for line in ("--run-dir q --eps 1/8 --no-mask mnist", "--run-dir=q mnist --eps 1/8 --no-mask"):
        assert asked(*line.split()) == first
    assert asked("--overwrite", "mnist") == asked("mnist")


def test_the_digits_are_the_default_and_none_is_a_value(asked: Any) -> None:
    assert asked() == asked("digits")
    quiet = RECIPES["digits"].change(baseline=False, guard=False, progress=False)
    assert asked("--limit", "9", "--no-baseline", "--no-guard")[2] == quiet
    assert asked("mnist", "--step-size", "None")[2].config.step_size is None


def test_data_are_limited_and_may_be_a_file(tmp_path: Path, asked: Any) -> None:
    path = npz(tmp_path / "own.npz")
    _, data, recipe = asked("--data", str(path), "--eps", "0.15", "--limit", "7")
    assert len(data.train[0]) == 7
    assert data.source == {"name": str(path), "dir": None, "limit": 7}
    assert recipe.config == RECIPES["digits"].config
    folder = str(tmp_path)
    assert asked("--data-dir", folder)[1].source == {"name": "digits", "dir": folder, "limit": None}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("evaluate nowhere", ("RUN must hold a run", "nowhere without config.json")),
        (f"evaluate {__file__}", (f"RUN must name a directory, got '{__file__}'",)),
        ("audit nowhere --judge elsewhere", ("RUN must hold a run", "nowhere without")),
        ("show nowhere --count 101", ("--count must be at most 100", "got 101")),
        ("audit nowhere --judge elsewhere --shown 101", ("--shown must be at most 100",)),
        ("show nowhere --count 0", ("count must be an integer in [1, 2**63), got 0",)),
        ("show nowhere --seed -1", ("seed must be an integer in [0, 2**63), got -1",)),
        ("audit nowhere --judge elsewhere --examples 0", ("examples must be",)),
        ("train --eps 1e400", ("eps must be a number in (0, inf), got inf",)),
        ("train --seed 18446744073709551616", ("seed must be an integer in [0, 2**63)",)),
        ("show nowhere", ("RUN must hold a run", "nowhere without config.json")),
        ("train --backend jax", ("backend", "'torch'")),
        ("train --resume", ("--run-dir must name the run",)),
        ("train --run-dir=", ("--run-dir must name a directory, got ''",)),
        ("train --run-dir= --resume", ("--run-dir must name a directory, got ''",)),
        ("train --data nothing.npz --eps 0.1", ("'nothing.npz'",)),
        ("train --data nothing.npz", ("data must be digits, which", "pass --eps", "'nothing.npz'")),
        ("train --data mnist", ("data must be digits, which", "pass --eps", "'mnist'")),
        ("train mnist --data cifar10", ("data must be mnist, which", "pass --eps", "'cifar10'")),
        ("train --norm L2", ("norm must be Linf, which the recipe's eps is for", "--eps", "'L2'")),
        ("train --bounds -1 1", ("bounds must be (0.0, 1.0), which", "pass --eps", "(-1.0, 1.0)")),
        ("train --eps 8", ("eps must be", "8/255")),
        ("train --eps 8/0", ("eps must be a number in (0, inf), got '8/0'",)),
        ("train --lr much", ("lr must be a number in (0, inf), got 'much'",)),
        ("train --epochs 0", ("epochs must be",)),
        ("train --device there", ("--device must be one PyTorch finds, not 'there'",)),
        ("train --mask.keep 3/2", ("--mask.keep must be a number in (0, 1]",)),
        ("train mnist --no-mask --mask.keep 1/2", ("--no-mask", "keep")),
        ("train mnist --epochs 3 --eps-warmup 3", ("--eps-warmup must be below epochs (3)",)),
    ],
)
def test_bad_input_is_said_in_a_sentence(
    arguments: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments.split()) == 2
    # Some are found only when the training begins.
    printed = capsys.readouterr().err.removeprefix(
        "spatlib: the network will not be kept: pass --run-dir DIRECTORY to keep it\n"
    )
    assert printed.startswith("spatlib: ")
    assert printed.count("\n") == 1
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("train --epsilon 1", "--epsilon"),
        ("train --epochs many", "many"),
        ("train --norm L7", "L7"),
        ("train svhn", "cifar10-onecycle"),  # and all others that there are
        ("train --recipe digits", "--recipe"),
        ("evaluate", "RUN"),
        ("prove", "prove"),
    ],
)
def test_a_bad_option_is_refused_with_a_hint(
    arguments: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments.split())
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    assert "--help" in printed
    assert word in printed


def helped(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main((*arguments, "--help"))
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [("train",), ("train", "mnist")])
def test_every_setting_is_an_option_with_the_default_of_the_recipe(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    text = helped(capsys, *arguments)
    for kind, prefix in ((SPATConfig, ""), (TrainConfig, ""), (Mask, "mask.")):
        for name in kind.__dataclass_fields__:
            assert f"--{prefix}{name.replace('_', '-')} " in text.replace(",", " ")
    for name in ("model", "data", "data-dir", "limit", "backend", "run-dir", "resume", "overwrite"):
        assert f"--{name} " in text.replace(",", " ")
    assert "Radius, in the units of the inputs" in text
    recipe = RECIPES[arguments[-1] if len(arguments) > 1 else "digits"]
    assert f"0.5 in L2. (default: {recipe.config.eps:g})" in text
    assert f"Passes over the training data. (default: {recipe.training.epochs})" in text
    assert f"Learning rate (the peak of onecycle). (default: {recipe.training.lr:g})" in text
    for option, kind in {"loss": SPATConfig, "schedule": TrainConfig, "mask.score": Mask}.items():
        choices = get_args(kind.__annotations__[option.removeprefix("mask.")])
        assert f"--{option} {{{','.join(choices)}}}" in text


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", ["", "train", "evaluate", "audit", "show", "recipes"])
def test_nothing_is_wider_than_the_terminal(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    if command == "recipes":
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert main((command,)) == 0
    else:
        with pytest.raises(SystemExit):
            main((*command.split(), "--help"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "usage:" not in line]
    assert max(map(len, lines)) <= columns


def test_an_error_names_options_and_leaves_paths_and_other_words_alone() -> None:
    train = Train(settings={})
    text = "run_dir must be new, got /a/run_dir/b and 'data_dir': go on by resume=True, guard=False"
    assert named(text, train) == (
        "--run-dir must be new, got /a/run_dir/b and 'data_dir': go on by --resume, --no-guard"
    )
    assert named("keep must be, floor=1, eps_warmup and x must", train) == (
        "--mask.keep must be, floor=1, --eps-warmup and x must"
    )
    evaluate = Evaluate(run=Path("a"))
    text = "run_dir must hold a run; keep must be, worst_only=False, check_logits=False"
    assert named(text, evaluate) == (
        "run_dir must hold a run; --keep must be, --no-worst-only, check_logits=False"
    )


def test_help_names_the_recipes_and_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert all(f"• {name} " in helped(capsys, "train") for name in RECIPES)
    text = helped(capsys)
    for name in ("train", "evaluate", "audit", "show", "recipes"):
        assert f"• {name} " in text
    for option in ("--weights", "--attacks", "--restarts", "--eps", "--limit", "--data-dir"):
        assert f"{option} " in helped(capsys, "evaluate")


def test_there_is_one_parser_and_it_needs_no_framework() -> None:
    assert importlib.util.find_spec("spatlib.commands") is None
    assert "argparse" not in Path(spatlib.cli.__file__).read_text(encoding="utf-8")
    code = (
        "import sys, spatlib.cli; "
        "print({'torch', 'tensorflow', 'keras', 'matplotlib'}.intersection(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert done.stdout.strip() == "none"
