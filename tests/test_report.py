"""What a report counts, how sure it is, and what it prints; Evaluation's checks of attacks."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from decimal import Decimal, getcontext
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatlib import ConfigError, DataError, Mask, Report, SPATConfig, Threat
from spatlib.core.survivors import Verdict
from spatlib.evaluate import Evaluation
from spatlib.report import wilson

getcontext().prec = 40
CONFIG = SPATConfig(eps=0.15, mask=Mask())


def score_bound(hits: int, count: int, sign: int) -> float:
    """Where |k / n - p| = z sqrt(p (1 - p) / n), below (-1) or above (1) k / n, by bisection."""
    z, share = Decimal(NormalDist().inv_cdf(0.975)), Decimal(hits) / count
    inside, outside = share, Decimal(max(sign, 0))
    for _ in range(120):
        p = (inside + outside) / 2
        if count * (share - p) ** 2 <= z * z * p * (1 - p):
            inside = p
        elif p != share:
            outside = p
    return float(inside)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0, 0.27753), (5, 10, 0.23659, 0.76341), (10, 10, 0.72247, 1), (1, 1, 0.20655, 1)],
)
def test_interval_solves_the_score_equation(hits: int, count: int, low: float, high: float) -> None:
    assert wilson(hits, count) == pytest.approx((low, high), abs=6e-6)
    for k, n in ((hits, count), (356, 450), (hits * 10**5, count * 10**5)):
        exact = (score_bound(k, n, -1), score_bound(k, n, 1))
        assert wilson(k, n) == pytest.approx(exact, abs=1e-14)


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_interval_encloses_the_share_and_stays_in_the_unit_interval(n: int, share: float) -> None:
    hits = round(share * n)
    low, high = wilson(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    mirrored = wilson(n - hits, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored, abs=1e-12)


def in_batches(labels: np.ndarray, classes: int, verdicts: dict[str, Any], cut: int = 0) -> Any:
    """What an engine says of examples cut in two batches (the first may be empty)."""
    sound, x = np.ones(len(labels), bool), np.zeros((len(labels), 1))
    for part in (slice(cut), slice(cut, None)):
        rows = {key: Verdict(right[part], sound[part], x[part]) for key, right in verdicts.items()}
        yield labels[part], classes, rows


@given(st.integers(1, 40), st.integers(2, 6), st.integers(0, 2**32 - 1))
def test_classes_add_up_to_the_total(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    verdicts = {name: rng.uniform(size=count) < 0.6 for name in ("clean", "pgd20")}
    evaluation = Evaluation(CONFIG, "pgd")
    report = evaluation.report(in_batches(labels, classes, verdicts, count // 2))
    verdicts["worst"] = verdicts["clean"] & verdicts["pgd20"]
    for name, verdict in verdicts.items():
        np.testing.assert_array_equal(report.outcomes[name], verdict)
        assert report.metrics[name] * count == pytest.approx(sum(verdict))
        assert report.interval[name] == wilson(sum(verdict), count)
        assert len(report.per_class[name]) == classes
        hits = 0.0
        for k, share in enumerate(report.per_class[name]):
            members = verdict[labels == k]
            assert math.isnan(share) == (len(members) == 0)
            hits += share * len(members) if len(members) else 0
        assert hits == pytest.approx(sum(verdict))
    assert report == evaluation.report(in_batches(labels, classes, verdicts))  # in spite of NaN


def sample(
    attacks: tuple[Any, ...], steps: int = 20, restarts: int = 1, classes: int = 10
) -> Report:
    """The report on 8 examples, of which every attack leaves one fewer than the one before."""
    evaluation = Evaluation(CONFIG, attacks, steps, restarts, seed=0)
    verdicts = {key: np.arange(8) >= lost for lost, key in enumerate(evaluation.keys)}
    return evaluation.report(in_batches(np.arange(8) % 2, classes, verdicts))


def fast(model: Any, x: Any, y: Any) -> Any:
    return x


def hostile_report() -> Report:
    """With an attack of a name that would be markup."""

    def named(model: Any, x: Any, y: Any) -> Any:
        return x

    named.__name__ = "<script>&"
    return sample((named,))


def test_the_table_names_every_attack_and_the_threat() -> None:
    head, *rows, note = str(sample((fast, "pgd", "targeted", "margin"), 50, 3)).splitlines()
    assert head.strip() == "model"
    names, cells = zip(*(re.split(r" {2,}", row) for row in rows), strict=True)
    assert names == (
        "clean",
        "fast",
        "PGD-50",
        "targeted margin PGD-50 (9 targets)",
        "CW margin PGD-50",
        "worst",
    )
    assert cells[:2] == ("100.0 [67.6, 100.0]", "87.5 [52.9, 97.8]")
    assert note == ("accuracy in % [95 % interval] on 8 examples; Linf eps 0.15, 3 random starts")
    assert str(sample(("pgd",))).endswith("1 random start")
    assert str(sample((fast,))).endswith("0 random starts")


def test_a_report_holds_the_threat_alone_and_is_plain_in_json() -> None:
    report = sample((fast, "pgd", "apgd"), classes=3)
    assert report.threat == Threat(eps=0.15)
    assert type(report.threat) is Threat
    assert any(map(math.isnan, report.per_class["pgd20"]))
    values = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert values["threat"] == asdict(report.threat) | {"bounds": [0, 1]}
    shares = [None if p != p else p for p in report.per_class["pgd20"]]
    assert values["per_class"]["pgd20"] == shares
    for name in ("metrics", "count", "restarts", "attacks", "broken"):
        assert values[name] == getattr(report, name)
    assert values["interval"]["pgd20"] == list(report.interval["pgd20"])


@pytest.mark.parametrize(
    ("classes", "targets"),
    [(2, "1 target"), (4, "3 targets"), (10, "9 targets"), (50, "9 targets")],
)
def test_the_table_says_how_many_targets(classes: int, targets: str) -> None:
    report = sample(("targeted",), classes=classes)
    assert report.attacks == {"targeted20": f"targeted margin PGD-20 ({targets})"}
    assert f"({targets})" in str(report)


def test_metrics_are_keyed_by_name_and_steps_in_the_order_asked_for() -> None:
    report = sample(("targeted", fast, "pgd"), steps=7)
    assert list(report.metrics) == ["clean", "targeted7", "fast", "pgd7", "worst"]
    assert list(report.metrics.values()) == [1, 7 / 8, 6 / 8, 5 / 8, 5 / 8]
    assert report.per_class["pgd7"] == [2 / 4, 3 / 4, *[pytest.approx(math.nan, nan_ok=True)] * 8]


class Unmoved:
    def __call__(self, model: Any, x: Any, y: Any) -> Any:
        return x


def clean(model: Any, x: Any, y: Any) -> Any:
    return x


def worst(model: Any, x: Any, y: Any) -> Any:
    return x


@pytest.mark.parametrize(
    ("attacks", "part"),
    [
        (("fgsm",), "'pgd', 'margin', 'targeted'"),
        ("cw", "'cw'"),
        ((), "got ()"),
        (3, "got 3"),
        (("pgd", 3), "got 3"),
        (("pgd", "pgd"), "no name (__name__) twice, got 'pgd'"),
        ((fast, fast), "no name (__name__) twice, got <function fast"),
        ((Unmoved(), Unmoved()), "got <tests.test_report.Unmoved"),
        ((clean,), "got <function clean"),
        ((worst,), "got <function worst"),
    ],
)
def test_other_attacks_and_second_ones_are_refused(attacks: Any, part: str) -> None:
    with pytest.raises(ConfigError, match="callables") as caught:
        Evaluation(CONFIG, attacks, 20, 1, 0)
    assert str(caught.value).startswith("attacks must be ")
    assert part in str(caught.value)


def test_one_attack_need_not_be_in_a_tuple() -> None:
    assert Evaluation(CONFIG, "pgd", 20, 1, 0).keys == ["clean", "pgd20"]
    assert Evaluation(CONFIG, Unmoved(), 20, 1, 0).keys == ["clean", "Unmoved"]


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, None])
def test_a_number_of_steps_is_at_least_one(steps: Any) -> None:
    with pytest.raises(ConfigError, match="steps"):
        Evaluation(CONFIG, ("pgd",), steps, 1, 0)


SIZE = 50
MOVES: dict[str, Callable[[float], float]] = {  # of every entry, to a distance of eps
    "Linf": lambda eps: eps,
    "L2": lambda eps: eps / math.sqrt(SIZE),
    "L1": lambda eps: eps / SIZE,
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-5.0, 5.0)])
@pytest.mark.parametrize("norm", MOVES)
def test_perturbations_are_accepted_up_to_the_edge_and_no_further(
    norm: str, bounds: tuple[float, float], dtype: str
) -> None:
    check = Evaluation(Threat(eps=0.25, norm=norm, bounds=bounds), fast, 1, 1, 0).check_inside
    x = np.random.default_rng(0).uniform(0.3, 0.7, size=(4, 1, 5, 10)).astype(dtype)
    bits = np.finfo(dtype).nmant + 1
    top = max(map(abs, bounds))
    move, room = MOVES[norm](0.25), 4 * 2.0**-23 * top
    for sign in (-1, 1):
        check("fast", np.float64(x), np.float64((x + sign * move).astype(dtype)), bits)
        far = x.copy()
        far[2] += sign * (move + 1.5 * room)
        with pytest.raises(DataError, match=f"{norm} distances up to 0.25") as caught:
            check("fast", np.float64(x), np.float64(far), bits)
        excess = float(re.search(r"distances ([\d.e-]+) more", str(caught.value))[1])
        assert 1.3 * room < excess < 1.7 * room * SIZE
        assert "x_adv of fast" in str(caught.value)
        assert "clip or project" in str(caught.value)


@pytest.mark.parametrize(("lower", "upper"), [(0.0, 1.0), (-1.0, 3.0)])
@pytest.mark.parametrize("excess", [1e-5, 0.01, math.inf, math.nan])
def test_values_outside_the_bounds_and_values_that_are_none_are_refused(
    excess: float, lower: float, upper: float
) -> None:
    check = Evaluation(Threat(eps=0.1, bounds=(lower, upper)), fast, 1, 1, 0).check_inside
    for edge, sign in ((lower, -1), (upper, 1)):
        x = np.full((3, 6), edge)
        check("fast", x, x, 24)
        x_adv = x.copy()
        x_adv[1, 4] += sign * excess
        with pytest.raises(DataError, match=f"values {excess:.3g}".replace("+", ".") + " outside"):
            check("fast", x, x_adv, 24)


@pytest.mark.parametrize("shape", [(3,), (3, 7), (1, 6), (3, 6, 1), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 6\), got"):
        Evaluation(CONFIG, fast, 1, 1, 0).check_inside(
            "fast", np.zeros((3, 6)), np.zeros(shape), 24
        )


def test_low_precision_is_allowed_its_own_rounding() -> None:
    check = Evaluation(Threat(eps=0.1), fast, 1, 1, 0).check_inside
    x, rounded = np.full((1, 1), 0.7), np.full((1, 1), 0.8 + 2**-9)
    check("fast", x, rounded, 8)
    with pytest.raises(DataError, match=r"distances 0\.00195 more"):
        check("fast", x, rounded, 24)
