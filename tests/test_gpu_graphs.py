"""On a GPU: networks compiled one by one, and attacks replayed as one CUDA graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spatlib import SPATConfig
from spatlib_torch import graphs

from .test_torch_graphs import CONFIGS, fit, network

pytestmark = pytest.mark.gpu


def trained(config: SPATConfig, model: nn.Module | None = None, **settings: Any) -> list[Tensor]:
    """In float64, where neither rounding nor cuDNN's choices decide a sign."""
    return fit((model or network()).double(), config, device="cuda", **settings)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each launch of a graph."""
    seen: list[None] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        seen.append(None)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return seen


# A compiled dropout draws other numbers.
CASES = [*((name, False) for name in CONFIGS), *((name, True) for name in [*CONFIGS][:-1])]


@pytest.mark.parametrize(("name", "whole"), CASES)
def test_replayed_attacks_are_the_attacks(
    name: str, whole: bool, replays: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not whole:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    config, model = CONFIGS[name], network(dropout=0.5 * (not whole))
    expected = trained(config, network(dropout=0.5 * (not whole)))
    assert not replays
    for mine, value in zip(trained(config, model, compile=True), expected, strict=True):
        torch.testing.assert_close(mine, value, rtol=0, atol=1e-9)
    assert len(replays) == 2 * 6 - graphs.WARM


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_captured_too(precision: str, replays: list[None]) -> None:
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    ours = fit(model, device="cuda", compile=True, precision=precision)
    assert len(replays) == 2 * 6 - graphs.WARM
    assert all(value.isfinite().all() for value in ours)
    moved = zip(model.parameters(), before, strict=True)
    assert all(not torch.equal(p.detach().cpu(), value) for p, value in moved)


class Reading(nn.Module):
    """It looks at a value on the host, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum().item() > 0 else -x


def test_what_waits_for_the_device_runs_as_it_is(replays: list[None]) -> None:
    config = CONFIGS["default"]
    expected = trained(config, nn.Sequential(Reading(), network(dropout=0.0)))
    model = nn.Sequential(Reading(), network(dropout=0.0))
    with pytest.warns(UserWarning, match="not as one CUDA graph") as seen:
        ours = trained(config, model, compile=True)
    assert len(seen) == 1
    assert not replays
    for mine, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, value, rtol=0, atol=1e-9)
    torch.rand(2, device="cuda")  # the global generator still draws


def test_ten_networks_are_compiled_one_after_the_other(replays: list[None]) -> None:
    for width in range(2, 12):
        before = len(replays)
        fit(network(width), epochs=1, device="cuda", compile=True)
        assert len(replays) - before == 6 - graphs.WARM
