"""evaluate: full budget, hard labels, repeatable; and how its results read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spatlib
from spatlib import RECIPES, ConfigError, Mask, Result, SPATConfig, Threat, TrainConfig

from .test_training import BATCH, COUNT, METRICS, arrays, batches, loader, network, tensors

EPS = 0.1
STEPS = 20


class Recorder(nn.Module):
    """Keeps what the network is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.seen = network(0.5), []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return self.inner(x)


def shown(**arguments: Any) -> list[Tensor]:
    """Every input of an evaluation, in order."""
    model = Recorder()
    spatlib.evaluate(model, arrays(), **{"threat": Threat(eps=EPS)} | arguments)
    return model.seen


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def test_evaluation_is_decided_by_its_seed() -> None:
    first = shown(seed=0)
    torch.rand(1)
    assert same(first, shown(seed=0))
    assert not same(first, shown(seed=1))


IGNORED: list[dict[str, Any]] = [
    {"smoothing": 0.9},
    {"guard": False, "smoothing": 0.9},
    {"mask": Mask(keep=0.1, floor=0.0)},
    {"mask": Mask(score="rms", probes=9)},
    {"mask": Mask(score="random", floor=0.0)},
    {"mask": Mask(classes=2)},
    {"loss": "trades"},
    {"loss": "mart", "beta": 1.0},
    {"steps": 1},
    {"step_size": 1e-5},
    {"random_start": "none"},
    {"random_start": "gaussian"},
    {"attack_mode": "train"},
]


@pytest.mark.parametrize("settings", IGNORED, ids=str)
def test_settings_of_the_training_attack_play_no_part(settings: dict[str, Any]) -> None:
    assert same(shown(), shown(threat=SPATConfig(eps=EPS, **settings)))


@pytest.mark.parametrize(
    "settings", [{"eps": 0.2}, {"eps": EPS, "norm": "L2"}, {"eps": EPS, "bounds": (-1, 1)}], ids=str
)
def test_the_threat_model_matters(settings: dict[str, Any]) -> None:
    assert not same(shown(), shown(threat=Threat(**settings)))


def test_attacks_take_twenty_steps_of_the_full_budget() -> None:
    restarts, x, eps = 2, tensors()[0], 0.001  # which all examples survive
    seen = shown(restarts=restarts, threat=Threat(eps=eps))
    # A look, clean, a third of it, then for each restart the start, and for each attack iterates
    # and end, of those that are right.
    assert len(seen) == 3 + restarts * (1 + 2 * (STEPS + 1))
    assert torch.equal(seen.pop(2), x[1::3])
    assert all(torch.equal(z, x) for z in seen[:2])
    for z in seen:
        distances = torch.cdist(z.flatten(1), x.flatten(1), p=math.inf).amin(dim=1)
        assert distances.max() <= eps + 1e-6
    assert distances.min() > eps - 1e-6  # every example moved to its limit


def test_nothing_more_is_tried_on_a_cpu_where_all_examples_are_decided() -> None:
    seen = shown(threat=Threat(eps=1.0), attacks=("pgd", "targeted", "apgd"), restarts=3)
    assert len(seen) < 1 + 3 * (1 + 3 * (STEPS + 1))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch_size", [5, COUNT])
def test_more_restarts_never_raise_accuracy(batch_size: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Tanh(), nn.Linear(40, 3))
    for p in model.parameters():
        nn.init.normal_(p, std=3.0)  # rugged, so that the start decides
    x = tensors(count=10 * batch_size)[0]
    data = (x, model(x).argmax(dim=1))  # all correct clean
    settings = {"steps": 2, "seed": seed, "batch_size": batch_size}
    results = [
        spatlib.evaluate(model, data, Threat(eps=0.05), restarts=restarts, **settings).metrics
        for restarts in (1, 2, 4)
    ]
    for fewer, more in pairwise(results):
        assert all(more[name] <= fewer[name] for name in more)
    assert results[0]["clean"] == 1
    assert all(results[-1][name] < results[0][name] for name in ("pgd2", "margin2"))


class Landscape(nn.Module):
    """Two logits of one pixel, with a correct label 0 exactly where ``holds`` says.

    The gradient leads uphill everywhere, to x + eps.
    """

    def __init__(self, holds: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.holds = holds

    def forward(self, x: Tensor) -> Tensor:
        score = torch.where(self.holds(x), 2.0, -2.0) - 1e-3 * x
        return torch.cat([score, torch.zeros_like(score)], dim=1)


def at_input(x: Tensor) -> Tensor:
    return (x - 0.5).abs() < 1e-6


def at_end(x: Tensor) -> Tensor:
    return x > 0.5 + 0.999 * EPS


@pytest.mark.parametrize(
    ("holds", "clean", "robust"),
    [
        (lambda x: x < 2, 1, 1),
        (lambda x: ~at_input(x), 0, 0),
        (lambda x: ~at_end(x), 1, 0),
        (lambda x: at_input(x) | at_end(x), 1, 0),
    ],
    ids=["correct everywhere", "wrong clean", "wrong at the end", "wrong at the start"],
)
def test_robust_means_correct_clean_and_at_the_start_and_at_the_end(
    holds: Callable[[Tensor], Tensor], clean: int, robust: int
) -> None:
    x, y = torch.full((8, 1), 0.5), torch.zeros(8, dtype=torch.int64)
    report = spatlib.evaluate(Landscape(holds), (x, y), Threat(eps=EPS))
    under_attack = dict.fromkeys(("pgd20", "margin20", "worst"), robust)
    assert report.metrics == {"clean": clean} | under_attack


def test_reports_count_all_examples_of_the_test_part() -> None:
    model, threat = network().eval(), Threat(eps=EPS, norm="L2")
    x, y = tensors(1, 40)
    correct = float((model(x).argmax(dim=1) == y).double().mean())
    report = spatlib.evaluate(model, (arrays(), arrays(1, 40)), threat, batch_size=7)
    assert report.count == 40
    assert report.threat == threat
    assert report.metrics["clean"] == correct
    assert set(report.metrics) == METRICS | {"apgd20"}


def test_arrays_and_batches_give_one_report() -> None:
    model, threat = network(), Threat(eps=EPS)
    forms = [arrays(), tensors(), batches(), loader()]
    reports = [spatlib.evaluate(model, form, threat, batch_size=BATCH) for form in forms]
    assert all(report == reports[0] for report in reports)


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model = network(0.5).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)

    def state() -> Any:
        trainable = [p.requires_grad for p in model.parameters()]
        values = [v.tolist() for v in model.state_dict().values()]
        return [m.training for m in model.modules()], trainable, values

    before = state()
    spatlib.evaluate(model, arrays(), Threat(eps=EPS))
    assert state() == before


def test_data_of_ones_own_need_a_threat() -> None:
    with pytest.raises(ConfigError, match=r"threat must be given .* data of your own.*eps="):
        spatlib.evaluate(network(), arrays())


def test_result_prints_the_baselines_beside_spat(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"steps": 1, "epochs": 1, "baseline": True}
    few = spatlib.load_data("digits", limit=70)
    result = spatlib.train(data=few, recipe=RECIPES["digits"].change(**settings))
    head, *lines, note = str(result).splitlines()
    assert head.split() == ["standard", "PGD-AT", "SPAT"]
    assert [re.split(" {2,}", line)[0] for line in lines][1] == "PGD-20"
    assert "70 examples" in note
    assert "0.15" in note
    columns = zip(*(re.findall(r"([\d.]+) \[", line) for line in lines), strict=True)
    for shown, report in zip(columns, (*result.baselines.values(), result.report), strict=True):
        assert list(shown) == [f"{100 * value:.1f}" for value in report.metrics.values()]
        assert set(report.metrics) == METRICS
    assert result.measured_on == "test"
    assert str(result) in capsys.readouterr().out


@pytest.mark.parametrize("progress", [True, False])
def test_only_progress_prints(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    quick = TrainConfig(epochs=1, batch_size=BATCH, progress=progress)
    config = SPATConfig(eps=EPS, steps=1)
    result = spatlib.train(network(), arrays(), config=config, training=quick)
    assert (str(result) in capsys.readouterr().out) == progress
    assert str(result).split("\n")[0].split() == ["SPAT"]  # no baseline


def test_result_without_evaluation_says_so() -> None:
    settings = {"config": SPATConfig(eps=EPS), "training": TrainConfig()}
    result = Result(model=None, history=[], **settings)
    assert str(result) == "not evaluated"


def test_no_robust_accuracy_exceeds_the_clean_one() -> None:
    rng = np.random.default_rng(0)
    for seed in range(3):
        x, y = arrays(seed, 60)
        y = np.where(rng.uniform(size=60) < 0.3, rng.integers(3, size=60), y)  # some wrong labels
        metrics = spatlib.evaluate(network(), (x, y), Threat(eps=0.02)).metrics
        assert max(metrics["pgd20"], metrics["margin20"]) <= metrics["clean"] < 1
