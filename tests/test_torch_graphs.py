"""Networks compiled one by one, and attacks replayed as a graph, which a stand-in records here."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

from spatlib import DataError, Mask, SPATConfig, TrainConfig
from spatlib.monitor import Monitor
from spatlib_torch import attack, engine, graphs, loop, perturb

SHAPE, CLASSES, SIZE = (3, 8, 8), 3, 4
CONFIGS = {
    "default": SPATConfig(eps=0.1, steps=2),
    "probes": SPATConfig(eps=0.4, norm="L2", steps=2, mask=Mask(score="rms")),
    "TRADES, some classes": SPATConfig(eps=0.1, steps=2, loss="trades", mask=Mask(classes=2)),
    "MART": SPATConfig(eps=0.1, steps=2, loss="mart"),
}


def network(width: int = 4, dropout: float = 0.5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(width)
        ends = nn.Dropout(dropout), nn.Flatten(), nn.Linear(36 * width, CLASSES)
        return nn.Sequential(nn.Conv2d(3, width, 3), norm, nn.Tanh(), *ends)


def fit(
    model: nn.Module, config: SPATConfig = CONFIGS["default"], batches: int = 6, **settings: Any
) -> list[Tensor]:
    """The weights after training on so many batches and a smaller one."""
    source = torch.Generator().manual_seed(1)
    x = torch.rand((batches * SIZE + 3, *SHAPE), generator=source)
    y = torch.randint(CLASSES, (len(x),), generator=source)
    plan = TrainConfig(**{"epochs": 2, "batch_size": SIZE, "progress": False} | settings)
    engine.fit(model, (x, y), config, Monitor(plan))
    return [value.detach() for value in model.state_dict().values()]


def test_each_network_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten in a row, of which torch would by itself leave the last uncompiled."""
    compiled, original, counts = [], torch.compile, []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    monkeypatch.setattr(torch, "compile", lambda *a, **kw: original(*a, backend=backend, **kw))
    config = SPATConfig(eps=0.1, steps=1)
    for width in range(CLASSES, CLASSES + 10):
        model, before = nn.Sequential(nn.Flatten(), nn.Linear(192, width)), len(compiled)
        fit(model, config, batches=1, epochs=1, compile=True)
        counts.append(len(compiled) - before)
    assert counts == 10 * [2]  # for the attack and for the step of the weights


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("loss", ["pgd", "trades"])
def test_what_surrounds_the_network_is_three_graphs_for_all_steps(
    norm: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, original, sizes = [], torch.compile, []

    def compiler(graph: Any, inputs: Any) -> Callable[..., Any]:
        made.append(graph)
        sizes.extend(value for value in inputs if isinstance(value, torch.SymInt))
        return graph.forward  # type: ignore[no-any-return]

    # As far as Inductor's own compilations go: what comes before it fixes some numbers too.
    backend = aot_autograd(fw_compiler=compiler)
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", lambda *a, **kw: original(*a, backend=backend, **kw))
    source, model = torch.Generator(), network().double().to(memory_format=torch.channels_last)
    fast, plain = (attack.calls_of(compile=compiles) for compiles in (True, False))
    # Fewer examples than at first run as they are; of budgets the second compiles for all others.
    for count, eps in [(SIZE, 0.4)] * 2 + [(2, 0.4)] + [(SIZE, 0.03 * i) for i in range(1, 5)]:
        config = SPATConfig(eps=eps, norm=norm, steps=3, loss=loss)
        shape = (count, *SHAPE)
        x = torch.rand(shape, generator=source.manual_seed(1), dtype=torch.float64)
        y = torch.arange(count) % CLASSES
        ours, expected = (
            calls.attacked(model, x, y, config, source=attack.Draws(source.manual_seed(2)))
            for calls in (fast, plain)
        )
        assert len(made) == (3 if eps == 0.4 else 4)
        # A loop in a graph does not ask whether it is done: more rounds change the last bits.
        torch.testing.assert_close(ours.x, expected.x, rtol=0, atol=1e-12)
        assert torch.equal(ours.stalls, expected.stalls)
        assert not torch.equal(ours.x, x)
    x = torch.rand((2 * SIZE, *SHAPE), generator=source, dtype=torch.float64)
    y = torch.arange(len(x)) % CLASSES
    attack.calls_of(compile=True).attacked(model, x, y, config, source=attack.Draws(source))
    assert len(made) == 4 + 3
    assert not sizes  # another training's shapes leave all of them fixed


class Casts(TorchDispatchMode):
    """Counts the casts of float32 to bfloat16."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        low = (kwargs or {}).get("dtype") == torch.bfloat16
        self.count += low and func.name() == "aten::_to_copy"
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_for_all_steps_of_an_attack() -> None:
    counts = []
    for steps in (1, 2, 3):
        with Casts() as seen:
            config = SPATConfig(eps=0.1, steps=steps)
            fit(network(), config, batches=1, epochs=1, precision="bfloat16")
        counts.append(seen.count)
    # Of two steps on batches, the inputs of two layers in each.
    assert counts[2] - counts[1] == counts[1] - counts[0] == 2 * 2


def test_logits_of_weights_alone_are_refused_under_autocast() -> None:
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Any:
            return self.inner(x.detach())

    x, y = torch.rand(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(DataError, match="model must return logits that autograd can follow"),
    ):
        perturb(Detached(), x, y, CONFIGS["default"])


class Recorder:
    """Stands in for a CUDA graph: a function that runs again, into the tensors of its first run."""

    def __init__(self) -> None:
        self.captures, self.replays, self.compiled = 0, 0, 0

    def compile(self, function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        self.compiled += 1
        return function

    def __call__(self, run: Callable[[], Any], source: torch.Generator) -> Callable[[], Any]:
        self.captures += 1
        with torch.random.fork_rng():  # a capture draws nothing
            made = run()

        def replay() -> Any:
            self.replays += 1
            for tensor, value in zip(made, run(), strict=True):
                tensor.copy_(value)
            return made

        return replay


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """For CUDA graphs, with networks that run as they are written."""
    found = Recorder()

    class Here(graphs.Replayed):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            self.on = arguments[-1]

    monkeypatch.setattr(torch, "compile", found.compile)
    monkeypatch.setattr(loop, "Replayed", Here)
    monkeypatch.setattr(graphs, "recorded", found)
    return found


recorder = pytest.fixture(stand_in)


def alike(
    make: Callable[[], nn.Module] = network,
    config: SPATConfig = CONFIGS["default"],
    **settings: Any,
) -> None:
    """Training is the same to the bit where attacks are replayed."""
    expected = fit(make(), config, **settings)
    assert all(map(torch.equal, fit(make(), config, compile=True, **settings), expected))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_replayed_attacks_are_the_attacks(config: SPATConfig, recorder: Recorder) -> None:
    alike(config=config)
    # In each epoch all but the first two batches and the smaller one at the end.
    assert (recorder.captures, recorder.replays) == (2, 2 * (6 - 2))
    assert recorder.compiled == 1 + 3  # the network, and what surrounds it


def test_a_budget_that_grows_is_captured_anew(recorder: Recorder) -> None:
    alike(epochs=3, eps_warmup=2)
    assert (recorder.captures, recorder.replays) == (3, 3 * (6 - 2))


class Averaging(nn.Module):
    """It sets a new running mean in each training pass, which a graph would not know."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.r = network(), nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        if self.training:
            self.r = 0.9 * self.r + x.detach().mean()
        return self.inner(x + self.r)


def test_no_graph_is_replayed_where_the_model_has_new_tensors(recorder: Recorder) -> None:
    alike(Averaging)
    assert recorder.replays == 0


def test_attacks_in_training_mode_are_not_captured(recorder: Recorder) -> None:
    alike(config=SPATConfig(eps=0.1, steps=2, attack_mode="train"))
    assert recorder.captures == 0
    assert recorder.compiled == 1


def test_what_cannot_be_captured_runs_as_it_is_after_a_warning(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(run: Callable[[], Any], source: torch.Generator) -> None:
        run()
        raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(graphs, "recorded", refused)
    expected = fit(network())
    with pytest.warns(UserWarning, match="called a synchronizing CUDA operation") as seen:
        ours = fit(network(), compile=True)
    assert all(map(torch.equal, ours, expected))
    assert len(seen) == 1
    assert recorder.replays == 0


def test_a_training_holds_no_memory_when_it_has_ended() -> None:
    """Without a search for cycles, before which memory of a GPU might run out."""
    made: list[weakref.ref[Any]] = []

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        sgd = torch.optim.SGD(parameters)
        made.append(weakref.ref(sgd))
        return sgd

    x, y = torch.rand(SIZE, *SHAPE), torch.zeros(SIZE, dtype=torch.int64)
    training = TrainConfig(epochs=1, batch_size=SIZE, progress=False)
    gc.disable()
    try:
        engine.fit(network(), (x, y), CONFIGS["default"], Monitor(training), optimizer)
        assert [ref() for ref in made] == [None]
    finally:
        gc.enable()
