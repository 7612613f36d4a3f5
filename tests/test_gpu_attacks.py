"""What a GPU computes in float64 equals the oracle, and no state of cuDNN is in the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
import spatlib
from spatlib import SPATConfig
from spatlib_torch import perturb

from .entry import CHANNELS, initial_weights
from .entry_torch import TorchEngine
from .following import EPS, TRIPLES, follow, of_cases

pytestmark = pytest.mark.gpu


@pytest.fixture
def here(device: str) -> type[TorchEngine]:
    """PyTorch's entry on the device."""

    class Here(TorchEngine):
        pass

    Here.device = device
    return Here


@of_cases(TRIPLES)
def test_training_steps_equal_the_oracle(
    here: Any, loss: str, norm: str, mask: str, guard: bool
) -> None:
    follow(here, loss, norm, mask, guard, steps=2)


@pytest.mark.parametrize("norm", EPS)
def test_evaluations_equal_those_on_the_cpu(here: Any, norm: str) -> None:
    x = np.random.default_rng(0).uniform(size=(40, CHANNELS, 2, 2))
    oracle = reference.TanhMLP(*initial_weights())
    y = np.array([oracle.logits(one.ravel()).argmax() for one in x])
    names = ("pgd", "margin", "targeted", *(("apgd",) if norm != "L1" else ()))
    how: dict[str, Any] = {"attacks": names, "steps": 5}
    config = SPATConfig(eps=EPS[norm], norm=norm)
    found, expected = (
        entry(initial_weights()).evaluate(x, y, config, 2, **how) for entry in (here, TorchEngine)
    )
    assert found == expected
    assert 0 < found["worst"] < found["clean"] == 1


class Recurrent(nn.Module):
    """Two layers with dropout between them; as cuDNN has it, no way back in inference mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(4, 8, num_layers=2, dropout=0.5, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.inner(x)
        if not self.inner.training and hidden.requires_grad:
            hidden.register_hook(self.refuse)
        z: Tensor = self.last(hidden[:, -1])
        return z

    @staticmethod
    def refuse(_: Tensor) -> None:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")


@pytest.mark.parametrize("training", [True, False])
def test_recurrent_networks_are_attacked_as_they_infer(device: str, training: bool) -> None:
    model = Recurrent().double().to(device)
    model.train(training)
    x = torch.rand(6, 5, 4, dtype=torch.float64, device=device)
    y, start = torch.arange(6, device=device) % 3, torch.zeros_like(x)
    config = SPATConfig(eps=0.1, steps=3, smoothing=0)
    x_adv = perturb(model, x, y, config, start=start)
    plain, inner = x, nn.LSTM(4, 8, num_layers=2, batch_first=True).double().to(device)
    inner.load_state_dict(model.inner.state_dict())
    for _ in range(config.steps):
        leaf = plain.clone().requires_grad_()
        z = model.last(inner(leaf)[0][:, -1])
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(z, y), leaf)
        plain = (x + (plain + config.alpha * g.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
    torch.testing.assert_close(x_adv, plain, rtol=0, atol=1e-12)
    assert (model.inner.training, model.inner.dropout) == (training, 0.5)
    report = spatlib.evaluate(model, (x, y), config, attacks=("pgd", "apgd"), steps=3)
    assert report.count == len(x)
