"""The examples run, with the packages they are written for, and train robust networks."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
LOOPS: list[tuple[str, dict[str, Any]]] = [
    ("torch_loop", {"epochs": 2}),
    ("keras_fit", {"epochs": 2}),
    ("accelerate_loop", {"epochs": 2, "precision": "bf16", "cpu": True}),
    ("fabric_loop", {"epochs": 2, "accelerator": "cpu"}),
    ("fabric_loop", {"epochs": 2, "accelerator": "cpu", "precision": "bf16-mixed"}),
    ("lightning_module", {"epochs": 2, "precision": "bf16-mixed", **QUIET}),
    ("hf_trainer", {"epochs": 4, "use_cpu": True}),
]


def run(example: str, *arguments: Any, **settings: Any) -> dict[str, float]:
    return runpy.run_path(str(EXAMPLES / f"{example}.py"))["main"](*arguments, **settings)


@pytest.mark.parametrize(("example", "settings"), LOOPS)
def test_example_trains_a_robust_network(
    example: str,
    settings: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where some would write
    metrics = run(example, **settings)
    assert metrics["pgd20"] > 0.4  # an ordinary network of this kind ends below 0.3
    assert "PGD-20" in capsys.readouterr().out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of many sizes, FOLDER/{train,test}/CLASS/*, in which one channel is brighter."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        for part, count in (("train", 24), ("test", 8)):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(120, size=(*rng.integers(12, 40, 2), 3), dtype=np.uint8)
                pixels[..., channel] += 100
                kind = "png" if i % 2 else "jpg"
                Image.fromarray(pixels).save(root / part / name / f"{i}.{kind}")
    return root


@pytest.mark.parametrize("example", ["imagefolder_torch", "imagefolder_keras"])
def test_a_folder_of_pictures_of_many_sizes_is_learnt(
    example: str, folder: Path, tmp_path: Path
) -> None:
    cache = {"cache_dir": str(tmp_path)} if example == "imagefolder_torch" else {}
    metrics = run(example, str(folder), epochs=6, **cache)
    assert metrics["clean"] > 0.9
    assert metrics["pgd20"] > 0.8
