"""Training on a GPU: bfloat16, compiled, taken up again, and in a process group of NCCL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import spatlib
from spatlib import Mask, SPATConfig

from .processes import arrays, plan
from .running import rows

pytestmark = pytest.mark.gpu
CONFIG = SPATConfig(eps=0.1, steps=2, mask=Mask())


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 32, 3, padding=1)
    layers = convolution, nn.BatchNorm2d(32), nn.ReLU(), *layers, nn.Flatten(), nn.Linear(512, 5)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def data() -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For training and for testing: a pixel is the brighter, the higher the label."""
    x, y = arrays("f4")
    x[np.arange(len(x)), 0, 0, y % 4] += y + 1
    return (np.clip(x / 5, 0, 1), y), (np.clip(x[:9] / 5, 0, 1), y[:9])


def test_training_in_bfloat16_learns(device: str) -> None:
    training = plan(epochs=12, device=device, precision="bfloat16", lr=0.1)
    config = SPATConfig(eps=0.02, steps=2, mask=Mask())
    result = spatlib.train(network(), data(), config=config, training=training)
    kinds = {(p.dtype, p.device.type) for p in result.model.parameters()}
    assert kinds == {(torch.float32, device)}
    assert result.history[-1]["loss"] < result.history[0]["loss"] / 2
    assert result.metrics["worst"] > 0.6


def test_a_compiled_training_is_the_eager_one(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":  # another compiler would take half a minute
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    kinds = [
        spatlib.train(
            network(), data(), config=CONFIG, training=plan(device=device, compile=compiled)
        )
        for compiled in (False, True)
    ]
    eager, compiled = (weights(result.model) for result in kinds)
    for name, expected in eager.items():
        torch.testing.assert_close(compiled[name], expected, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.usefixtures("without_pictures")
def test_a_run_goes_on_in_the_middle_of_an_epoch(device: str, tmp_path: Path) -> None:
    def train(name: str, stop: int = 0, **more: Any) -> spatlib.Result:
        model, passes = network(nn.Dropout(0.3)), 0

        def count(module: nn.Module, _: Any) -> None:
            nonlocal passes
            passes += module.training
            if stop and passes == stop:
                signal.raise_signal(signal.SIGINT)

        model.register_forward_pre_hook(count)
        training = plan(epochs=2, device=device, validation=21, clip_grad_norm=1.0)
        how = {"config": CONFIG, "training": training, "run_dir": tmp_path / name}
        return spatlib.train(model, data(), **how, **more)

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", stop=5)  # of three steps an epoch
    resumed = train("broken", resume=True)
    assert [row["epoch"] for row in resumed.history] == [1, 2]
    for row, expected in zip(rows(resumed.history), rows(whole.history), strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    found = weights(resumed.model)
    for name, value in weights(whole.model).items():  # cuDNN's fastest kernels add in any order
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def grouped(device: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process of torchrun found, in a group of its own."""
    place = tmp_path_factory.mktemp("grouped")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", "1", "-m", "tests.grouped", device, str(place)]
    own = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads((place / "grouped.json").read_text())


@pytest.mark.parametrize("how", ["grouped", "talking"])
def test_one_process_in_a_group_trains_as_without(
    grouped: dict[str, Any], device: str, how: str
) -> None:
    """``talking``: with everything said as between several, and synchronised BatchNorm on a GPU."""
    assert grouped["said"] > 4  # in each step of training
    assert grouped["backend"] == ("nccl" if device == "cuda" else "gloo")
    (run, stepped), (alone, by_itself) = grouped[how], grouped["alone"]
    assert run["weights"] == pytest.approx(alone["weights"], abs=1e-10)
    assert stepped == pytest.approx(by_itself, abs=1e-10)
    assert run["metrics"] == alone["metrics"]
    for row, expected in zip(run["history"], alone["history"], strict=True):
        assert row == pytest.approx(expected, abs=1e-10)
