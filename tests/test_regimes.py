"""The benchmark of robust overfitting, rehearsed: pieces go on, rows become tables."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import evidence_tables, harness, regimes
from benchmarks.regime_arms import ARMS, REGIMES
from spatlib import Dataset
from spatlib_torch.models import preact_resnet

SMALL = 16 * 2**20  # bytes that a file of a piece may have
CLEAN = [f"{name}_clean" for name in evidence_tables.NETWORKS]
TINY = REGIMES["large-eps"]._replace(
    images=8, held=4, measured=6, pool=2, widths=(2,), batch=4, epochs=2, look=1, steps=1
)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    rng = np.random.default_rng(0)
    x, y = rng.integers(256, size=(24, 3, 8, 8), dtype=np.uint8), rng.integers(10, size=24)
    data = Dataset(train=(x, y), test=(x[:6], y[:6]))
    monkeypatch.setattr(regimes, "load_data", lambda *_: data)
    monkeypatch.setattr(regimes, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setitem(REGIMES, "tiny", TINY)
    own: dict[str, Any] = {"data": None, "data_dir": None, "device": "cpu", "seeds": [0]}
    return argparse.Namespace(
        dataset="tiny", arms=["rectified 0.5"], minutes=None, apgd=False, **own
    )


def rows() -> list[dict[str, str]]:
    return [row | {"seconds": ""} for row in harness.rows_of("evidence_tiny")]


def test_pieces_end_where_one_run_does(
    plan: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    regimes.run(plan)
    whole = rows()
    assert [row["arm"] for row in whole] == plan.arms
    assert all(0 <= float(row["last_robust16"]) <= float(row["last_clean"]) <= 1 for row in whole)
    assert all(float(row["last_robust16"]) <= float(row["last_robust8"]) for row in whole)
    regimes.run(plan)  # what is there is left out
    assert rows() == whole
    plan.apgd, plan.arms = True, [*plan.arms, "pgd"]  # of the run that has ended alone
    regimes.run(plan)
    (stronger,) = harness.rows_of("evidence_tiny_apgd")
    assert {key: stronger[key] for key in CLEAN} == {key: whole[0][key] for key in CLEAN}
    robust = [float(stronger[f"last_robust{eps}"]) for eps in (16, 8)]
    assert robust == sorted(robust)
    plan.apgd, plan.arms = False, plan.arms[:1]
    (tmp_path / "evidence_tiny.csv").unlink()
    monkeypatch.setattr(regimes, "RUNS", tmp_path / "pieces")
    plan.minutes = 1e-9
    for count in (0, 0, 1):  # two looks, then what is measured
        regimes.run(plan)
        assert rows() == whole[:count]


def test_a_piece_of_the_full_regime_has_small_files() -> None:
    full = REGIMES["full"]
    with torch.device("meta"):
        how = {"widths": full.widths, "blocks": full.blocks, "stem": full.widths[0]}
        model = preact_resnet((3, 32, 32), 10, regimes.MEAN, regimes.STD, **how)
    assert SMALL / 2 < sum(4 * v.numel() for v in model.state_dict().values()) < SMALL


def test_reallocated_arms_have_the_evaluations_eps_everywhere() -> None:
    for name, arm in ARMS.items():
        if name.startswith("realloc"):
            assert arm.config["mask"].floor * arm.stretch == pytest.approx(1)


def test_tables_are_computed_from_the_rows() -> None:
    keys = [f"{name}_{what}" for name in evidence_tables.NETWORKS for what in ("clean", "robust8")]
    row = dict.fromkeys([*keys, "best_epoch"], 0.25)
    found = {
        "pgd": {0: row, 1: row, 2: row},
        "rectified 0.8": {0: row | {"best_robust8": 0.5}, 1: row | {"best_robust8": 0.26}},
        "eps x 1.25": {1: row, 2: row},
    }
    assert "| rectified 0.8 | 2 | 25.0 ± 0.0 / 38.0 ± 12.0 | +13.0 ± 12.0 |" in (
        evidence_tables.course(found)
    )
    assert "| rectified 0.8 | eps x 1.25 | 1 | +1.0 |" in evidence_tables.against(found)
    found["eps x 1.25"] |= {0: row | {"best_robust8": 0.48}}  # 2 and 1 points apart
    assert "| rectified 0.8 | eps x 1.25 | 2 | +1.5 ± 6.4 |" in evidence_tables.against(found)
