"""Training under autocast to float16: what is scaled, left out, saved, and refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.amp import GradScaler

from spatlib import ConfigError, NonFiniteError, SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib_torch import engine, spat_loss

from .looping import BATCH, Explode, Keeper, arrays, fit, network, training

LOW: dict[str, Any] = {"precision": "float16"}


def linear() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(32, 3))


@pytest.mark.parametrize("clip", [None, 0.05])
def test_training_is_the_loop_by_hand(clip: float | None) -> None:
    config = SPATConfig(eps=0.1, steps=2, random_start="none")
    x, y = map(torch.as_tensor, arrays(2 * BATCH))
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    model, expected = linear(), linear()
    optimizer, scaler = torch.optim.SGD(expected.parameters(), 0.1, 0.9), GradScaler("cpu")
    for inputs, labels in batches * 4:
        with torch.autocast("cpu", torch.float16):
            loss = spat_loss(expected, inputs, labels, config)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(expected.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2**16, "no step was left out"
    plan = TrainConfig(
        epochs=4, schedule="constant", weight_decay=0, clip_grad_norm=clip, progress=False, **LOW
    )
    engine.fit(model, batches, config, Monitor(plan))
    for ours, theirs, first in zip(
        model.parameters(), expected.parameters(), linear().parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
        assert not torch.allclose(ours, first, atol=1e-3)


class Overflowing(nn.Module):
    """Its gradient overflows in some passes of training."""

    def __init__(self, *passes: int) -> None:
        super().__init__()
        self.inner, self.at, self.passes = network(), passes, 0

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x)
        self.passes += self.training
        return Explode.apply(logits) if self.training and self.passes in self.at else logits


@pytest.mark.parametrize("optimizer", [None, torch.optim.AdamW])
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler")  # of torch, after no step
def test_a_step_that_overflows_is_left_out_and_a_run_goes_on_from_every_step(
    optimizer: Any,
) -> None:
    own, keeper = {"optimizer": optimizer, **LOW}, Keeper(training(**LOW))
    model, names = Overflowing(1, 6), [name for name, _ in Overflowing().named_parameters()]
    expected = fit(arrays(), model, keeper, **own)
    saved = [load(content) for content in keeper.kept]
    weights = [[own[f"model.{name}"] for name in names] for own in saved]
    assert all(map(torch.equal, weights[0], Overflowing().parameters()))
    assert all(map(torch.equal, weights[4], weights[5]))
    assert not any(map(torch.equal, weights[5], weights[6]))
    for state in saved:
        moments = [v for name, v in state.items() if name.startswith("optimizer.")]
        assert all(v.abs().max() < 99 for v in moments), "memory that nothing was written to"
    for step in (1, 2, 6):
        rest = Overflowing(6 - step)
        assert (
            fit(arrays(), rest, Keeper(training(**LOW), keeper.kept[step - 1]), **own) == expected
        )


def test_a_gradient_that_is_never_finite_ends_the_run() -> None:
    with pytest.raises(NonFiniteError, match="the loss or a weight is not finite at step 32"):
        fit(arrays(), Overflowing(*range(99)), epochs=20, **LOW)
    _, rows = fit(arrays(), Overflowing(*range(9)), **LOW)  # the scale is above the least
    assert all(math.isfinite(row["loss"]) for row in rows)


def test_weights_of_float16_are_refused() -> None:
    with pytest.raises(ConfigError, match="model must have weights of float32 for precision"):
        fit(arrays(), linear().half(), **LOW)
