"""What benchmarks/accelerator.sh runs beside benchmarks.step, on an accelerator or, tiny, on a CPU.

    python -m benchmarks.accelerator launches --device cuda --batch 128 --out DIR
    python -m benchmarks.accelerator epochs --device cuda --model wrn34_10 --batch 512 --out DIR
    python -m benchmarks.accelerator pictures FILE DIR

``launches``: kernels that an eager training step starts, the time that the device works in it, and
what takes that time. ``epochs``: two of ``spatlib.train`` on 50,000 made-up pictures, timed by the
run itself (the first compiles). ``pictures``: DIR/pictures.npz, for spatlib.load_data, of a file
that it takes or of JPEG pictures: train_jpeg (their bytes end to end), train_offsets, train_labels,
and the same of test.
"""

from __future__ import annotations

import argparse
import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import spatlib
from spatlib import TrainConfig

from . import arms_torch
from .harness import hardware, save, seconds_of, table
from .setting import MASKS, SIZES, Setting
from .step import NETWORKS

SHOWN = 12  # kernels
CASES = [("Linf", mask) for mask in Setting().mask] + [("L2", "off")]


def launches(setting: Setting, out: Path) -> None:
    """One step of each case, eager, after two others."""
    content: dict[str, Any] = {"setting": setting._asdict(), "hardware": hardware(setting.device)}
    content |= arms_torch.facts(setting) | {"steps": {}}
    for norm, mask in CASES:
        own = setting._replace(norm=norm)
        step = arms_torch.synchronised(own, lambda o=own, m=mask: arms_torch.ours(o, m))()
        for _ in range(2):
            step()
        whole = min(seconds_of(step) for _ in range(3))
        kinds = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (setting.device != "cpu")]
        with profile(activities=kinds) as seen:
            step()
        wanted = DeviceType.CPU if setting.device == "cpu" else DeviceType.CUDA
        events = [e for e in seen.events() or () if e.device_type == wanted]
        events = [e for e in events if not e.is_user_annotation]
        by_name: dict[str, list[float]] = {}
        for event in events:
            kernel = setting.device != "cpu"  # on the CPU a call holds others: its own time
            time = event.self_device_time_total if kernel else event.self_cpu_time_total
            by_name.setdefault(event.name, []).append(time / 1e3)
        longest = sorted(by_name, key=lambda name: -sum(by_name[name]))[:SHOWN]
        content["steps"][f"{norm}, {mask}"] = {
            "ms": 1e3 * whole,
            "device_ms": sum(map(sum, by_name.values())),
            "launches": len(events),
            "longest": {n: [len(by_name[n]), sum(by_name[n])] for n in longest},
        }
        save(f"launches_{setting.device}_{setting.model}_{setting.batch}", content, out)
    heads = ("ms", "device_ms", "launches")
    rows = content["steps"].items()
    print(table({"step": name} | {h: f"{row[h]:.0f}" for h in heads} for name, row in rows))


def epochs(setting: Setting, out: Path, images: int) -> None:
    """Two of them, eager or compiled."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(images, 3, 32, 32), dtype=np.uint8)
    y = rng.integers(setting.classes, size=images)
    training = TrainConfig(
        epochs=2,
        batch_size=setting.batch,
        augment="crop-flip",
        device=setting.device,
        precision=setting.precision,
        compile=setting.compiled,
        progress=False,
    )
    how = "compiled" if setting.compiled else "eager"
    file = f"epochs_{setting.device}_{setting.model}_{setting.norm}_{setting.batch}_{how}"
    content: dict[str, Any] = {"setting": setting._asdict(), "hardware": hardware(setting.device)}
    content |= arms_torch.facts(setting) | {"images": images, "epochs": {}}
    work = arms_torch.gflop_per_image(setting)
    for mask in setting.mask:
        network, seconds = arms_torch.network(setting), list[float]()
        network = network.to(memory_format=torch.channels_last)

        def told(row: dict[str, Any], mask: str = mask, seconds: list[float] = seconds) -> None:
            seconds.append(row["seconds"])
            rate = work[mask] * images / seconds[-1] / 1e3
            content["epochs"][mask] = {"seconds": seconds, "tflops": rate}
            save(file, content, out)

        data, config = ((x, y), (x[:8], y[:8])), setting.config(mask)
        spatlib.train(network, data, config=config, training=training, on_epoch=told)
    for mask, row in content["epochs"].items():
        print(f"{file}, {mask}: {row['seconds'][-1]:.2f} s, {row['tflops']:.3g} TFLOP/s")


def pictures(source: Path, out: Path) -> None:
    """Decoded with Pillow."""
    from PIL import Image

    found = {}
    with np.load(source) as file:
        if "train_jpeg" not in file:
            (out / "pictures.npz").symlink_to(source)
            return
        for part in ("train", "test"):
            raw, ends = file[f"{part}_jpeg"].tobytes(), file[f"{part}_offsets"].tolist()
            each = (raw[a:b] for a, b in pairwise(ends))
            found[f"x_{part}"] = np.stack([np.asarray(Image.open(io.BytesIO(b))) for b in each])
            found[f"y_{part}"] = file[f"{part}_labels"].astype(np.int64)
    np.savez(out / "pictures.npz", **found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="what", required=True)
    made = kinds.add_parser("pictures")
    made.add_argument("source", type=Path)
    made.add_argument("out", type=Path)
    for what in ("launches", "epochs"):
        one = kinds.add_parser(what)
        one.add_argument("--model", choices=NETWORKS, default="preact_resnet18")
        one.add_argument("--norm", choices=SIZES, default="Linf")
        one.add_argument("--mask", nargs="+", choices=MASKS, default=["off"])
        one.add_argument("--device", default="cuda")
        one.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
        one.add_argument("--batch", type=int, default=128)
        one.add_argument("--steps", type=int, default=10)
        one.add_argument("--compiled", action="store_true")
        one.add_argument("--images", type=int, default=50_000)
        one.add_argument("--out", type=Path, required=True)
    options = vars(parser.parse_args())
    what, out = options.pop("what"), options.pop("out")
    if what == "pictures":
        pictures(options["source"], out)
        return
    images = options.pop("images")
    setting = Setting(**options)
    launches(setting, out) if what == "launches" else epochs(setting, out, images)


if __name__ == "__main__":
    main()
