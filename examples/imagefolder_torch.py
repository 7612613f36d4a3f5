"""A folder of pictures in PyTorch, by Hugging Face `datasets`: FOLDER/{train,test}/CLASS/*.png.

Run: python examples/imagefolder_torch.py FOLDER
"""

import sys
from typing import Any

import torch
from datasets import load_dataset
from PIL import ImageOps

import spatlib
from spatlib_torch.models import small_cnn

SIZE = 16, 16


def resized(row: dict[str, Any]) -> dict[str, Any]:
    return {"image": ImageOps.fit(row["image"].convert("RGB"), SIZE)}


def main(folder: str, epochs: int = 10, cache_dir: str | None = None) -> dict[str, float]:
    parts = load_dataset("imagefolder", data_dir=folder, cache_dir=cache_dir)
    classes = parts["train"].features["label"].names
    parts = parts.map(resized)  # once, into the library's cache
    # Items (image, label) of bytes (3, H, W), each read from the disk when it is asked for.
    train = parts["train"].with_format("torch")
    # Few pictures may as well be in memory: (N, H, W, 3), as Keras takes them.
    arrays = parts["test"].with_format("numpy")[:]
    test = arrays["image"].transpose(0, 3, 1, 2), arrays["label"]
    torch.manual_seed(0)
    result = spatlib.train(
        small_cnn((3, *SIZE), len(classes)),
        (train, test),
        config=spatlib.SPATConfig(eps=8 / 255, steps=5),
        training=spatlib.TrainConfig(epochs=epochs, batch_size=32, lr=0.05),
    )
    return result.metrics


if __name__ == "__main__":
    main(sys.argv[1])
