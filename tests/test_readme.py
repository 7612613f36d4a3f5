"""The code of README and pages runs as it stands, and does what they say."""

from __future__ import annotations

import re
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from spatlib import RECIPES, Mask, SPATConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def namespace() -> dict[str, Any]:
    """All python blocks of the README, in order, in one namespace; ``digits`` is its first.

    Twelve of the recipe's thirty epochs and half of its steps are enough for what is demanded.
    """
    names: dict[str, Any] = {}
    short = RECIPES["digits"].change(epochs=12, steps=5)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    for number, block in enumerate(blocks):
        with patch.dict(RECIPES, {"digits": short}):
            exec(compile(block, f"README block {number}", "exec"), names)
        names.setdefault("digits", names["result"])
    return names


@pytest.mark.parametrize("page", ["migrating", "own-loop", "using"])
def test_the_code_of_a_page_runs(page: str) -> None:
    names: dict[str, Any] = {}
    text = (ROOT / "docs" / f"{page}.md").read_text()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)):
        exec(compile(block, f"{page} block {number}", "exec"), names)
    if page == "using":
        assert names["audit"].count == 9
        assert 0 <= names["audit"].l2 <= 0.01 * 48**0.5
        return
    assert names["loss"].isfinite()
    if page == "migrating":
        torch.manual_seed(0)
        hand = names["by_hand"](names["model"], names["x"], names["y"])
        torch.manual_seed(0)
        ours = names["spat_loss"](names["model"], names["x"], names["y"], names["pgd_at"])
        torch.testing.assert_close(ours, hand)
        assert len(names["losses"]) == 2
        assert "adv_accuracy" in names["history"]
    else:
        assert set(names["report"].metrics) == {"clean", "random_noise", "worst"}


def test_spat_on_the_digits_is_far_more_robust_than_ordinary_training(
    namespace: dict[str, Any],
) -> None:
    spat, standard = namespace["digits"].metrics, namespace["digits"].baseline.metrics
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
