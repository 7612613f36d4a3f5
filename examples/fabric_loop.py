"""SPAT in a loop by Lightning Fabric: the attack takes the module inside Fabric's wrapper.

In mixed precision the wrapper allows no backward pass but `fabric.backward`; an attack makes many.

Run: python examples/fabric_loop.py
"""

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spatlib
from spatlib_torch import perturb, spat_loss


def main(epochs: int = 5, precision: str = "32-true", **settings: object) -> dict[str, float]:
    fabric = Fabric(precision=precision, **settings)
    fabric.launch()
    fabric.seed_everything(0)
    data = spatlib.load_data("digits")
    x, y = map(torch.as_tensor, data.train)
    loader = DataLoader(TensorDataset(x.movedim(-1, 1), y), batch_size=64, shuffle=True)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 10),
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    config = spatlib.SPATConfig(eps=0.15, steps=7)

    model, optimizer = fabric.setup(net, optimizer)
    loader = fabric.setup_dataloaders(loader)
    own = torch.Generator(fabric.device).manual_seed(fabric.global_rank)  # of each process
    for epoch in range(1, epochs + 1):
        for inputs, labels in loader:
            with fabric.autocast():
                moved = perturb(net, inputs, labels, config, generator=own)
            loss = spat_loss(model, inputs, labels, config, x_adv=moved)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
        fabric.print(f"epoch {epoch}: loss {loss.item():.3f}")

    report = spatlib.evaluate(net, data, config, attacks="pgd")
    fabric.print(report)
    return report.metrics


if __name__ == "__main__":
    main()
