"""What decides the bits of a training beside its seed: deterministic algorithms, and precision."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorflow.python.framework import config as op_determinism  # which alone can switch it off
from torch import nn

import spatlib
from spatlib import ConfigError, TrainConfig
from spatlib_torch import engine

from .running import CONFIG, TRAINING, content, network, saved, train, weights
from .test_resume import images
from .test_resume import network as network_of

pytestmark = pytest.mark.usefixtures("without_pictures", "one_attack")
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
ALONE = replace(TRAINING, deterministic=True)


def in_force() -> tuple[Any, ...]:
    cudnn = torch.backends.cudnn
    mode = torch.get_deterministic_debug_mode()
    return mode, cudnn.deterministic, cudnn.benchmark, os.environ.get(CUBLAS)


class Watch(nn.Module):
    """Notes what is in force, and the dtype of its outputs, while it trains; can fail then."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.inner, self.fails, self.seen, self.dtypes = network(), fails, set(), set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z: torch.Tensor = self.inner(x)
        if self.training:
            self.seen.add(in_force())
            self.dtypes.add(z.dtype)
            assert not self.fails
        return z


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("own", [None, ":16:8"])
def test_deterministic_algorithms_are_in_force_in_the_training_alone(
    own: str | None, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.delenv(CUBLAS, raising=False)
    if own is not None:
        monkeypatch.setenv(CUBLAS, own)
    torch.set_deterministic_debug_mode("warn")
    before, model = in_force(), Watch(fails)
    try:
        if fails:
            with pytest.raises(AssertionError):
                train(None, model=model, training=ALONE)
        else:
            train(None, model=model, training=ALONE)
        assert in_force() == before == (1, False, True, own)
    finally:
        torch.set_deterministic_debug_mode("default")
    assert model.seen == {(2, True, False, own or ":4096:8")}


def test_on_a_cpu_the_bits_are_the_same_and_a_run_keeps_to_its_choice(own: Any) -> None:
    assert weights(train(None, training=ALONE).model) == weights(own[0].model)
    before, words = content(own[1]), r"training\.deterministic = True instead of False"
    with pytest.raises(ConfigError, match=words):
        train(own[1], resume=True, training=ALONE)
    assert content(own[1]) == before


def test_keras_trains_with_deterministic_ops() -> None:
    told: list[bool] = []

    def tell(row: dict[str, Any]) -> None:
        told.append(op_determinism.is_op_determinism_enabled())

    how: dict[str, Any] = {"backend": "tf", "config": CONFIG, "on_epoch": tell}
    plan = TrainConfig(epochs=1, batch_size=80, progress=False)
    try:
        for wanted in (False, True):
            training = replace(plan, deterministic=wanted)
            spatlib.train(network_of("tf"), images("tf"), training=training, **how)
    finally:
        op_determinism.disable_op_determinism()
    assert told == [False, True]


def test_auto_is_bfloat16_where_a_processor_has_it_and_stays_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    auto, named = replace(TRAINING, precision="auto", epochs=1), {"model": "small_cnn"}
    x, y = images("torch")
    for name in ("amx_bf16", "avx512_bf16", "avx512_f"):
        found = "float32" if name == "avx512_f" else "bfloat16"
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        directory = tmp_path / name
        result = train(directory, data=(x, y), training=auto, **named)
        assert result.training.precision == saved(directory)["training"]["precision"] == found
        same = train(None, data=(x, y), training=replace(auto, precision=found), **named)
        assert weights(result.model) == weights(same.model)
    longer = replace(auto, epochs=2)  # the first goes on where there is no AMX
    run: dict[str, Any] = {"data": (x, y), "resume": True}
    for training in (longer, replace(longer, precision="bfloat16")):
        result = train(tmp_path / "amx_bf16", training=training, **run, **named)
        assert (result.training.precision, len(result.history)) == ("bfloat16", 2)
    with pytest.raises(ConfigError, match=r"training\.precision = 'float32' instead of 'bfloat16'"):
        train(tmp_path / "amx_bf16", training=TRAINING, **run, **named)


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_a_network_of_ones_own_computes_in_bfloat16_if_told_to(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it would round inputs and logits, which networks by name do not."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    model, expected = Watch(), "float32" if precision == "auto" else "bfloat16"
    result = train(None, model=model, training=replace(TRAINING, precision=precision, epochs=1))
    assert result.training.precision == expected
    assert model.dtypes == {getattr(torch, expected)}


def test_auto_is_bfloat16_where_a_gpu_has_units_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "placed", lambda model, device: torch.device(device))
    for units in (True, False):  # emulated it is slow
        supported = lambda including_emulation=True, units=units: including_emulation or units  # noqa: E731
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert engine.precision("small_cnn", "cuda") == ("bfloat16" if units else "float32")
    assert engine.precision("small_cnn", "mps") == "float32"
