"""The code of README and of each page of docs/ runs as it stands, and does what they say.

Commands are read by the parsers that they are for, and not run.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import fields
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.distributed.run import parse_args

from spatlib import RECIPES, Mask, SPATConfig, cli

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def run(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run the python blocks of a page, in order, in one namespace."""
    torch.manual_seed(0)  # logits of a few classes look like probabilities now and then
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    ):
        exec(compile(block, f"{page.name} block {number}", "exec"), names)
        names.setdefault("first", names.get("result"))
    return names


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """That of the README; its first ``result`` is that of the digits.

    Twelve of the recipe's thirty epochs and three of its steps are enough for what is demanded.
    """
    with patch.dict(RECIPES, {"digits": RECIPES["digits"].change(epochs=12, steps=3)}):
        return run(ROOT / "README.md", {})


def migrating(names: dict[str, Any]) -> None:
    torch.manual_seed(0)
    hand = names["by_hand"](names["model"], names["x"], names["y"])
    torch.manual_seed(0)
    ours = names["spat_loss"](names["model"], names["x"], names["y"], names["pgd_at"])
    torch.testing.assert_close(ours, hand)
    assert len(names["losses"]) == 2


def own_loop(names: dict[str, Any]) -> None:
    assert names["loss"].isfinite()
    assert set(names["report"].metrics) == {"clean", "random_noise", "worst"}


def data(names: dict[str, Any]) -> None:
    assert names["result"].metrics["worst"] > 0.5  # of three classes that brightness tells apart
    assert "val_pgd10" in names["result"].history[-1]
    assert names["again"].report.count == 50


def evaluating(names: dict[str, Any]) -> None:
    assert set(names["report"].metrics) == {
        "clean",
        "pgd10",
        "margin10",
        "targeted10",
        "apgd10",
        "worst",
    }
    assert names["falling"] == sorted(names["falling"], reverse=True)
    assert names["falling"][-1] == 0


def auditing(names: dict[str, Any]) -> None:
    assert names["audit"].count == 90
    assert 0 <= names["audit"].l2 <= 0.01 * 48**0.5


def keras(names: dict[str, Any]) -> None:
    assert {"adv_accuracy", "val_adv_accuracy"} <= set(names["history"])
    assert names["loaded"].config == names["robust"].config
    assert 0 <= names["report"].metrics["pgd20"] <= names["report"].metrics["clean"] <= 1


def using(names: dict[str, Any]) -> None:
    assert torch.equal(names["again"](names["x"]), names["result"].model(names["x"]))
    assert names["run"].settings["optimizer"]


def index(names: dict[str, Any]) -> None:
    assert names["report"].metrics == names["result"].metrics


def several_gpus(names: dict[str, Any]) -> None:
    assert [row["epoch"] for row in names["result"].history] == [1]
    assert names["result"].report.count == 128


CHECKED = (auditing, data, evaluating, index, keras, migrating, own_loop, several_gpus, using)
CHECKS = {check.__name__.replace("_", "-"): check for check in CHECKED}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where some write
    if names := run(page, {}):
        CHECKS[page.stem](names)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_code_that_is_not_run_says_why(page: Path) -> None:
    fences = re.findall(r"^``` *([^\n]*)\n(.*?)^```$", page.read_text(), re.M | re.S)
    for info, block in fences:
        if page.stem == "examples":  # a program that tests/test_examples.py runs
            (path,) = re.findall(r'title="(examples/\w+\.py)"', info)
            assert block == f'--8<-- "{path}"\n'
            assert (ROOT / path).is_file()
        else:
            assert info in ("python", "console") or info.startswith('py title="Not run'), block


def read(command: str, *options: str) -> None:
    """Have the parser of a command read its options."""
    if command == "torchrun":
        launched = parse_args(options)
        assert (launched.module, launched.training_script) == (True, "spatlib")
        read("spatlib", *launched.training_script_args)
    elif command == "spatlib":
        few = {name: RECIPES[name] for name in ("digits", "mnist", *options) if name in RECIPES}
        with patch.dict(RECIPES, few, clear=True):  # each costs time
            assert cli.main(options) == 0
    elif command == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        (named,) = re.findall(r"\[(.*)\]", options[-1])
        assert options[0] == "install"
        assert set(named.split(",")) <= set(extras["optional-dependencies"])
    elif command == "python":
        assert options[0] == "-m"
        assert find_spec(options[1])
    else:
        assert command == "make"
        assert f"\n{options[0]}:" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_commands_have_options_that_there_are(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (cli.Train, cli.Evaluate, cli.Audit, cli.Show, cli.Recipes):
        monkeypatch.setattr(kind, "__call__", lambda self: None)
    text = page.read_text().replace("\\\n", "")
    blocks = "".join(re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S))
    for line in re.findall(r"^\$ (.*)", blocks, re.M):
        read(*shlex.split(line, comments=True))


def test_spat_on_the_digits_is_far_more_robust_than_ordinary_training(
    namespace: dict[str, Any],
) -> None:
    spat, standard = namespace["first"].metrics, namespace["first"].baselines["standard"].metrics
    assert spat["pgd20"] >= standard["pgd20"] + 0.40
    assert spat["clean"] >= standard["clean"] - 0.02


def test_the_other_examples_give_what_their_comments_say(namespace: dict[str, Any]) -> None:
    assert namespace["result"].measured_on == "test"
    assert set(namespace["report"].metrics) == {
        "clean",
        "apgd20",
        "corner",
        "pgd20",
        "margin20",
        "targeted20",
        "worst",
    }
    assert "targeted margin PGD-20 (2 targets)" in str(namespace["report"])
    assert namespace["mask"].shape == (8, 1, 4, 4)
    assert set(namespace["mask"].unique().tolist()) <= {0.5, 1.0}
    moved = (namespace["adversarial"] - namespace["x"][:8]).abs().max()
    assert 0 < moved <= 8 / 255 + 1e-7


def test_keras_example_was_measured(namespace: dict[str, Any]) -> None:
    metrics = namespace["keras_report"].metrics
    assert 0 <= metrics["pgd20"] <= metrics["clean"] <= 1
    history = namespace["robust"].history.history
    assert {"val_accuracy", "val_adv_accuracy", "loss", "adv_accuracy"} <= set(history)


def test_every_setting_is_on_the_page_of_settings() -> None:
    text = (ROOT / "docs" / "using.md").read_text()
    section = text.partition("## Settings\n")[2].partition("\n## ")[0]
    for field in (*fields(SPATConfig), *fields(Mask)):
        assert f"`{field.name}`" in section


def test_readme_has_at_most_900_words() -> None:
    assert len((ROOT / "README.md").read_text().split()) <= 900


def test_table_of_recipes_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "using.md").read_text()
    section = text.partition("## Recipes\n")[2].partition("\n## ")[0]
    rows = [
        line.strip("| ").replace("`", "").split(" | ")
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    expected = [
        [name, r.data or "your own", r.model or "your own", r.config.eps]
        + [str(number) for number in (r.config.steps, r.training.epochs, r.source)]
        for name, r in RECIPES.items()
    ]
    assert [[*row[:3], float(Fraction(row[3])), *row[4:]] for row in rows] == expected
