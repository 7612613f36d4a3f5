"""A run on batches of one's own goes on in the order that its loader had begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spatlib
from spatlib import TrainConfig

from .test_resume import CONFIG, cut, images, interrupt, rows, train, values

pytestmark = pytest.mark.usefixtures("without_pictures")


def test_a_loader_goes_on_in_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = torch.utils.data.TensorDataset(*map(torch.as_tensor, images("torch")))
    loader = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    plain = TrainConfig(epochs=2, progress=False, checkpoint_minutes=0)
    torch.manual_seed(0)
    expected = train("torch", tmp_path / "whole", loader, training=plain)
    with monkeypatch.context() as patch:
        cut(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train("torch", tmp_path / "cut", loader, training=plain)
    result = train("torch", tmp_path / "cut", loader, training=plain, resume=True)
    assert rows(result.history) == rows(expected.history)
    for mine, its in zip(values(result.model), values(expected.model), strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.parametrize("cut_in", [1, 3, 4])
def test_memory_format_and_a_loaders_own_generator_come_back(
    cut_in: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = TrainConfig(epochs=3, progress=False, checkpoint_minutes=0)
    x, y = map(torch.as_tensor, images("torch"))

    def run(directory: Path, **arguments: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            convolution = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
            )
        model = convolution.to(memory_format=torch.channels_last)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y),
            batch_size=40,
            shuffle=True,
            generator=torch.Generator().manual_seed(3),
        )
        return spatlib.train(
            model, loader, run_dir=directory, training=plain, config=CONFIG, **arguments
        )

    expected = run(tmp_path / "whole")
    with monkeypatch.context() as patch:
        cut(patch, cut_in, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut")
    result = run(tmp_path / "cut", resume=True)
    assert rows(result.history) == rows(expected.history)
    for mine, its in zip(values(result.model), values(expected.model), strict=True):
        np.testing.assert_array_equal(mine, its)
