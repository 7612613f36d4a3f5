"""SPAT in a LightningModule: the training step returns `spat_loss`, validation attacks too.

Run: python examples/lightning_module.py
"""

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spatlib
from spatlib.config import plain_pgd
from spatlib_torch import perturb, spat_loss


class Robust(L.LightningModule):
    def __init__(self, net: nn.Module, config: spatlib.SPATConfig) -> None:
        super().__init__()
        self.net, self.config = net, config

    def on_train_start(self) -> None:
        torch.manual_seed(self.global_rank)  # each process draws starts of its own

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return spat_loss(self.net, *batch, self.config)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        x, y = batch
        logits = self.net(perturb(self.net, x, y, plain_pgd(self.config, 10)))
        accuracy = (logits.argmax(1) == y).float().mean()
        self.log("val_adv_accuracy", accuracy, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(epochs: int = 5, **settings: object) -> dict[str, float]:
    L.seed_everything(0)
    data = spatlib.load_data("digits")
    train, test = (
        TensorDataset(torch.as_tensor(x).movedim(-1, 1), torch.as_tensor(y))
        for x, y in (data.train, data.test)
    )
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2048, 10),
    )
    module = Robust(net, spatlib.SPATConfig(eps=0.15, steps=7))
    trainer = L.Trainer(max_epochs=epochs, **settings)
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True), DataLoader(test, 64))
    report = spatlib.evaluate(module.net, data, module.config, attacks="pgd")
    print(report)
    return report.metrics | {"val": trainer.callback_metrics["val_adv_accuracy"].item()}


if __name__ == "__main__":
    main()
