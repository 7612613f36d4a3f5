"""Peak memory of spatlib.train above data of a gigabyte, held out in part, in each form of them.

``python -m benchmarks.memory torch arrays``: an engine, and a form of FORMS. Counted is what the
process itself has taken; pages of a file that the system keeps for it are not.
"""

import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import spatlib

GIGABYTE, SIDE, CLASSES = 10**9, 32, 3
FORMS = ("arrays", "memmap", "array-like", "tensor", "items")


class Like:
    """Rows behind the interface of an array, as h5py and zarr have it."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype, self.chunks = array, array.shape, array.dtype, (1,)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return self.array[rows]


class Items(Like):
    """Examples (x, y) by their number."""

    def __getitem__(self, index: int) -> Any:
        return np.array(self.array[index]), index % CLASSES


def taken() -> int:
    """Bytes of this process that are in memory and in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    own = [line.split()[1] for line in lines if line.startswith(("RssAnon:", "RssShmem"))]
    return 1024 * sum(map(int, own))


def network(engine: str) -> Any:
    if engine == "torch":
        from torch import manual_seed, nn

        manual_seed(0)
        return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, CLASSES))
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    last = layers.Flatten(), layers.Dense(CLASSES)
    return keras.Sequential([layers.Input((SIDE, SIDE, 3)), layers.AveragePooling2D(8), *last])


def formed(x: np.ndarray, engine: str, form: str) -> Any:
    y = np.arange(len(x)) % CLASSES
    if form == "items":
        return Items(x)
    if form == "array-like":
        return Like(x), y
    if form == "tensor" and engine == "torch":
        from torch import tensor

        return tensor(x), y
    if form == "tensor":
        from tensorflow import constant

        return constant(x), y
    return (x if form == "memmap" else np.array(x)), y


def main(engine: str, form: str) -> None:
    one = (3, SIDE, SIDE) if engine == "torch" else (SIDE, SIDE, 3)
    count, model, rng = GIGABYTE // (4 * 3 * SIDE**2), network(engine), np.random.default_rng(0)
    plan: dict[str, Any] = {"epochs": 1, "batch_size": 256, "progress": False, "validation": 100}
    how = {"config": spatlib.SPATConfig(eps=0.1, steps=1), "backend": engine}
    how["training"] = spatlib.TrainConfig(**plan)
    test = rng.random((600, *one), dtype=np.float32), np.arange(600) % CLASSES
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, "x.npy")
        x = np.lib.format.open_memmap(file, "w+", np.float32, (count, *one))
        for row in range(0, count, 1000):
            x[row : row + 1000] = rng.random(x[row : row + 1000].shape, dtype=np.float32)
        x.flush()
        data = formed(np.load(file, mmap_mode="r"), engine, form)
        spatlib.train(model, (test, test), **how)  # all that is imported and traced
        before, peak, over = taken(), 0, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not over.is_set():
                peak = max(peak, taken())
                time.sleep(0.005)

        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        spatlib.train(model, (data, test), **how)
        over.set()
        watching.join()
    print(f"{engine} {form}: {(peak - before) / GIGABYTE:.2f} of the data")


if __name__ == "__main__":
    main(*sys.argv[1:])
