"""What makes training fast changes no result: channels_last, compiling, no wait for the device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from spatlib import ConfigError, Mask, SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib_torch import engine, ops, perturb, shared_mask

SHAPE, CLASSES, SIZE = (3, 8, 8), 3, 4
CONFIGS = {
    "every class": SPATConfig(eps=0.1, steps=2, mask=Mask()),
    "some classes, L2": SPATConfig(eps=0.1, steps=2, norm="L2", mask=Mask(classes=2)),
    "probes, TRADES": SPATConfig(eps=0.1, steps=2, loss="trades", mask=Mask(score="rms")),
    "L1, MART": SPATConfig(
        eps=0.5, steps=2, norm="L1", loss="mart", attack_mode="train", mask=Mask()
    ),
    "random mask": SPATConfig(eps=0.1, steps=2, mask=Mask(score="random")),
}
over_configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
CONFIG = CONFIGS["every class"]


def built(name: str = "preact_resnet18_narrow") -> nn.Module:
    return engine.build_model(name, 0, shape=SHAPE, classes=CLASSES, mean=None, std=None)


def tiny() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, CLASSES)
        )


def data(count: int = SIZE) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(1)
    x = torch.rand((count, *SHAPE), generator=source)
    return x, torch.randint(CLASSES, (count,), generator=source)


def training(**settings: Any) -> TrainConfig:
    return TrainConfig(
        **{"epochs": 1, "batch_size": SIZE, "progress": False, "schedule": "constant"} | settings
    )


def fit(model: nn.Module, count: int = SIZE, **settings: Any) -> list[dict[str, float]]:
    return engine.fit(model, data(count), CONFIG, Monitor(training(**settings)))


def is_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()


@pytest.mark.parametrize("name", ["small_cnn", "mnist_cnn", "preact_resnet18_narrow"])
def test_networks_by_name_run_in_channels_last_on_any_input(name: str) -> None:
    model = engine.build_model(name, 0, shape=(3, 16, 16), classes=3, mean=None, std=None)
    formats = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *seen: formats.append(is_last(seen[2])))
    model(torch.rand(2, 3, 16, 16))
    assert formats
    assert all(formats)


def test_networks_by_name_are_still_so_after_training_and_loading() -> None:
    model, other = built(), built()
    fit(model)
    engine.load_weights(other, engine.weights(model))
    for network in (model, other, copy.deepcopy(model)):
        kernels = [p for p in network.parameters() if p.ndim == 4 and p.shape[-1] > 1]
        assert kernels
        assert all(is_last(kernel) for kernel in kernels)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@over_configs
def test_channels_last_gives_the_contiguous_results_to_rounding(config: SPATConfig) -> None:
    """In float64, so that no comparison of the attack goes the other way by rounding."""
    fast, plain = built().double(), built().double().to(memory_format=torch.contiguous_format)
    assert is_last(next(fast.parameters()))
    assert next(plain.parameters()).is_contiguous()
    (x, y), results = data(), []
    for model in (fast, plain):
        seeded = partial(torch.Generator().manual_seed, 0)
        mask = shared_mask(model, x.double(), y, config, generator=seeded())
        x_adv = perturb(model, x.double(), y, config, generator=seeded())
        assert x_adv.is_contiguous()
        history = engine.fit(model, (x.double(), y), config, Monitor(training()))
        results.append((mask, x_adv, history[0]["loss"], *model.parameters()))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_network_of_ones_own_sees_and_keeps_its_own_format(memory: torch.memory_format) -> None:
    model, seen = tiny().to(memory_format=memory), []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fit(model)
    assert all(x.is_contiguous() for x in seen)
    assert len(seen) > 3
    assert is_last(model[0].weight) == (memory is torch.channels_last)


class Counting:
    """A compiler that runs the graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward  # type: ignore[no-any-return]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    return counting


def test_compiled_training_is_training(counted: Counting) -> None:
    model, expected = tiny(), tiny()
    fit(expected, 2 * SIZE, epochs=2, ema=0.9)
    assert counted.graphs == 0
    fit(model, 2 * SIZE, epochs=2, ema=0.9, compile=True)
    assert counted.graphs > 0
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert vars(model).keys() == vars(expected).keys()  # forward is that of its class again


def test_weights_have_their_own_names_while_it_runs(counted: Counting) -> None:
    model, watch, names = tiny(), Monitor(training(compile=True)), []
    watch.epoch = lambda history, model, weights, average: names.append(
        set(load(b"".join(weights())))
    )  # type: ignore[method-assign]
    engine.fit(model, data(), CONFIG, watch)
    assert counted.graphs > 0
    assert names == [set(model.state_dict())]


def test_no_more_graphs_after_the_first_epoch(counted: Counting) -> None:
    graphs, model, plan = [], tiny(), training(epochs=4, compile=True)
    watch = Monitor(plan)
    watch.epoch = lambda *_: graphs.append(counted.graphs)  # type: ignore[method-assign]
    count = 2 * SIZE + 3  # the last batch is smaller
    engine.fit(model, data(count), CONFIG, watch)
    assert len(graphs) == 4
    assert graphs[0] > 0
    assert graphs[0] == graphs[-1]


def test_an_exception_leaves_the_networks_own_forward(counted: Counting) -> None:
    model = tiny()

    def fail(*_: Any) -> None:
        if "forward" in vars(model):
            raise KeyError("boom")

    model[3].register_forward_hook(fail)
    with pytest.raises(KeyError, match="boom"):
        fit(model, compile=True)
    assert "forward" not in vars(model)


def test_what_its_owner_wrapped_is_not_compiled_again(
    counted: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.compile(tiny())
    before = dict(vars(model))
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled again"))
    fit(model, compile=True)
    assert vars(model).get("forward") is before.get("forward")
    assert counted.graphs > 0


class Inner(nn.Module):
    """A network of one's own class: torch compiles none of its own containers in place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny()

    def forward(self, x: Tensor) -> Any:
        return self.inner(x)


def test_what_its_owner_compiled_in_place_is_that_again_afterwards(counted: Counting) -> None:
    model, expected, own = Inner(), Inner(), Counting()
    model.compile(backend=own)
    before = dict(vars(model))
    fit(model, compile=True)
    fit(expected)
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert vars(model) == before
    graphs, ours = counted.graphs, own.graphs
    torch._dynamo.reset()
    model(data()[0])
    assert own.graphs > ours
    assert counted.graphs == graphs


def test_the_mask_goes_back_often_through_one_compiled_pass() -> None:
    """As torch's own compilers do it, which free what a backward pass has used."""
    torch._dynamo.reset()
    model, (x, y) = tiny().eval(), data()
    expected = shared_mask(model, x, y, CONFIG)
    fast = torch.compile(model, backend="aot_eager_decomp_partition")
    assert torch.equal(shared_mask(fast, x, y, CONFIG), expected)


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_compile_is_a_flag(value: Any) -> None:
    with pytest.raises(ConfigError, match="compile must be True or False"):
        TrainConfig(compile=value)


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's values: on an accelerator each would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in (
            "aten::_local_scalar_dense",
            "aten::is_nonzero",
            "aten::equal",
            "aten::nonzero",
        )
        return func(*args, **(kwargs or {}))


@over_configs
@pytest.mark.parametrize("settings", [{}, {"ema": 0.9, "clip_grad_norm": 1.0}], ids=str)
def test_a_step_reads_no_value_on_the_host(
    config: SPATConfig, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # On the CPU alone a loop asks whether it is done.
    repeat = ops.repeat
    monkeypatch.setattr(
        ops, "repeat", lambda body, times, state, _=None: repeat(body, times, state)
    )
    tolist = Tensor.tolist

    def reads(batches: int, epochs: int) -> int:
        with Reads() as seen, monkeypatch.context() as patched:

            def counted(value: Tensor) -> Any:  # which on the CPU goes past the dispatcher
                seen.count += 1
                return tolist(value)

            patched.setattr(Tensor, "tolist", counted)
            plan = training(epochs=epochs, **settings)
            engine.fit(tiny(), [data()] * batches, config, Monitor(plan))
        return seen.count

    # The first batch is checked, and every epoch reads its sums at its end.
    first, second = ((reads(n, 1), reads(n, 2)) for n in (2, 5))
    assert 0 < first[1] - first[0] == second[1] - second[0] < 5
    assert second[0] == first[0]
