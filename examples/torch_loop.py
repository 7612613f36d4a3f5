"""SPAT in a PyTorch training loop of your own: one line differs from ordinary training.

Run: python examples/torch_loop.py
"""

import numpy as np
import torch
from torch import nn

import spatlib
import spatlib_torch


def main(epochs: int = 5) -> dict[str, float]:
    torch.manual_seed(0)
    data = spatlib.load_data("digits")  # images (N, H, W, C)
    x, y = (torch.as_tensor(part) for part in data.train)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x.movedim(-1, 1), y), batch_size=64, shuffle=True
    )
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    config = spatlib.SPATConfig(eps=0.15, steps=7)

    for epoch in range(1, epochs + 1):
        losses = []
        for inputs, labels in loader:
            loss = spatlib_torch.spat_loss(model, inputs, labels, config)  # the one line
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}")

    report = spatlib.evaluate(model, data, config)
    print(report)
    return report.metrics


if __name__ == "__main__":
    main()
