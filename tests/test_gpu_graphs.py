"""On a GPU: networks compiled one by one, and attacks replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spatlib_torch import graphs

from .test_torch_graphs import CONFIGS, fit, network, stand_in

pytestmark = pytest.mark.gpu
REPLAYED = 2 * (6 - graphs.WARM)  # of two epochs of six whole batches


@pytest.fixture
def replays(device: str, monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each replay of a graph."""
    seen: list[None] = []
    if device == "cpu":
        stand_in(monkeypatch)
    original = graphs.recorded

    def recorded(run: Callable[[], Any], source: torch.Generator) -> Callable[[], Any]:
        replay = original(run, source)
        return lambda: (seen.append(None), replay())[1]

    monkeypatch.setattr(graphs, "recorded", recorded)
    return seen


@pytest.fixture
def as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are not compiled: graphs alone."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def agree(ours: list[Tensor], expected: list[Tensor]) -> None:
    """As in float64, where neither rounding nor cuDNN's choices decide a sign."""
    for mine, value in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, value, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("name", CONFIGS)
def test_replayed_attacks_are_the_attacks(name: str, device: str, replays: list[None]) -> None:
    config = CONFIGS[name]
    expected = fit(network().double(), config, device=device)
    assert not replays
    agree(fit(network().double(), config, device=device, compile=True), expected)
    assert len(replays) == REPLAYED


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_replayed_too(precision: str, device: str, replays: list[None]) -> None:
    before = [value.clone() for value in network().state_dict().values()]
    ours = fit(network(), device=device, compile=True, precision=precision)
    assert len(replays) == REPLAYED
    for mine, value in zip(ours, before, strict=True):
        assert mine.isfinite().all()
        assert not torch.equal(mine.cpu(), value)


class Waiting(nn.Module):
    """It waits for the device, which no graph can hold: to look at a value, or where torch is not
    told, so that the capture itself fails."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.looks = looks

    def forward(self, x: Tensor) -> Tensor:
        if not self.looks:
            torch.cuda.synchronize()
        return x if not self.looks or x.sum().item() > 0 else -x


@pytest.mark.usefixtures("as_written")
@pytest.mark.parametrize("looks", [True, False])
def test_what_waits_for_the_device_runs_as_it_is(
    looks: bool, device: str, replays: list[None]
) -> None:
    if device == "cpu":  # where nothing waits
        return
    models = [nn.Sequential(Waiting(looks), network().double()) for _ in range(2)]
    expected, stream = fit(models[0], device=device), torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="not as one CUDA graph") as seen:
        ours = fit(models[1], device=device, compile=True)
    agree(ours, expected)  # the global generator still draws, for dropout
    assert sum("not as one CUDA graph" in str(warning.message) for warning in seen) == 1
    assert not replays
    assert torch.cuda.current_stream() == stream
    fit(network().double(), device=device, compile=True)
    assert len(replays) == REPLAYED


@pytest.mark.parametrize("name", CONFIGS)
def test_those_of_compiled_networks_are_too(name: str, device: str, replays: list[None]) -> None:
    """Without dropout, of which a compiled one draws other numbers."""
    config, models = CONFIGS[name], [network(dropout=0.0).double() for _ in range(2)]
    agree(*(fit(models[i], config, device=device, compile=i > 0) for i in range(2)))
    assert len(replays) == REPLAYED


def test_a_budget_that_grows_is_compiled_once_more(device: str, replays: list[None]) -> None:
    config, models = CONFIGS["probes"], [network(dropout=0.0).double() for _ in range(2)]
    how: dict[str, Any] = {"device": device, "epochs": 5, "eps_warmup": 4}
    agree(*(fit(models[i], config, compile=i > 0, **how) for i in range(2)))
    assert len(replays) == 5 * (6 - graphs.WARM)


def test_ten_networks_are_compiled_one_after_the_other(device: str, replays: list[None]) -> None:
    for width in range(2, 12):
        fit(network(width), epochs=1, device=device, compile=True)
    assert len(replays) == 10 * (6 - graphs.WARM)
