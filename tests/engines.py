"""The engines under test: one training step on a small network, in each framework's own words."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

import spatlib_torch
from spatlib import SPATConfig
from spatlib_torch import mask as torch_mask
from spatlib_torch.state import mask_generator

CHANNELS, HEIGHT, WIDTH, HIDDEN, CLASSES = 3, 2, 2, 7, 4
SIZE = CHANNELS * HEIGHT * WIDTH


def initial_weights(seed: int = 0) -> list[np.ndarray]:
    """w1 (D, H), b1 (H,), w2 (H, K), b2 (K,) in float64."""
    rng = np.random.default_rng(seed)
    shapes = ((SIZE, HIDDEN), (HIDDEN,), (HIDDEN, CLASSES), (CLASSES,))
    return [rng.normal(size=shape) for shape in shapes]


class TorchEngine:
    """float64 tanh MLP on (N, C, H, W), trained by spat_loss and torch.optim.SGD."""

    name = "torch"

    def __init__(self, weights: list[np.ndarray], lr: float = 0.1, momentum: float = 0.9) -> None:
        first, second = nn.Linear(SIZE, HIDDEN), nn.Linear(HIDDEN, CLASSES)
        self.model = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second).double()
        self.parameters = [first.weight, first.bias, second.weight, second.bias]
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(torch.as_tensor(value.T))
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=momentum)

    def weights(self) -> list[np.ndarray]:
        return [p.detach().numpy().T.copy() for p in self.parameters]

    def train_step(
        self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig, seed: int
    ) -> float:
        """x and start are (N, C, H, W)."""
        loss = spatlib_torch.spat_loss(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            start=torch.as_tensor(start), generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def shared_mask(
        self, x: np.ndarray, y: np.ndarray, config: SPATConfig, seed: int
    ) -> np.ndarray:
        """(N, P)."""
        mask = spatlib_torch.shared_mask(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return mask.flatten(1).numpy()

    def perturb(self, x: np.ndarray, y: np.ndarray, start: np.ndarray, config: SPATConfig,
                mask: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
        """(N, C, H, W); mask (N, 1, H, W)."""
        return spatlib_torch.perturb(
            self.model, torch.as_tensor(x), torch.as_tensor(y), config,
            start=torch.as_tensor(start), mask=None if mask is None else torch.as_tensor(mask),
        ).numpy()  # fmt: skip

    @staticmethod
    def draws(config: SPATConfig, count: int, seed: int) -> tuple[Any, Any]:
        """The (offsets, probes) that a call with this seed uses."""
        source = mask_generator(torch.Generator().manual_seed(seed), torch.device("cpu"))
        if config.share == "rms":
            shape = torch.Size((count, CLASSES))
            return None, torch_mask.draw_probes(config, shape, source).double().numpy()
        if config.mask_classes is not None:
            return torch_mask.draw_offsets(config, CLASSES, source), None
        return None, None


ENGINES = {"torch": TorchEngine}
