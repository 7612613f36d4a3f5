"""The audit: its numbers by hand, in both frameworks and mixed, and the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spatlib
from spatlib import BackendError, DataError
from spatlib.audit import measure, similarity
from spatlib.cli import main

from .landscapes import ENGINES, model, ridges, rugged


def logits(*rows: tuple[float, ...]) -> np.ndarray:
    """Of these probabilities."""
    return np.log(np.array(rows)) + 3.0


CLEAN = logits((0.6, 0.3, 0.1), (0.2, 0.7, 0.1), (0.5, 0.3, 0.2), (0.1, 0.1, 0.8))
MOVED = logits((0.2, 0.3, 0.5), (0.3, 0.6, 0.1), (0.1, 0.1, 0.8), (0.9, 0.05, 0.05))
Y = np.array([0, 1, 1, 2])  # the judge does not know the third


def odds(p: float) -> float:
    return math.log(p / (1 - p))


def entropy(*p: float) -> float:
    return -sum(v * math.log(v) for v in p)


def test_measures_are_their_formulas_on_the_examples_that_the_judge_knows() -> None:
    report = measure(CLEAN, MOVED, Y, np.array([1.0, 2.0, 50.0, 3.0]), np.array([0.5, 1, 9, 0]))
    assert (report.count, report.known, report.l2, report.ssim) == (4, 3, 2.0, 0.5)
    assert report.drift == pytest.approx(2 / 3)
    lost = [odds(0.6) - odds(0.2), odds(0.7) - odds(0.6), odds(0.8) - odds(0.05)]
    assert report.evidence_lost == pytest.approx(np.mean(lost))
    gains = [odds(0.5) - odds(0.1), odds(0.3) - odds(0.2), odds(0.9) - odds(0.1)]
    assert report.rival_gain == pytest.approx(np.mean(gains))
    after = [entropy(0.2, 0.3, 0.5), entropy(0.3, 0.6, 0.1), entropy(0.9, 0.05, 0.05)]
    before = [entropy(0.6, 0.3, 0.1), entropy(0.2, 0.7, 0.1), entropy(0.1, 0.1, 0.8)]
    assert report.entropy == pytest.approx(np.mean(after))
    assert report.entropy_gain == pytest.approx(np.mean(after) - np.mean(before))
    assert report.read_as == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert report.drifted == (3, 0)  # read with 0.9 and with 0.5
    assert json.loads(json.dumps(report.as_json()))["drifted"] == [3, 0]


def test_evidence_of_certain_judges_is_finite_and_of_none_there_is_nothing() -> None:
    z = np.array([[1e4, 0.0, -1e4]])
    report = measure(z, -z, np.array([0]), np.ones(1))
    assert report.evidence_lost == pytest.approx(1e4 + 2e4)
    assert math.isfinite(report.rival_gain)
    nothing = measure(z, z, np.array([1]), np.ones(1))
    assert nothing.known == 0
    assert math.isnan(nothing.drift)
    assert nothing.as_json()["drift"] is None


@pytest.mark.parametrize("name", ENGINES)
def test_judges_of_all_engines_say_the_same_of_arrays_and_tensors(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(20, 16)).astype(np.float32)
    x_adv = np.clip(x + rng.uniform(-0.2, 0.2, x.shape), 0, 1).astype(np.float32)
    judges = {each: model(each, ridges) for each in ENGINES}
    import torch

    y = judges["torch"](torch.as_tensor(x)).numpy().argmax(axis=1)
    report = spatlib.audit(judges[name], x, x_adv, y, batch_size=7)
    same = spatlib.audit(judges["torch"], *map(torch.as_tensor, (x, x_adv, y)))
    assert report.known == 20
    assert 0 < report.drift < 1
    assert (report.read_as, report.drifted) == (same.read_as, same.drifted)
    assert report.evidence_lost == pytest.approx(same.evidence_lost, rel=1e-4)
    assert report.l2 == pytest.approx(np.linalg.norm(x_adv - x, axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    "bad", [{"x_adv": np.zeros((2, 15))}, {"y": np.zeros(3, int)}, {"y": np.full(2, 4)}], ids=str
)
def test_what_does_not_fit_is_refused(bad: dict[str, Any]) -> None:
    arguments = {"x": np.zeros((2, 16)), "x_adv": np.zeros((2, 16)), "y": np.zeros(2, int)} | bad
    arguments = {k: v.astype(np.float32) if v.ndim > 1 else v for k, v in arguments.items()}
    with pytest.raises(DataError, match=r"^(x_adv|y) must .*, got .*: "):
        spatlib.audit(rugged("torch"), **arguments)


def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(BackendError, match=r"spatlib\[audit\]"):
        similarity(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), (0, 1), False)


def test_similarity_is_one_of_equal_images_and_less_of_others_in_both_layouts() -> None:
    x = np.random.default_rng(0).uniform(size=(2, 8, 8, 3))
    other = np.clip(x + 0.2, 0, 1)
    assert similarity(x, x, (0, 1), False) == pytest.approx([1, 1])
    last = similarity(x, other, (0, 1), False)
    assert (last < 0.99).all()
    first = similarity(np.moveaxis(x, -1, 1), np.moveaxis(other, -1, 1), (0, 1), True)
    np.testing.assert_array_equal(first, last)
    with pytest.raises(DataError, match=r"x must hold images.*leave ssim out"):
        similarity(x[:, 0, 0], x[:, 0, 0], (0, 1), False)


def test_the_command_compares_the_training_attack_with_pgd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, judge = tmp_path / "target", tmp_path / "judge"
    for directory, framework, seed in ((target, "torch", 0), (judge, "tf", 1)):
        code = main(
            [
                "train",
                "digits",
                "--backend",
                framework,
                "--run-dir",
                str(directory),
                "--seed",
                str(seed),
                "--epochs",
                "2",
                "--steps",
                "1",
                "--mask",
                "--no-baseline",
            ]
        )
        assert code == 0, capsys.readouterr().err
    capsys.readouterr()
    arguments = [
        "audit",
        str(target),
        "--judge",
        str(judge),
        "--examples",
        "100",
        "--eps",
        "0.3",
        "--steps",
        "5",
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((target / "audit.json").read_text(encoding="utf-8"))
    assert (printed["eps"], printed["steps"]) == (0.3, 5)
    assert list(printed["attacks"]) == ["training", "pgd"]
    for facts in printed["attacks"].values():
        assert facts["count"] == 100
        assert 50 < facts["known"] == sum(map(sum, facts["read_as"])) <= 100
        assert 0 < facts["drift"] < 1
        assert 0 < facts["success"] <= 1
        assert len(facts["drifted"]) == round(facts["drift"] * facts["known"])
    # Half of the pixels have half of eps under the training attack's mask.
    assert printed["attacks"]["training"]["l2"] < 0.9 * printed["attacks"]["pgd"]["l2"]
    assert (target / "audit.png").read_bytes().startswith(b"\x89PNG")
    assert main(["audit", str(target), "--judge", str(target)]) == 2
    assert f"judge is the run itself, {target}: train another" in capsys.readouterr().err
    settings = judge / "config.json"
    settings.write_text(
        settings.read_text(encoding="utf-8").replace('"digits"', '"mnist"'), encoding="utf-8"
    )
    assert main(["audit", str(target), "--judge", str(judge)]) == 2
    assert "train a judge on the same data" in capsys.readouterr().err
