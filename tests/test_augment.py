"""Random crops and flips, against a loop over pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib_tf.attack
import spatlib_tf.batches
import spatlib_torch.loaders
from spatlib_torch.attack import Draws

HEIGHT, WIDTH, CHANNELS, LOWER = 6, 5, 2, -0.5
Augmented = Callable[[np.ndarray, str, int], np.ndarray]


def torch_augmented(x: np.ndarray, kind: str, seed: int) -> np.ndarray:
    images = torch.tensor(x).permute(0, 3, 1, 2)
    generator = torch.Generator().manual_seed(seed)
    return (
        spatlib_torch.loaders.augment(images, kind, LOWER, Draws(generator))
        .permute(0, 2, 3, 1)
        .numpy()
    )


def tf_augmented(x: np.ndarray, kind: str, seed: int) -> np.ndarray:
    return tf_graph(tf.constant(x), kind, seed).numpy()


ENGINES: dict[str, Augmented] = {
    "torch": torch_augmented,
    "tf": tf_augmented,
    "tf.function": lambda x, kind, seed: tf.function(tf_graph)(x, kind, seed).numpy(),
}


def tf_graph(x: Any, kind: str, seed: int) -> Any:
    draws = spatlib_tf.attack.Draws(tf.stack([seed, 0]))
    return spatlib_tf.batches.augment(x, kind, LOWER, draws)


def moved(image: np.ndarray, down: int, across: int, *, flipped: bool) -> np.ndarray:
    """The image (H, W, C) with pixel (i, j) taken from (i + down, j + across), then mirrored."""
    result = np.full_like(image, LOWER)
    for i in range(HEIGHT):
        for j in range(WIDTH):
            if 0 <= i + down < HEIGHT and 0 <= j + across < WIDTH:
                result[i, WIDTH - 1 - j if flipped else j] = image[i + down, j + across]
    return result


def versions(image: np.ndarray) -> dict[bytes, tuple[int, int, bool]]:
    """Every version of an image, by its bytes; the first of equal ones."""
    shifts = range(-4, 5)
    found: dict[bytes, tuple[int, int, bool]] = {}
    for flipped in (False, True):
        for down in shifts:
            for across in shifts:
                version = moved(image, down, across, flipped=flipped)
                found.setdefault(version.tobytes(), (down, across, flipped))
    return found


def batch(count: int, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).random((count, HEIGHT, WIDTH, CHANNELS)).astype(dtype)


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
@pytest.mark.parametrize("framework", ENGINES)
def test_every_version_of_an_image_comes_and_no_other(framework: str, kind: str) -> None:
    image = batch(1)[0]
    known = versions(image)
    assert len(known) == 162, "no two versions of this image are equal"
    wanted = {shift for shift in known.values() if kind == "crop-flip" or not shift[2]}
    result = ENGINES[framework](np.stack([image] * 4000), kind, 1)
    drawn = [known[one.tobytes()] for one in result]
    assert set(drawn) == wanted
    counts = np.unique([str(shift) for shift in drawn], return_counts=True)[1]
    assert counts.max() < 2.2 * counts.mean(), "none is preferred"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("framework", ENGINES)
def test_each_image_stays_in_its_place_and_the_seed_decides(framework: str, dtype: type) -> None:
    x = batch(50, dtype)
    results = [ENGINES[framework](x, "crop-flip", seed) for seed in (3, 3, 4)]
    for result in results:
        assert result.dtype == dtype
        shifts = [versions(image)[one.tobytes()] for image, one in zip(x, result, strict=True)]
        assert len(set(shifts)) > 30, "each image has a draw of its own"
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert np.array_equal(ENGINES[framework](x, "none", 3), x)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_torch_keeps_memory_format_and_dtype(memory: Any, dtype: torch.dtype) -> None:
    x = torch.rand(3, 3, 8, 8).to(dtype=dtype, memory_format=memory)
    result = spatlib_torch.loaders.augment(x, "crop-flip", 0.0, Draws(torch.Generator()))
    assert result.dtype == dtype
    assert result.stride() == x.stride()
    assert not torch.equal(result, x)


@pytest.mark.parametrize("kind", ["crop", "crop-flip"])
def test_the_rows_of_a_process_move_as_in_the_batch_of_all(kind: str) -> None:
    source, x = torch.Generator(), torch.rand(6, 3, 8, 8)
    whole = spatlib_torch.loaders.augment(x, kind, LOWER, Draws(source.manual_seed(0)))
    ours = Draws(source.manual_seed(0), 2, len(x))
    assert torch.equal(spatlib_torch.loaders.augment(x[2:5], kind, LOWER, ours), whole[2:5])
    assert not torch.equal(whole, x)
