"""The attack leaves the model, the generators and the inputs as they were, wherever it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import spatlib
from spatlib import Mask, SPATConfig
from spatlib_torch import perturb, shared_mask, spat_loss

SHAPE, CLASSES, EPS = (4, 3, 4, 4), 4, 0.1
MASKS: dict[str, dict[str, Any]] = {
    "off": {"mask": None},
    "min": {"mask": Mask()},
    "rms": {"mask": Mask(score="rms")},
    "three classes": {"mask": Mask(score="mean", classes=3)},
    "random": {"mask": Mask(score="random")},
}

over_masks = pytest.mark.parametrize("mask", MASKS)
over_random_masks = pytest.mark.parametrize("mask", ["rms", "three classes", "random"])
over_losses = pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
over_modes = pytest.mark.parametrize("mode", ["eval", "train"])


def network(dropout: float = 0.5, frozen: bool = True) -> nn.Module:
    """In training mode, but for a frozen BatchNorm layer, with a frozen weight and two grads."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Conv2d(6, 6, 3),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(24, CLASSES),
        )
        for _ in range(2):
            model(torch.rand(SHAPE))
    if frozen:
        model[5].eval()
        model[4].weight.requires_grad_(False)
    for layer in (model[0], model[4]):
        layer.weight.grad = torch.full_like(layer.weight, 0.5)
    return model


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.rand(SHAPE, generator=source, dtype=dtype)
    return x, torch.randint(CLASSES, (SHAPE[0],), generator=source)


def seeded(seed: int = 2) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def config(**settings: Any) -> SPATConfig:
    return SPATConfig(**{"eps": EPS, "steps": 3, "mask": Mask()} | settings)


def state(model: nn.Module) -> dict[str, Any]:
    """What belongs to the user, in a form that == compares."""
    return {
        "modes": [m.training for m in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "weights": [p.tolist() for p in model.parameters()],
        "grads": [
            None if p.grad is None else (id(p.grad), p.grad.tolist()) for p in model.parameters()
        ],
        "buffers": [(str(b.dtype), b.shape, b.tolist()) for b in model.buffers()],
        "identities": [(id(b), b.requires_grad, b.grad_fn) for b in model.buffers()],
    }


def evaluate(model: nn.Module, x: Tensor, y: Tensor, settings: SPATConfig) -> Any:
    return spatlib.evaluate(model, (x, y), settings, steps=3)


ATTACKS: dict[str, Callable[..., Any]] = {
    "perturb": perturb,
    "shared_mask": shared_mask,
    "evaluate": evaluate,
}


@over_masks
@over_modes
@over_losses
@pytest.mark.parametrize("attack", ATTACKS)
def test_state_comes_back(attack: str, loss: str, mode: str, mask: str) -> None:
    model = network()
    before = state(model)
    assert {True, False} == set(before["modes"]) == set(before["trainable"])
    ATTACKS[attack](model, *batch(), config(loss=loss, attack_mode=mode, **MASKS[mask]))
    assert state(model) == before


@over_modes
@pytest.mark.parametrize(
    ("attack", "call"),
    [
        ("perturb", 1),
        ("perturb", 2),
        ("perturb", 4),
        ("shared_mask", 1),
        ("evaluate", 1),
        ("evaluate", 4),
    ],
)
def test_state_comes_back_after_an_exception(attack: str, call: int, mode: str) -> None:
    model, calls = network(), []

    def fail(*_: Any) -> None:
        calls.append(None)
        if len(calls) == call:
            raise KeyError("boom")

    before, rng = state(model), torch.get_rng_state()
    model[6].register_forward_hook(fail)  # behind a BatchNorm layer that has run by then
    with pytest.raises(KeyError, match="boom"):
        ATTACKS[attack](model, *batch(), config(loss="trades", attack_mode=mode))
    assert state(model) == before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    if attack == "evaluate":
        assert torch.equal(torch.get_rng_state(), rng)


@over_masks
@over_losses
def test_loss_leaves_modes_and_grads_alone(loss: str, mask: str) -> None:
    model = network()
    before = state(model)
    spat_loss(model, *batch(), config(loss=loss, **MASKS[mask]))
    after = state(model)
    assert after.pop("buffers") != before.pop("buffers")  # the outer pass moves the statistics
    assert after == before


@pytest.mark.parametrize(("loss", "passes"), [("pgd", 1), ("trades", 2), ("mart", 2)])
@over_modes
def test_statistics_move_as_in_the_outer_passes_alone(loss: str, passes: int, mode: str) -> None:
    model, (x, y), settings = network(dropout=0.0), batch(), config(loss=loss, attack_mode=mode)
    expected = copy.deepcopy(model)
    x_adv = perturb(expected, x, y, settings, generator=seeded())
    for inputs in (x_adv,) if passes == 1 else (x, x_adv):  # clean first
        expected(inputs)
    tracked = int(model[1].num_batches_tracked)
    spat_loss(model, x, y, settings, generator=seeded())
    assert state(model)["buffers"] == state(expected)["buffers"]
    assert int(model[1].num_batches_tracked) == tracked + passes


@over_losses
@over_masks
def test_loss_gives_gradients_to_all_parameters_and_none_to_the_input(loss: str, mask: str) -> None:
    model, (x, y) = network(frozen=False), batch()
    model.zero_grad()
    x.requires_grad_()
    spat_loss(model, x, y, config(loss=loss, **MASKS[mask])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    assert x.grad is None


@over_modes
def test_batch_statistics_are_used_in_train_mode_only(mode: str) -> None:
    model, (x, y) = network(dropout=0.0).double(), batch(torch.float64)
    settings = config(attack_mode=mode)
    start = EPS * (2 * torch.rand(x.shape, dtype=x.dtype, generator=seeded()) - 1)
    whole = perturb(model, x, y, settings, start=start)
    half = perturb(model, x[:2], y[:2], settings, start=start[:2])
    assert torch.allclose(whole[:2], half, rtol=0, atol=1e-12) == (mode == "eval")


def test_frozen_batchnorm_stays_frozen_in_train_mode() -> None:
    model, (x, y) = network(dropout=0.0), batch()
    model[1].eval()
    results = [
        perturb(model, x, y, config(attack_mode=mode), start=torch.zeros_like(x))
        for mode in ("eval", "train")
    ]
    assert torch.equal(*results)


def test_dropout_is_active_in_train_mode_only() -> None:
    model, (x, y) = network(), batch()

    def results(mode: str) -> set[float]:
        settings = config(attack_mode=mode, mask=None, random_start="none")
        return {perturb(model, x, y, settings).sum().item() for _ in range(5)}

    assert len(results("eval")) == 1
    assert len(results("train")) > 1


def loss_of(*arguments: Any, start: Tensor | None = None, **source: Any) -> Tensor:
    """The loss of a batch that was perturbed from a start, or that is perturbed on the way."""
    if start is None:
        return spat_loss(*arguments, **source)
    return spat_loss(*arguments, x_adv=perturb(*arguments, start=start))


@over_masks
@over_modes
@pytest.mark.parametrize("source", ["start", "generator", "none"])
@pytest.mark.parametrize("function", [perturb, loss_of])
def test_global_generator_is_untouched_if_a_source_is_given(
    function: Callable[..., Any], source: str, mode: str, mask: str
) -> None:
    model, (x, y) = network(dropout=0.5 if function is perturb else 0.0), batch()
    settings = config(attack_mode=mode, **MASKS[mask])
    given = {"start": {"start": torch.zeros_like(x)}, "generator": {"generator": seeded()}}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = function(model, x, y, settings, **given.get(source, {}))
    assert torch.equal(torch.get_rng_state(), before) == (source != "none")
    torch.manual_seed(0)
    again = {"start": given["start"], "generator": {"generator": seeded()}}
    second = function(model, x, y, settings, **again.get(source, {}))
    if function is perturb:  # a loss also depends on the statistics that the first one moved
        assert torch.equal(first, second)


@over_random_masks
@over_modes
def test_a_random_mask_of_a_start_without_generator_is_always_the_same(
    mode: str, mask: str
) -> None:
    (x, y), settings = batch(), config(attack_mode=mode, **MASKS[mask])
    model, results = network(dropout=0.0), set()
    for seed in range(4):
        torch.manual_seed(seed)
        ours = perturb(model, x, y, settings, start=torch.zeros_like(x))
        results.add(tuple(ours.flatten().tolist()))
    assert len(results) == 1


@over_random_masks
def test_mask_with_a_generator_leaves_the_global_one_alone(mask: str) -> None:
    model, (x, y), settings = network(), batch(), config(**MASKS[mask])
    before = torch.get_rng_state()
    first, second = (shared_mask(model, x, y, settings, generator=seeded()) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    generator = seeded()
    masks = {
        tuple(shared_mask(model, x, y, settings, generator=generator).flatten().tolist())
        for _ in range(8)
    }
    assert len(masks) > 1


@pytest.mark.parametrize("grad", [None, 0.5])
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_inputs_are_unchanged(attack: str, requires_grad: bool, grad: float | None) -> None:
    (x, y), model = batch(), network()
    x[0, 0, 0, 0] = 1 + 1.2e-7  # clipped, but not in place
    values, labels = x.tolist(), y.tolist()
    x.requires_grad_(requires_grad)
    x.grad = None if grad is None else torch.full_like(x, grad)
    result = ATTACKS[attack](model, x, y, config())
    assert x.tolist() == values
    assert y.tolist() == labels
    assert x.requires_grad == requires_grad
    assert (x.grad is None) if grad is None else bool((x.grad == grad).all())
    assert attack == "evaluate" or not result.requires_grad
