"""SPAT in a loop by Hugging Face's Accelerate: `spat_loss` takes what `prepare` returns.

Run: accelerate launch examples/accelerate_loop.py
"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spatlib
from spatlib_torch import spat_loss


def main(epochs: int = 5, precision: str = "no", cpu: bool = False) -> dict[str, float]:
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
    set_seed(0, device_specific=True)  # each process draws starts of its own
    data = spatlib.load_data("digits")
    x, y = map(torch.as_tensor, data.train)
    loader = DataLoader(TensorDataset(x.movedim(-1, 1), y), batch_size=64, shuffle=True)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    config = spatlib.SPATConfig(eps=0.15, steps=7)

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for epoch in range(1, epochs + 1):
        for inputs, labels in loader:
            loss = spat_loss(model, inputs, labels, config)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        accelerator.print(f"epoch {epoch}: loss {loss.item():.3f}")

    report = spatlib.evaluate(accelerator.unwrap_model(model), data, config, attacks="pgd")
    accelerator.print(report)
    return report.metrics


if __name__ == "__main__":
    main()
