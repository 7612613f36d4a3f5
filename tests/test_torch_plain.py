"""Without smoothing and mask the attack is the base method's own loop, bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatlib import Mask, SPATConfig
from spatlib_torch import perturb, spat_loss

EPS, STEP, STEPS = 0.1, 0.03, 7
SHAPE, CLASSES = (4, 3, 8, 8), 5
OFF = (None, Mask(keep=1), Mask(floor=1))  # ways of switching the mask off

over_masks_off = pytest.mark.parametrize("off", OFF, ids=["none", "keep 1", "floor 1"])
over_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
over_formats = pytest.mark.parametrize(
    "memory_format", [torch.contiguous_format, torch.channels_last], ids=str
)


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """BatchNorm and Dropout, in training mode, with running statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.BatchNorm2d(8),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(72, CLASSES),
        ).to(dtype)
        for _ in range(3):
            model(torch.rand(SHAPE, dtype=dtype))
    return model.train()


def batch(
    dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, Tensor, Tensor]:
    """x often on a bound, y, and a start partly outside the ball."""
    source = torch.Generator().manual_seed(1)
    x = (1.4 * torch.rand(SHAPE, generator=source, dtype=dtype) - 0.2).clamp(0, 1)
    y = torch.randint(CLASSES, (SHAPE[0],), generator=source)
    start = 1.5 * EPS * (2 * torch.rand(SHAPE, generator=source, dtype=dtype) - 1)
    return (
        x.contiguous(memory_format=memory_format),
        y,
        start.contiguous(memory_format=memory_format),
    )


def by_hand(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    start: Tensor,
    method: str = "pgd",
    *,
    step: float = STEP,
    steps: int = STEPS,
    eps: float = EPS,
    training: bool = False,
    stale: bool = False,
) -> Tensor:
    """Projected gradient ascent in d-space; ``stale`` repeats the first gradient."""
    model = copy.deepcopy(model).train(training).requires_grad_(False)
    lower, upper = 0.0, 1.0
    clean = model(x).softmax(dim=1)
    d = torch.clamp(torch.clamp(start, -eps, eps), lower - x, upper - x)
    gradient = None
    for _ in range(steps):
        if gradient is None or not stale:
            iterate = torch.clamp(x + d, lower, upper).requires_grad_()
            logits = model(iterate)
            if method == "trades":
                loss = F.kl_div(F.log_softmax(logits, dim=1), clean, reduction="sum")
            else:
                loss = F.cross_entropy(logits, y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, iterate)
        d = torch.clamp(d + step * gradient.sign(), -eps, eps)
        d = torch.clamp(d, lower - x, upper - x)
    return torch.clamp(x + d, lower, upper)


def config(**settings: Any) -> SPATConfig:
    return SPATConfig(**{"eps": EPS, "step_size": STEP, "steps": STEPS, "smoothing": 0} | settings)


@over_masks_off
@over_dtypes
@over_formats
@pytest.mark.parametrize("loss", ["pgd", "mart"])
@pytest.mark.parametrize("guard", [True, False])
def test_plain_attack_is_madrys_loop_bit_for_bit(
    loss: str,
    guard: bool,
    off: Mask | None,
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> None:
    model = network(dtype).to(memory_format=memory_format)
    x, y, start = batch(dtype, memory_format)
    ours = perturb(model, x, y, config(loss=loss, guard=guard, mask=off), start=start)
    assert ours.dtype == dtype
    assert torch.equal(ours, by_hand(model, x, y, start))


@over_masks_off
@over_dtypes
@over_formats
@pytest.mark.parametrize("guard", [True, False])
def test_plain_trades_attack_is_the_kl_ascent_bit_for_bit(
    guard: bool, off: Mask | None, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    model = network(dtype).to(memory_format=memory_format)
    x, y, start = batch(dtype, memory_format)
    ours = perturb(model, x, y, config(loss="trades", guard=guard, mask=off), start=start)
    assert torch.equal(ours, by_hand(model, x, y, start, "trades"))


VARIANTS: dict[str, dict[str, Any]] = {
    "step size off by a thousandth": {"step": 1.001 * STEP},
    "one step less": {"steps": STEPS - 1},
    "descent": {"step": -STEP},
    "radius off by a thousandth": {"eps": 1.001 * EPS},
    "statistics of the batch": {"training": True},
    "gradient of the first step only": {"stale": True},
}


@pytest.mark.parametrize("loss", ["pgd", "trades"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_comparison_notices_a_wrong_loop(loss: str, variant: str) -> None:
    model, (x, y, start) = network(), batch()
    ours = perturb(model, x, y, config(loss=loss), start=start)
    assert torch.equal(ours, by_hand(model, x, y, start, loss))
    assert not torch.equal(ours, by_hand(model, x, y, start, loss, **VARIANTS[variant]))


def test_comparison_notices_another_objective() -> None:
    model, (x, y, start) = network(), batch()
    ours = {
        loss: perturb(model, x, y, config(loss=loss), start=start) for loss in ("pgd", "trades")
    }
    assert not torch.equal(ours["pgd"], ours["trades"])


@pytest.mark.parametrize(
    "settings", [{"smoothing": 0.3}, {"smoothing": 0.0, "mask": Mask()}], ids=str
)
def test_smoothing_and_mask_change_the_attack(settings: dict[str, Any]) -> None:
    model, (x, y, start) = network(), batch()
    ours = perturb(model, x, y, config(guard=False, **settings), start=start)
    assert not torch.equal(ours, by_hand(model, x, y, start))


PASSES: list[tuple[str, Mask | None, int]] = [
    *(("pgd", off, STEPS) for off in OFF),
    *(("trades", off, STEPS + 1) for off in OFF),
    ("mart", None, STEPS),
    *(("pgd", Mask(score=score), STEPS + 1) for score in ("min", "neutral", "rms")),
    ("trades", Mask(), STEPS + 1),  # one clean pass for both
]


@pytest.mark.parametrize(("loss", "mask", "passes"), PASSES, ids=str)
def test_the_clean_inputs_are_passed_once_and_only_where_they_are_needed(
    loss: str, mask: Mask | None, passes: int
) -> None:
    model, (x, y, start), calls = network(), batch(), []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    perturb(model, x, y, config(loss=loss, mask=mask), start=start)
    assert len(calls) == passes


@pytest.mark.parametrize("loss", ["pgd", "trades", "mart"])
def test_the_loss_of_examples_made_before_is_that_of_a_loss_that_makes_them(loss: str) -> None:
    model, (x, y, _) = network().eval(), batch()
    settings = config(loss=loss, mask=Mask(score="rms"))
    sources = [torch.Generator().manual_seed(3) for _ in range(2)]
    x_adv = perturb(model, x, y, settings, generator=sources[0])
    ours = spat_loss(model, x, y, settings, x_adv=x_adv)
    assert torch.equal(ours, spat_loss(model, x, y, settings, generator=sources[1]))
    assert not torch.equal(ours, spat_loss(model, x, y, settings, x_adv=x))


def strided(*tensors: Tensor) -> list[Tensor]:
    wide, views = tensors[0].new_zeros(2, 4, 3, 8, 16), []
    for store, value in zip(wide, tensors, strict=True):
        store[..., ::2] = value
        views.append(store[..., ::2])
    assert not any(view.is_contiguous() for view in views)
    return views


def test_strided_views_give_what_their_copies_give() -> None:
    model, (x, y, start) = network(), batch()
    at, first = strided(x, start)
    ours = perturb(model, at, y, config(), start=first)
    assert torch.equal(ours, perturb(model, x, y, config(), start=start))


@pytest.mark.parametrize(("norm", "eps"), [("L2", 1.0), ("L1", 5.0)])
def test_the_layout_of_an_input_is_of_no_matter_in_l2_and_l1(norm: str, eps: float) -> None:
    """To the rounding of sums and convolutions in another order."""
    model, (x, y, start) = network(torch.float64), batch(torch.float64)
    settings = config(norm=norm, eps=eps, step_size=eps / 4)
    expected = perturb(model, x, y, settings, start=start)
    assert (expected - x).abs().max() > 0.05
    last = (value.contiguous(memory_format=torch.channels_last) for value in (x, start))
    for at, first in (strided(x, start), last):
        assert not at.is_contiguous()
        ours = perturb(model, at, y, settings, start=first)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
