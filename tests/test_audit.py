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
from spatlib.cli import main

from .landscapes import ENGINES, model, ridges, rugged
from .running import edit


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


def read(clean: np.ndarray, moved: np.ndarray, y: np.ndarray) -> spatlib.Audit:
    """The audit by a judge whose logits are its inputs."""
    return spatlib.audit(model("torch", lambda ops, x, array: x), clean, moved, y)


def test_measures_are_their_formulas_on_the_examples_that_the_judge_knows() -> None:
    report = read(CLEAN, MOVED, Y)
    assert (report.count, report.known, report.ssim) == (4, 3, None)
    assert report.drift == pytest.approx(2 / 3)
    lost = [odds(0.6) - odds(0.2), odds(0.7) - odds(0.6), odds(0.8) - odds(0.05)]
    assert report.evidence_lost == pytest.approx(np.mean(lost))
    gains = [odds(0.5) - odds(0.1), odds(0.3) - odds(0.2), odds(0.9) - odds(0.1)]
    assert report.rival_gain == pytest.approx(np.mean(gains))
    after = [entropy(0.2, 0.3, 0.5), entropy(0.3, 0.6, 0.1), entropy(0.9, 0.05, 0.05)]
    before = [entropy(0.6, 0.3, 0.1), entropy(0.2, 0.7, 0.1), entropy(0.1, 0.1, 0.8)]
    assert report.entropy == pytest.approx(np.mean(after))
    assert report.entropy_gain == pytest.approx(np.mean(after) - np.mean(before))
    assert report.l2 == pytest.approx(np.linalg.norm(MOVED - CLEAN, axis=1)[[0, 1, 3]].mean())
    assert report.read_as == ((0, 0, 1), (0, 1, 0), (1, 0, 0))
    assert report.drifted == (3, 0)  # read with 0.9 and with 0.5
    assert json.loads(json.dumps(report.as_json()))["drifted"] == [3, 0]


def test_evidence_of_certain_judges_is_finite_and_of_none_there_is_nothing() -> None:
    z = np.array([[1e4, 0.0, -1e4]])
    report = read(z, -z, np.array([0]))
    assert report.evidence_lost == pytest.approx(1e4 + 2e4)
    assert math.isfinite(report.rival_gain)
    nothing = read(z, z, np.array([1]))
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
    leaf = torch.as_tensor(x).requires_grad_()  # as it is after an attack of one's own
    same = spatlib.audit(judges["torch"], leaf, *map(torch.as_tensor, (x_adv, y)))
    assert report.known == 20
    assert 0 < report.drift < 1
    assert (report.read_as, report.drifted) == (same.read_as, same.drifted)
    assert report.evidence_lost == pytest.approx(same.evidence_lost, rel=1e-4)
    assert report.l2 == pytest.approx(np.linalg.norm(x_adv - x, axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    "bad",
    [
        {"x_adv": np.zeros((2, 15))},
        {"x_adv": np.full((2, 16), np.nan)},
        {"x_adv": np.full((2, 16), -np.inf)},
        {"y": np.zeros(3, int)},
        {"y": np.full(2, 4)},
        {"y": np.eye(4)[:2]},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(bad: dict[str, Any]) -> None:
    arguments = {"x": np.zeros((2, 16)), "x_adv": np.zeros((2, 16)), "y": np.zeros(2, int)} | bad
    arguments = {k: v.astype(np.float32) if v.ndim > 1 else v for k, v in arguments.items()}
    with pytest.raises(DataError, match=r"^(x_adv|y) must .*, got .*: "):
        spatlib.audit(rugged("torch"), **arguments)


IMAGES = np.random.default_rng(0).uniform(0.1, 1, size=(3, 8, 8, 3)).astype(np.float32)
BRIGHTER = np.clip(IMAGES + np.float32([0.2, 0.1, 0.4])[:, None, None, None], 0, 1)


def similar(x: np.ndarray, x_adv: np.ndarray, y: Any = (0, 0, 0), name: str = "tf") -> Any:
    """The structural similarity, for a judge that reads everything as class 0."""

    def bright(ops: Any, x: Any, array: Any) -> Any:
        return ops.sum(x, axis=tuple(range(1, len(x.shape))))[:, None] * array([[1.0, -1.0]])

    return spatlib.audit(model(name, bright), x, x_adv, np.array(y), ssim=True).ssim


def test_a_missing_scikit_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(BackendError, match=r"skimage.*run pip install scikit-image"):
        similar(IMAGES, IMAGES)


def test_similarity_is_one_of_equal_images_and_less_of_others_in_both_layouts() -> None:
    assert similar(IMAGES, IMAGES) == pytest.approx(1)
    last = similar(IMAGES, BRIGHTER)
    assert last < 0.99
    first = similar(*(np.moveaxis(x, -1, 1) for x in (IMAGES, BRIGHTER)), name="torch")
    assert first == last
    with pytest.raises(DataError, match=r"x must hold images.*leave ssim out"):
        similar(IMAGES[:, 0, 0], BRIGHTER[:, 0, 0])


def test_similarity_is_the_mean_over_the_examples_that_the_judge_knows() -> None:
    each = [
        similar(x[None], x_adv[None], y=(0,)) for x, x_adv in zip(IMAGES, BRIGHTER, strict=True)
    ]
    assert len(set(each)) == 3
    assert similar(IMAGES, BRIGHTER) == pytest.approx(np.mean(each))
    assert similar(IMAGES, BRIGHTER, y=(0, 1, 0)) == pytest.approx((each[0] + each[2]) / 2)


def test_the_command_compares_the_training_attack_with_pgd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], without_pictures: None, one_attack: None
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
    assert main([*arguments, "--examples", "9", "--shown", "0"]) == 0
    assert not (target / "audit.png").exists()  # which would be of another audit
    assert main(["audit", str(target), "--judge", str(target)]) == 2
    assert f"judge is the run itself, {target}: train another" in capsys.readouterr().err
    edit(judge, lambda settings: settings["data"].update(name="mnist"))
    assert main(["audit", str(target), "--judge", str(judge)]) == 2
    assert "judge must be trained on the same data, digits" in capsys.readouterr().err
