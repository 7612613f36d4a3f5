"""SPAT by Hugging Face's Trainer, of a network of theirs: `compute_loss` is `spat_loss`.

Run: python examples/hf_trainer.py
"""

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainingArguments

import spatlib
from spatlib_torch import spat_loss

CONFIG = spatlib.SPATConfig(eps=0.15, steps=7)


class RobustTrainer(Trainer):
    loss_is_scaled_for_ga = False  # it is the mean of a batch, to be divided among accumulated ones

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        **rest: object,
    ) -> object:
        if return_outputs:  # an evaluation, which is of clean inputs here
            return super().compute_loss(model, inputs, return_outputs, **rest)
        return spat_loss(model, inputs["pixel_values"], inputs["labels"], CONFIG)


def main(epochs: int = 5, **settings: object) -> dict[str, float]:
    torch.manual_seed(0)
    data = spatlib.load_data("digits")
    train, test = (
        [{"pixel_values": image, "labels": label} for image, label in zip(x, y, strict=True)]
        for x, y in ((torch.as_tensor(x).movedim(-1, 1), y) for x, y in (data.train, data.test))
    )
    sizes = {"num_channels": 1, "embedding_size": 32, "hidden_sizes": [32], "depths": [1]}
    model = ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=10, **sizes))
    plan = {"num_train_epochs": epochs, "per_device_train_batch_size": 64, "learning_rate": 2e-3}
    arguments = TrainingArguments(save_strategy="no", report_to="none", **plan, **settings)
    trainer = RobustTrainer(model, arguments, train_dataset=train, eval_dataset=test)
    trainer.train()
    print(trainer.evaluate())
    report = spatlib.evaluate(model, data, CONFIG, attacks="pgd")
    print(report)
    return report.metrics


if __name__ == "__main__":
    main()
