"""A CUDA graph can hold the whole attack, as tensors that have a device but no values show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spatlib import Mask, SPATConfig
from spatlib_torch import perturb, shared_mask, spat_loss

CLASSES, SHAPE = 5, (4, 3, 8, 8)
MASKS = {score: Mask(score=score) for score in ("min", "mean", "rms", "neutral", "random")}
MASKS["classes"] = Mask(classes=2)
METHODS: dict[str, dict[str, Any]] = {
    "plain": {"smoothing": 0, "random_start": "none"},
    "guard": {},
    "no guard": {"guard": False, "rectify": 0.5},
    "trades": {"loss": "trades", "random_start": "gaussian"},
    "mart": {"loss": "mart"},
}
NORMS = ("Linf", "L2", "L1")
CASES = {f"{norm}, {name}": {"norm": norm, **METHODS[name]} for norm in NORMS for name in METHODS}
CASES |= {name: {"mask": mask} for name, mask in MASKS.items()}
WAITS = ("nonzero", "_local_scalar_dense", "equal", "masked_select", "_unique2", "bincount")
MAKES = (torch.tensor, torch.as_tensor, torch.from_numpy, Tensor.new_tensor)


class Device(TorchDispatchMode):
    """Refuses what waits for a device or reads the host's memory in an operation."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, found = func.overloadpacket.__name__, func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor)]
        masks = name.startswith("index") and any(t.dtype == torch.bool for t in tensors)
        assert name not in WAITS, f"{func.name()} waits for the device"
        assert not masks, f"{func.name()} has to count"
        assert all(t.is_meta for t in tensors), f"{func.name()} with the host"
        return found


class Constants(TorchFunctionMode):
    """Refuses tensors that are made of values on the host."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func not in MAKES, f"{func.__name__} copies from the host"
        return func(*args, **(kwargs or {}))


@contextmanager
def capturing() -> Iterator[None]:
    with Device(), Constants():
        yield


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)  # it knows no meta
    norm = nn.BatchNorm2d(2)
    return nn.Sequential(nn.Conv2d(3, 2, 3), norm, nn.Flatten(), nn.Linear(72, CLASSES)).to("meta")


@pytest.mark.parametrize("case", CASES)
def test_nothing_of_the_attack_waits_or_comes_from_the_host(model: nn.Module, case: str) -> None:
    config = SPATConfig(eps=0.1, steps=1, **CASES[case])
    x, rows = (torch.empty(shape, device="meta") for shape in (SHAPE, (4, CLASSES)))
    y = rows if "guard" in case else torch.empty(4, dtype=torch.int64, device="meta")
    with capturing():
        x_adv = perturb(model, x, y, config, validate=False)
        loss = spat_loss(model, x, y, config, x_adv=x_adv, average=model, validate=False)
        torch.autograd.backward(loss)
        mask = shared_mask(model, x, y, config, validate=False)
    assert (x_adv.shape, loss.shape, mask.shape) == (SHAPE, (), (4, 1, 8, 8))


@pytest.mark.parametrize("name", ["value", "choice", "constant", "host"])
def test_a_network_that_does_is_seen(model: nn.Module, name: str) -> None:
    """So that the test above can fail."""
    scale = torch.ones(())
    reads: dict[str, Any] = {
        "value": lambda x: x if x.sum().item() > 0 else -x,
        "choice": lambda x: x + x[x > 0].sum(),
        "constant": lambda x: x * torch.tensor(2.0, device=x.device),
        "host": lambda x: x * scale,
    }
    model.register_forward_pre_hook(lambda _, inputs: (reads[name](inputs[0]),))
    x, y = torch.empty(SHAPE, device="meta"), torch.empty(4, CLASSES, device="meta")
    with capturing(), pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        perturb(model, x, y, SPATConfig(eps=0.1, steps=1), validate=False)
