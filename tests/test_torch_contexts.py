"""The attack works in any autograd mode, precision, layout and wrapper, from starts it draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F

import spatlib
from spatlib import ConfigError, SPATConfig, TrainConfig
from spatlib_torch import perturb, shared_mask, spat_loss

from .test_draws import distance_from_uniform
from .test_torch_state import (
    CLASSES,
    EPS,
    MASKS,
    batch,
    config,
    network,
    over_losses,
    over_masks,
    over_random_masks,
    seeded,
)

NO_STEP = 1e-30  # a step that rounds to none: the result is the start
FREE: dict[str, Any] = {"bounds": (-10.0, 10.0), "step_size": NO_STEP, "steps": 1}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}


@over_masks
@over_losses
@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_results_are_the_same_where_gradients_are_off(
    mode: str, made_inside: bool, loss: str, mask: str
) -> None:
    model, (x, y), settings = network(), batch(), config(loss=loss, **MASKS[mask])
    start = 0.05 * torch.ones_like(x)
    budget = shared_mask(model, x, y, settings, generator=seeded())
    expected = perturb(model, x, y, settings, start=start, generator=seeded())
    with MODES[mode]():
        if made_inside:
            x, y, start = x.clone(), y.clone(), start.clone()
        mine = shared_mask(model, x, y, settings, generator=seeded())
        ours = perturb(model, x, y, settings, start=start, generator=seeded())
        from_mask = perturb(model, x, y, settings, start=start, mask=mine)
    assert torch.equal(mine, budget)
    assert torch.equal(ours, expected)
    assert torch.equal(from_mask, expected)
    assert not torch.equal(ours, x)


@over_losses
def test_a_frozen_model_is_attacked_alike(loss: str) -> None:
    model, (x, y) = network(), batch()
    expected = perturb(model, x, y, config(loss=loss), generator=seeded())
    model.requires_grad_(False)
    assert torch.equal(perturb(model, x, y, config(loss=loss), generator=seeded()), expected)
    assert not any(p.requires_grad for p in model.parameters())


@over_masks
def test_memory_format_is_kept_and_changes_no_start(mask: str) -> None:
    model, (x, y) = network(), batch()
    wide = config(step_size=NO_STEP, **MASKS[mask])
    expected = perturb(model, x, y, wide, generator=seeded())
    channels_last = x.contiguous(memory_format=torch.channels_last)
    ours = perturb(model, channels_last, y, wide, generator=seeded())
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert not ours.is_contiguous()
    assert expected.is_contiguous()
    assert torch.equal(ours, expected)
    assert not torch.equal(ours, x)


class BrainFloats(nn.Module):
    """A model with logits of less precision than its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(frozen=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).bfloat16()


@over_masks
@over_losses
@pytest.mark.parametrize("where", ["autocast", "logits"])
def test_low_precision_logits_give_full_precision_examples(
    where: str, loss: str, mask: str
) -> None:
    model = network(frozen=False) if where == "autocast" else BrainFloats()
    context: AbstractContextManager[Any] = (
        torch.autocast("cpu", torch.bfloat16) if where == "autocast" else nullcontext()
    )
    x, y = batch()
    model.zero_grad()
    with context:
        ours = perturb(model, x, y, config(loss=loss, **MASKS[mask]))
        loss = spat_loss(model, x, y, config(loss=loss, **MASKS[mask]))
    loss.backward()
    assert ours.dtype == torch.float32
    assert 0.5 * EPS < (ours - x).abs().max() <= EPS + 1e-6
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@over_masks
@over_losses
def test_float64_stays_float64(loss: str, mask: str) -> None:
    model, (x, y) = network().double(), batch(torch.float64)
    ours = perturb(model, x, y, config(loss=loss, **MASKS[mask]))
    assert ours.dtype == torch.float64
    assert ours.shape == x.shape
    assert not ours.requires_grad
    # Rounded to float32 on the way it would differ from eps by 1e-9 or so.
    largest = (ours - x).abs().max().item()
    assert largest == pytest.approx(EPS, rel=1e-13)


@pytest.mark.parametrize("shape", [(5, 7), (5, 2, 7), (5, 1, 7), (5, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@over_masks
def test_inputs_of_any_rank(mask: str, norm: str, shape: tuple[int, ...]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = int(np.prod(shape[1:]))
        model = nn.Sequential(nn.Flatten(), nn.Linear(size, 9), nn.Tanh(), nn.Linear(9, CLASSES))
    x, y = 0.2 + 0.6 * torch.rand(shape, generator=seeded()), torch.arange(5) % CLASSES
    settings = config(norm=norm, random_start="none", smoothing=0, **MASKS[mask])
    ours = perturb(model, x, y, settings)
    assert ours.shape == x.shape
    before, after = (F.cross_entropy(model(z), y, reduction="none") for z in (x, ours))
    assert (after > before).all()
    one_channel = shape if len(shape) == 2 else (shape[0], 1, *shape[2:])
    assert shared_mask(model, x, y, settings).shape == one_channel


@pytest.fixture
def process_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(("loss", "passes"), [("pgd", 1), ("trades", 2), ("mart", 2)])
def test_distributed_wrapper_sees_the_outer_passes_only(loss: str, passes: int) -> None:
    model, (x, y) = network(frozen=False), batch()
    model.zero_grad()
    wrapper, calls = nn.parallel.DistributedDataParallel(model), []
    wrapper.register_forward_pre_hook(lambda *_: calls.append(None))
    settings = config(loss=loss)
    ours = perturb(wrapper, x, y, settings, generator=seeded())
    shared_mask(wrapper, x, y, settings)
    assert not calls
    assert torch.equal(ours, perturb(model, x, y, settings, generator=seeded()))
    spat_loss(wrapper, x, y, settings).backward()
    assert len(calls) == passes
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def trained(model: nn.Module) -> list[list[float]]:
    plan = TrainConfig(epochs=2, batch_size=2, schedule="constant", progress=False)
    spatlib.train(model, batch(), config=config(), training=plan)
    return [value.flatten().tolist() for value in model.state_dict().values()]


@pytest.mark.usefixtures("process_group", "one_attack")
def test_a_distributed_wrapper_is_trained_as_its_module() -> None:
    wrapper = nn.parallel.DistributedDataParallel(network(frozen=False))
    wrapper.register_forward_pre_hook(lambda *_: pytest.fail("its gradients are added up twice"))
    assert trained(wrapper) == trained(network(frozen=False))


@pytest.mark.usefixtures("process_group")
def test_a_network_that_is_sharded_in_part_is_refused() -> None:
    model = network(frozen=False)
    part = next(child for child in model.children() if [*child.parameters()])
    fully_shard(part, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(ConfigError, match="FSDP is not supported"):
        trained(model)


@over_random_masks
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_starts_do_not_depend_on_the_masks_draws(norm: str, mask: str) -> None:
    model, (x, y) = network(), batch()
    # Half a gaussian start's radius is far above 0.001: neither budget nor ball cuts it.
    settings: dict[str, Any] = {
        "norm": norm,
        "eps": 1.0,
        "bounds": (-10, 10),
        "steps": 1,
        "step_size": NO_STEP,
        "random_start": "gaussian",
    }
    with_mask = perturb(model, x, y, SPATConfig(**settings, **MASKS[mask]), generator=seeded())
    without = perturb(model, x, y, SPATConfig(**settings), generator=seeded())
    other = perturb(model, x, y, SPATConfig(**settings), generator=seeded(3))
    assert torch.equal(with_mask, without)
    assert not torch.equal(other, without)


@over_random_masks
@pytest.mark.parametrize("source", ["generator and start", "generator", "global"])
def test_consecutive_calls_use_different_masks(source: str, mask: str) -> None:
    model, (x, y), generator = network(), batch(), seeded()
    start = "uniform" if "start" in source else "none"  # given or none: never drawn
    mask_settings = dataclasses.replace(MASKS[mask]["mask"], floor=0.0)
    settings = config(random_start=start, steps=1, mask=mask_settings)
    arguments: dict[str, Any] = {} if source == "global" else {"generator": generator}
    if source == "generator and start":
        arguments["start"] = torch.zeros_like(x)
    moved = [
        tuple((perturb(model, x, y, settings, **arguments) != x).flatten().tolist())
        for _ in range(8)
    ]
    assert len(set(moved)) > 1


def draw(settings: SPATConfig, count: int = 4000, size: int = 6) -> np.ndarray:
    """Starts (count, size), as results of steps of no length from the middle of a wide range."""
    model, x = nn.Linear(size, 3).double(), torch.zeros(count, size, dtype=torch.float64)
    y = torch.zeros(count, dtype=torch.int64)
    return perturb(model, x, y, settings, generator=seeded()).numpy()


# E[(|d_i| / ||d||)^2] for a uniform direction: on the L2 sphere and on the L1 sphere.
@pytest.mark.parametrize(
    ("norm", "order", "second_moment"), [("L2", 2, 1 / 6), ("L1", 1, 2 / (6 * 7))]
)
def test_starts_fill_the_ball(norm: str, order: int, second_moment: float) -> None:
    d = draw(SPATConfig(norm=norm, eps=2.0, **FREE))
    radius = np.linalg.norm(d, order, axis=1) / 2
    assert radius.max() <= 1 + 1e-12
    assert distance_from_uniform(radius ** d.shape[1]) < 0.04
    shares = np.abs(d) / (2 * radius[:, None])
    np.testing.assert_allclose((shares**2).mean(axis=0), second_moment, rtol=0.1)
    assert np.abs(np.sign(d).mean(axis=0)).max() < 0.08
    assert np.abs(np.corrcoef(d.T) - np.eye(d.shape[1])).max() < 0.08


def test_linf_starts_fill_the_ball() -> None:
    d = draw(SPATConfig(eps=2.0, **FREE))
    assert np.abs(d).max() <= 2
    assert (d != d.astype(np.float32)).any()  # not drawn in less precision than asked for
    assert max(distance_from_uniform(column / 4 + 0.5) for column in d.T) < 0.04
    assert np.abs(np.corrcoef(d.T) - np.eye(d.shape[1])).max() < 0.08


def test_gaussian_starts_have_their_scale_whatever_eps_is() -> None:
    d = draw(SPATConfig(eps=2.0, random_start="gaussian", **FREE))
    assert abs(d.mean()) < 5e-5
    assert d.std() == pytest.approx(0.001, rel=0.05)
    assert (d**4).mean() == pytest.approx(3e-12, rel=0.15)


def test_no_random_start_is_the_input_itself() -> None:
    assert np.abs(draw(SPATConfig(eps=2.0, random_start="none", **FREE))).max() <= NO_STEP
    assert np.abs(draw(SPATConfig(eps=2.0, **FREE))).max() > 1
