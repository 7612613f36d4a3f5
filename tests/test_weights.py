"""Weights of examples beside the labels in spatlib.train, in data of every form."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spatlib
from spatlib import DataError, SPATConfig, TrainConfig

from .entry_tf import eagerly
from .test_looks import CONFIG, arrays, network, over_frameworks, weights

COUNT = len(arrays()[0])
SHARES = np.linspace(0, 2, COUNT)
PLAN = TrainConfig(
    epochs=1,
    batch_size=COUNT,
    schedule="constant",
    momentum=0,
    weight_decay=0,
    progress=False,
)
pytestmark = pytest.mark.usefixtures("one_attack")


class Items:
    """A data set of map style: single examples by their number."""

    def __init__(self, *columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return tuple(column[index] for column in self.columns)


FORMS: dict[str, Callable[..., Any]] = {
    "arrays": lambda *columns: columns,
    "batches": lambda *columns: [columns],
    "items": Items,
}


def step(framework: str, data: Any, config: SPATConfig = CONFIG, **more: Any) -> list[np.ndarray]:
    """How far one step moves each parameter."""
    model = network(framework)
    before = weights(model)
    with eagerly() if framework == "tf" else nullcontext():
        spatlib.train(model, data, backend=framework, config=config, training=PLAN, **more)
    return [np.subtract(a, b) for a, b in zip(weights(model), before, strict=True)]


@over_frameworks
@pytest.mark.parametrize("form", FORMS)
def test_a_step_is_linear_in_the_weights(framework: str, form: str) -> None:
    x, y = arrays(framework)
    one, other = (step(framework, FORMS[form](x, y, w)) for w in (SHARES, 2 - SHARES))
    whole = step(framework, FORMS[form](x, y))
    for a, b, c in zip(one, other, whole, strict=True):
        np.testing.assert_allclose(a + b, 2 * c, rtol=1e-4, atol=1e-6)
        assert np.abs(a - b).max() > 0.01 * np.abs(c).max() > 0


BAD: dict[str, tuple[Any, str]] = {
    "negative": (SHARES - 1, r"weights must hold finite values in \[0, inf\], got -1 to 1: leave"),
    "nan": (SHARES * np.nan, "weights must hold finite values .* got nan"),
    "indices": (np.arange(COUNT), r"the third part .* floats of shape \(18,\), got .*int64"),
    "columns": (np.ones((COUNT, 2)), r"floats of shape \(18,\), got .*float64 of shape \(18, 2\)"),
}


@over_frameworks
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", BAD)
def test_what_are_no_weights_is_refused_before_anything_is_written(
    framework: str, form: str, case: str, tmp_path: Path
) -> None:
    values, words = BAD[case]
    with pytest.raises(DataError, match=words):
        step(framework, FORMS[form](*arrays(framework), values), run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@over_frameworks
def test_bad_weights_of_a_later_batch_stop_the_training(framework: str) -> None:
    x, y = arrays(framework)
    with pytest.raises(DataError, match=r"batch 2: weights must .* got -1 to -1|not finite at"):
        step(framework, [(x, y, SHARES), (x, y, -np.ones(COUNT))])


@over_frameworks
def test_a_run_goes_on_with_its_weights_only(framework: str, tmp_path: Path) -> None:
    x, y = arrays(framework)
    step(framework, (x, y, SHARES), run_dir=tmp_path)
    with pytest.raises(spatlib.ConfigError, match="resume needs the settings and data of the run"):
        step(framework, (x, y, 2 - SHARES), run_dir=tmp_path, resume=True)
