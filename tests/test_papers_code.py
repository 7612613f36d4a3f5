"""Where the papers' own code, restated here, does the same, and where it differs.

docs/verification.md says it in words. Their code is in PyTorch, so is this.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spatlib import SPATConfig, Threat
from spatlib.core.feasible import FeasibleSet, random_start
from spatlib_torch import ops, perturb, spat_loss
from spatlib_torch.attack import Draws

CLASSES, SHAPE = 4, (8, 3, 2, 2)
EPS, STEP, STEPS = 0.1, 0.03, 4
BETA = 6.0


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Tanh(), nn.Flatten(), nn.Linear(24, CLASSES)
    return nn.Sequential(*layers).double()


def batch(low: float = 0.2, high: float = 0.8) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, labels, and noise of the scale that TRADES and MART start with."""
    source = torch.Generator().manual_seed(1)
    x, noise = (torch.randn(SHAPE, generator=source, dtype=torch.float64) for _ in range(2))
    return (low + (high - low) * x.sigmoid()), torch.arange(8) % CLASSES, 0.001 * noise


def config(loss: str) -> SPATConfig:
    plain = {"smoothing": 0.0, "step_size": STEP, "random_start": "gaussian"}
    return SPATConfig(eps=EPS, steps=STEPS, loss=loss, beta=BETA, **plain)


def their_attack(loss: str, model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """The loops of the codes of TRADES and MART, in inference mode."""
    model.eval()
    x_adv = x + noise
    for _ in range(STEPS):
        x_adv = x_adv.detach().requires_grad_()
        log_p = F.log_softmax(model(x_adv), dim=1)
        if loss == "trades":
            goal = F.kl_div(log_p, F.softmax(model(x), dim=1), reduction="sum")
        else:
            goal = F.nll_loss(log_p, y)
        x_adv = x_adv + STEP * torch.autograd.grad(goal, x_adv)[0].sign()
        x_adv = torch.clamp(torch.clamp(x_adv, x - EPS, x + EPS), 0, 1)
    model.train()
    return x_adv.detach()


def their_trades(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    natural = F.cross_entropy(model(x), y)
    log_p = F.log_softmax(model(x_adv), dim=1)
    robust = F.kl_div(log_p, F.softmax(model(x), dim=1), reduction="sum") / len(x)
    return natural + BETA * robust


def their_mart(z: Tensor, z_adv: Tensor, y: Tensor) -> Tensor:
    """Of the logits; each logarithm, and 1 - p_y, has a small constant in it."""
    p, p_adv = F.softmax(z, dim=1), F.softmax(z_adv, dim=1)
    first, second = p_adv.argsort(dim=1, descending=True)[:, :2].unbind(dim=1)
    rival = torch.where(first == y, second, first)
    boosted = F.cross_entropy(z_adv, y) + F.nll_loss(torch.log(1.0001 - p_adv + 1e-12), rival)
    divergence = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(dim=1)
    doubt = 1.0000001 - p.gather(1, y[:, None])[:, 0]
    return boosted + BETA * (divergence * doubt).mean()


@pytest.mark.parametrize("loss", ["trades", "mart"])
def test_attacks_are_theirs_where_no_input_is_at_a_bound(loss: str) -> None:
    model, (x, y, noise) = network(), batch()
    theirs = their_attack(loss, model, x, y, noise)
    ours = perturb(model.train(), x, y, config(loss), start=noise)
    assert (ours - theirs).abs().max() < 1e-15
    assert (ours - x).abs().max() > 0.9 * EPS


def inputs_of(model: nn.Module, call: Callable[[], Tensor]) -> list[Tensor]:
    """All that the network is shown."""
    seen: list[Tensor] = []
    with model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach())):
        call()
    return seen


@pytest.mark.parametrize("loss", ["trades", "mart"])
def test_their_first_gradient_is_taken_outside_the_range(loss: str) -> None:
    model, (x, y, noise) = network(), batch(0, 1)
    x = x.round()
    theirs = inputs_of(model, lambda: their_attack(loss, model, x, y, noise))
    ours = inputs_of(model, lambda: perturb(model, x, y, config(loss), start=noise))
    assert min(z.min() for z in theirs) < 0
    assert max(z.max() for z in theirs) > 1
    assert all(z.min() >= 0 and z.max() <= 1 for z in ours)


def test_the_loss_of_trades_is_theirs_after_two_passes_instead_of_three() -> None:
    """The third, of the clean batch again, moves the running means once more."""
    (x, y, noise), found = batch(), []
    x_adv = x + 30 * noise
    for three in (True, False):
        model = network().train()
        if three:
            loss = their_trades(model, x, x_adv, y)
        else:
            loss = spat_loss(model, x, y, config("trades"), x_adv=x_adv)
        loss.backward()
        found.append((loss, [p.grad for p in model.parameters()], model[1].running_mean))
    (theirs, their_grads, their_mean), (ours, our_grads, our_mean) = found
    assert abs(ours - theirs) < 1e-14
    for our, their in zip(our_grads, their_grads, strict=True):
        assert (our - their).abs().max() < 1e-13
    fresh, rate = network(), 0.1
    clean, moved = (fresh[0](z).mean(dim=(0, 2, 3)) for z in (x, x_adv))
    mean = (1 - rate) * rate * clean + rate * moved
    assert (our_mean - mean).abs().max() < 1e-15
    assert (their_mean - ((1 - rate) * mean + rate * clean)).abs().max() < 1e-15


def our_mart(z: Tensor, z_adv: Tensor, y: Tensor) -> Tensor:
    x = torch.stack([z, z_adv]).clamp(0, 1)  # not read: the network gives these logits
    given = iter((z, z_adv))

    class Given(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return next(given)

    return spat_loss(Given(), x[0], y, config("mart"), x_adv=x[1])


def test_the_loss_of_mart_is_theirs_up_to_their_constants() -> None:
    _, y, noise = batch()
    z, z_adv = (1000 * noise.flatten(1)[:, :8]).split(4, dim=1)
    assert float(our_mart(z, z_adv, y)) == pytest.approx(float(their_mart(z, z_adv, y)), rel=1e-3)


@pytest.mark.parametrize(("lead", "most"), [(1, 1), (15, 0.004), (30, 1e-8)])
def test_their_constants_take_the_gradient_from_confident_mistakes(
    lead: float, most: float
) -> None:
    """Of -log(1 - p'_rival), in the rival's logit: nearly 1 in the formula of the paper."""
    y, z = torch.tensor([0]), torch.tensor([[0.0, lead]], dtype=torch.float64)
    slopes = []
    for loss in (their_mart, our_mart):
        z_adv = z.clone().requires_grad_()
        total = torch.autograd.grad(loss(z, z_adv, y), z_adv)[0][0, 1]
        p = F.softmax(z, dim=1)[0, 1]  # that of cross-entropy; p = p', so that of KL is 0
        slopes.append(float(total - p))
    theirs, ours = slopes
    assert ours == pytest.approx(float(torch.sigmoid(torch.tensor(lead))), rel=1e-6)
    assert theirs <= most
    if lead == 1:
        assert theirs == pytest.approx(ours, rel=1e-3)


def test_shortened_then_clipped_is_not_the_nearest_point() -> None:
    """The L2 steps of most codes: onto the ball, then into [0, 1]; both ends are in the set."""
    source = torch.Generator().manual_seed(0)
    x = torch.rand((50, 12), generator=source, dtype=torch.float64).round(decimals=1)
    d = 0.5 * torch.randn((50, 12), generator=source, dtype=torch.float64)
    theirs = torch.clamp(x + d.renorm(p=2, dim=0, maxnorm=1.0), 0, 1) - x
    ours = FeasibleSet(ops, x, Threat(eps=1.0, norm="L2")).project(d)
    assert theirs.norm(dim=1).max() <= 1 + 1e-12
    near, far = ((v - d).norm(dim=1) for v in (ours, theirs))
    assert (near <= far + 1e-12).all()
    assert (near < 0.99 * far).any()
    free = ((x + d.renorm(p=2, dim=0, maxnorm=1.0) - 0.5).abs() <= 0.5).all(dim=1)
    assert 0 < free.sum() < 50
    assert (ours - theirs)[free].abs().max() < 1e-6  # renorm adds 1e-7 to the norm
    assert ours.norm(dim=1).mean() > theirs.norm(dim=1).mean() + 0.02


def test_l2_starts_fill_the_ball_and_theirs_a_sphere_or_a_cube() -> None:
    """AutoAttack's lie on the sphere; robustness' are noise in a cube of side 1, shortened."""
    config, x = SPATConfig(eps=0.9, norm="L2", bounds=(-9, 9)), torch.zeros(4000, 2).double()
    source = torch.Generator().manual_seed(0)
    ours = random_start(ops, x, config, Draws(source)).norm(dim=1) / 0.9
    cube = (torch.rand(x.shape, generator=source) - 0.5).renorm(p=2, dim=0, maxnorm=0.9)
    assert float((ours < 0.5).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert cube.norm(dim=1).max() <= 0.5**0.5
    wide = torch.zeros(50, 3072).double()
    assert random_start(ops, wide, config, Draws(source)).norm(dim=1).min() > 0.99 * 0.9
    assert np.allclose((torch.rand(wide.shape) - 0.5).renorm(2, 0, 0.9).norm(dim=1), 0.9)
