"""PyTorch's entry of ENGINES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

import spatlib
import spatlib_torch
from spatlib import SPATConfig
from spatlib_torch import engine as torch_engine
from spatlib_torch import ops as torch_ops
from spatlib_torch.attack import Draws, attacked

from .entry import CLASSES, HEIGHT, HIDDEN, WIDTH, Entry, mask_draws


class Cast(nn.Module):
    """Inputs in the precision of the network that follows."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self.dtype = getattr(torch, precision)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


class TorchNetwork(nn.Module):
    """What a function of tensors says, as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class OnHost:
    """Draws of a device, where NumPy can take them."""

    def __init__(self, draws: Draws) -> None:
        self.draws = draws

    def __getattr__(self, name: str) -> Callable[..., torch.Tensor]:
        return lambda *given: getattr(self.draws, name)(*given).cpu()


class TorchEngine(Entry):
    """Trained by spat_loss and torch.optim.SGD."""

    module = torch_engine
    device = "cpu"

    def __init__(
        self,
        weights: list[np.ndarray],
        lr: float = 0.1,
        momentum: float = 0.9,
        precision: str = "float64",
    ) -> None:
        first, second = nn.Linear(len(weights[0]), HIDDEN), nn.Linear(HIDDEN, CLASSES)
        model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second)
        self.model = model.to(self.device, torch.float64)
        self.parameters = [first.weight, first.bias, second.weight, second.bias]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(torch.as_tensor(value.T))
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=momentum)
        if precision != "float64":
            self.model = nn.Sequential(Cast(precision), self.model.to(getattr(torch, precision)))

    def weights(self) -> list[np.ndarray]:
        return [p.numpy(force=True).T.copy() for p in self.parameters]

    def _tensor(self, value: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(value, device=self.device)

    @classmethod
    def _generator(cls, seed: int) -> torch.Generator:
        return torch.Generator(cls.device).manual_seed(seed)

    def train_step(
        self,
        x: np.ndarray,
        y: np.ndarray,
        start: np.ndarray,
        config: SPATConfig,
        seed: int,
        average: list[np.ndarray] | None = None,
    ) -> float:
        own = self.model, self._tensor(x), self._tensor(y), config
        begin, source = self._tensor(start), self._generator(seed)
        x_adv = spatlib_torch.perturb(*own, start=begin, generator=source)
        network = None if average is None else TorchEngine(average).model
        loss = spatlib_torch.spat_loss(*own, x_adv=x_adv, average=network)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        batch, source = map(self._tensor, (x, y)), self._generator(seed)
        mask = spatlib_torch.shared_mask(self.model, *batch, config, generator=source)
        return mask.flatten(1).numpy(force=True)

    def perturb(
        self,
        x: np.ndarray,
        y: np.ndarray,
        start: np.ndarray,
        config: SPATConfig,
        mask: np.ndarray | None = None,
    ) -> np.ndarray:
        return spatlib_torch.perturb(
            self.model,
            self._tensor(x),
            self._tensor(y),
            config,
            start=self._tensor(start),
            mask=None if mask is None else self._tensor(mask),
        ).numpy(force=True)

    def stall_rate(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig
    ) -> float:
        batch = self._tensor(x), self._tensor(y)
        found = attacked(self.model, *batch, config, own=(self._tensor(start), None))
        return float(found.stalls.mean())

    def evaluate(
        self,
        x: np.ndarray,
        y: np.ndarray,
        config: SPATConfig,
        restarts: int = 1,
        *,
        attacks: Sequence[str] = ("pgd", "margin"),
        steps: int = 2,
        seen: list[np.ndarray] | None = None,
    ) -> dict[str, float]:
        def look(_: Any, inputs: tuple[torch.Tensor]) -> None:
            if seen is not None:
                seen.append(inputs[0].numpy(force=True).copy())

        with self.model.register_forward_pre_hook(look):
            data = torch.as_tensor(x), torch.as_tensor(y)
            settings = {"attacks": attacks, "steps": steps, "restarts": restarts}
            return spatlib.evaluate(self.model, data, config, **settings).metrics

    @staticmethod
    def gradients(
        function: Callable[..., Any], label: np.ndarray, *logits: np.ndarray
    ) -> np.ndarray:
        leaves = [torch.tensor(z, requires_grad=True) for z in logits]
        value = function(torch_ops, torch.as_tensor(label), *leaves)
        grads = torch.autograd.grad(value, leaves, materialize_grads=True)
        return torch.stack(grads).numpy()

    @classmethod
    def draws(cls, config: SPATConfig, count: int, seed: int) -> tuple[Any, Any, Any]:
        like = torch.zeros((), dtype=torch.float64, device=cls.device)
        label = like.new_tensor(np.eye(CLASSES)[[0] * count])
        draws: Any = OnHost(Draws(cls._generator(seed)))
        return mask_draws(draws, config.mask, label, like.new_zeros((count, 1, HEIGHT, WIDTH)))

    network = TorchNetwork
    uniform_like = torch.rand_like
