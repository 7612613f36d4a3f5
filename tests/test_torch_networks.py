"""Networks as their owners have them: frozen, pruned, compiled, trained where autograd is off."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import spatlib
from spatlib import ConfigError, SPATConfig
from spatlib.monitor import Monitor
from spatlib.runs import BEST, LAST
from spatlib_torch import engine, perturb
from spatlib_torch.models import BatchNorm

from .looping import COUNT, arrays, fit, network, state, training

pytestmark = pytest.mark.usefixtures("without_pictures")
CONFIG = SPATConfig(eps=0.1, steps=2, random_start="none")


def statistics(model: nn.Module) -> list[Any]:
    return [buffer.tolist() for buffer in model.buffers()]


def test_what_its_owner_put_in_inference_mode_stays_so() -> None:
    model = network()
    model[1].eval()
    before = statistics(model)
    fit(arrays(), model)
    assert statistics(model) == before
    assert [module.training for module in model[:3]] == [True, False, True]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_layer_keeps_its_statistics(frozen: bool) -> None:
    model = network()
    model[1].requires_grad_(not frozen)
    before = statistics(model)
    fit(arrays(), model)
    assert (statistics(model) == before) == frozen
    assert model[1].training


def test_a_network_in_inference_mode_is_trained_as_any() -> None:
    one, other = network(), network().eval()
    assert fit(arrays(), one) == fit(arrays(), other)
    assert not other[1].training


def test_pruned_batchnorm_is_attacked_with_the_weights_it_has() -> None:
    (x, y), model = map(torch.as_tensor, arrays()), network()
    model[1] = BatchNorm(4).eval()
    prune.random_unstructured(model[1], "weight", amount=1)
    perturb(model, x, y, CONFIG)
    with torch.no_grad():
        model[1].weight_orig.mul_(-3)
    plain = copy.deepcopy(model)
    prune.remove(plain[1], "weight")
    networks = (model, model, plain)
    first, *others = [perturb(each, x, y, CONFIG) for each in networks]
    assert all(torch.equal(first, found) for found in others)
    reports = [spatlib.evaluate(each, (x, y), CONFIG, steps=2).metrics for each in networks]
    assert reports[0] == reports[1] == reports[2]


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "old weight_norm": lambda model: nn.utils.weight_norm(model[0]),
    "old spectral_norm": lambda model: nn.utils.spectral_norm(model[0]),
    "spectral_norm": lambda model: parametrizations.spectral_norm(model[0]),
    "pruned": lambda model: prune.random_unstructured(model[1], "weight", amount=2),
    "compiled": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", WRAPPED)
def test_weights_and_average_have_the_networks_own_names(name: str, tmp_path: Path) -> None:
    model, again = network(), network()
    wrapped = WRAPPED[name](model) if name == "compiled" else model
    for each in () if name == "compiled" else (model, again):
        WRAPPED[name](each)
    plan = training(epochs=1, ema=0.5, validation=4, lr=0.01)
    spatlib.train(wrapped, arrays(), config=CONFIG, training=plan, run_dir=tmp_path)
    files = [(tmp_path / file).read_bytes() for file in (BEST, LAST)]
    for content in files:
        assert set(load(content)) == set(model.state_dict())
    engine.load_weights(again, files[0])
    x = arrays()[0]
    assert (engine.logits(again, x) == engine.logits(model, x)).all()
    engine.load_weights(wrapped, files[1])
    assert state(model) != state(again)


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_training_where_autograd_is_off_is_training(off: Callable[[], Any]) -> None:
    one, other = network(), network()
    expected = fit(arrays(), one)
    with off():
        assert fit(arrays(), other) == expected
        assert not torch.is_grad_enabled()
        recipe = spatlib.RECIPES["digits"].change(epochs=1, steps=1, baseline=False, progress=False)
        spatlib.train(recipe=recipe, data=spatlib.load_data("digits", limit=8))


def test_a_network_made_in_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        model = network()
    x, y = map(torch.as_tensor, arrays())
    for call in (lambda: fit((x, y), model), lambda: perturb(model, x, y, CONFIG)):
        with pytest.raises(ConfigError, match="made outside torch"):
            call()


def test_an_optimizer_that_needs_a_closure_is_refused() -> None:
    model = network()
    before = state(model)
    with pytest.raises(ConfigError, match=r"step without a closure.*LBFGS"):
        fit(arrays(), model, optimizer=torch.optim.LBFGS)
    assert state(model) == before


def test_an_interrupted_validation_leaves_the_weights_of_the_training() -> None:
    model, seen = network(), list[Tensor]()

    def validate(net: nn.Module) -> dict[str, float]:
        seen.append(net[5].weight.detach().clone())
        raise KeyboardInterrupt

    plan = training(ema=0.9, batch_size=COUNT, schedule="constant", epochs=1)
    expected, _ = fit(arrays(), monitor=Monitor(plan), ema=0.0, **settings(plan))
    with pytest.raises(KeyboardInterrupt):
        fit(arrays(), model, Monitor(plan, validate), ema=0.9, **settings(plan))
    assert state(model) == expected
    assert len(seen) == 1


def settings(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("batch_size", "schedule", "epochs")}


def test_a_frozen_backbone_keeps_the_statistics_of_layers_without_weights() -> None:
    model = network()
    for norm in (nn.BatchNorm2d, nn.InstanceNorm2d):
        layers = nn.Sequential(model[0], norm(4, affine=False, track_running_stats=True))
        whole = nn.Sequential(layers.requires_grad_(False), *model[2:])
        before = statistics(whole)
        fit(arrays(), whole)
        assert statistics(whole) == before


def test_a_part_in_training_mode_is_a_choice_of_its_owner() -> None:
    model = network().eval()
    before = statistics(model)
    model[-1].train()
    fit(arrays(), model)
    assert statistics(model) == before
