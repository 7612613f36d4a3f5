"""The core's text compiles as it stands: one graph, any batch size, the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib_tf.ops
import spatlib_torch.ops
from spatlib import SPATConfig
from spatlib.core import apgd, losses, mask, projection, start, target
from spatlib.core import step as core_step
from spatlib_torch import perturb
from spatlib_torch.attack import Ascent, ascend

from .record import agree, saw_dtypes

SHARES = ("min", "mean", "rms", "neutral")
NORMS = ("Linf", "L2", "L1")


def a_step(norm: str) -> Callable[..., Any]:
    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        lower, upper = projection.feasible_box(ops, x, None, 0.1, (0.0, 1.0))
        d = start.uniform_in_ball(ops, x, x[:, :1, :1, :1], 0.1, norm)
        d = core_step.initial(ops, d, None, lower, upper, 0.1, norm)
        return core_step.step(ops, d, grad, None, lower, upper, eps=0.1, step_size=0.02, norm=norm)

    return function


def a_mask(share: str) -> Callable[..., Any]:
    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        state = mask.begin(ops, x, share, 1)
        for k in range(3):
            state = mask.fold(ops, state, grad + k * x, share, 1)
        return mask.finish(ops, state, 0.5, 0.25)

    return function


def a_loss(base: str) -> Callable[..., Any]:
    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        label, log_p = ops.argmax_one_hot(logits), ops.log_softmax(logits)
        b = ops.exp(log_p) if base == "trades" else label
        q = target.smoothed_target(ops, b, label, log_p, 0.3, True)
        stall = ops.sum(target.stalled(ops, label, log_p, 0.3), axis=0)
        outer = losses.outer_loss(ops, base, 6.0, label, logits, 2 * logits)
        ascent = target.objective(ops, log_p, q) + stall
        return ops.sum(outer + target.margin(ops, logits, label), axis=0) + ascent

    return function


def an_ascent(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
    lower, upper = projection.feasible_box(ops, x, None, 0.1, (0.0, 1.0))

    def look(d: Any) -> tuple[Any, Any, Any]:  # sum of grad d - 10 d^2
        value = ops.sum(grad * d - 10 * d * d, axis=(1, 2, 3))
        return value, grad - 20 * d, value < 1

    return apgd.auto_ascend(ops, look, 0 * x, lower, upper, eps=0.1, steps=5, norm="Linf")[0]


FUNCTIONS = {
    "apgd": an_ascent,
    **{f"step {norm}": a_step(norm) for norm in NORMS},
    **{f"mask {share}": a_mask(share) for share in SHARES},
    **{f"loss {base}": a_loss(base) for base in ("pgd", "trades", "mart")},
}


def arrays(count: int) -> list[np.ndarray]:
    """x and its gradient (N, C, H, W), logits (N, K)."""
    rng = np.random.default_rng(count)
    shape = (count, 2, 4, 4)
    return [rng.uniform(size=shape), rng.normal(size=shape), rng.normal(size=(count, 5))]


def check_one_graph(
    function: Callable[..., torch.Tensor],
    batches: Iterable[Sequence[torch.Tensor]],
    atol: float = 0.0,
) -> None:
    """It compiles without a break and once, and gives the same for batches of any size."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    for inputs in batches:
        result = compiled(*inputs)
        torch.testing.assert_close(result, function(*inputs), rtol=0, atol=atol)
        saw_dtypes((result.numpy(),))
    assert len(graphs) == 1


@pytest.mark.verifies("torch")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_compiles_it_to_one_graph_for_all_batch_sizes(name: str) -> None:
    def function(*inputs: torch.Tensor) -> torch.Tensor:
        return FUNCTIONS[name](spatlib_torch.ops, *inputs)

    check_one_graph(function, [[*map(torch.as_tensor, arrays(count))] for count in (3, 5, 8)])


def a_network() -> torch.nn.Module:
    """Frozen, in inference mode, as the attack has it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Conv2d(2, 3, 3),
            torch.nn.BatchNorm2d(3),
            torch.nn.Tanh(),
            torch.nn.Flatten(),
            torch.nn.Linear(12, 5),
        )
    return model.double().eval().requires_grad_(False)


def problem(count: int) -> list[torch.Tensor]:
    x, start, logits = map(torch.as_tensor, arrays(count))
    return [x, 0.1 * start, logits.argmax(dim=1)]


# All that an attack repeats. Of perturb itself dynamo can make no single graph: it will not trace
# Tensor.is_inference(), which prepare asks, once per call. And autograd.grad only if told to.
@pytest.mark.verifies("torch")
def test_torch_compiles_the_steps_of_the_attack_with_their_gradients_to_one_graph() -> None:
    config = SPATConfig(eps=0.1, steps=2, base="trades", smoothing=0.3, share="min")
    model = a_network()

    def attack(x: torch.Tensor, d: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        lower, upper = projection.feasible_box(spatlib_torch.ops, x, None, 0.1, (0.0, 1.0))
        ascent = Ascent(y, config, model(x), validate=False)
        return ascend(model, x, d, None, lower, upper, config, ascent)

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        check_one_graph(attack, map(problem, (3, 5, 8)), atol=1e-15)


@pytest.mark.verifies("torch")
def test_a_compiled_network_in_the_attack_keeps_one_graph_for_all_batch_sizes() -> None:
    graphs, model = [], a_network()

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    config = SPATConfig(eps=0.1, steps=2, base="trades", share="min")
    for x, first, y in map(problem, (3, 5, 8)):
        ours, expected = (perturb(each, x, y, config, start=first) for each in (compiled, model))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)  # eager: no BatchNorm kernel
    assert len(graphs) == 1


@pytest.mark.verifies("tf")
@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensorflow_traces_it_once_for_all_batch_sizes(name: str, jit_compile: bool) -> None:
    traces = []
    shapes = ((None, 2, 4, 4), (None, 2, 4, 4), (None, 5))

    def function(*inputs: Any) -> Any:
        return FUNCTIONS[name](spatlib_tf.ops, *inputs)

    @tf.function(
        input_signature=[tf.TensorSpec(shape, tf.float64) for shape in shapes],
        jit_compile=jit_compile,
    )
    def traced(*inputs: Any) -> Any:
        traces.append(1)
        return function(*inputs)

    for count in (3, 5, 8):
        inputs = [tf.constant(array) for array in arrays(count)]
        # XLA reorders sums: a few ulp of the largest term.
        agree(traced(*inputs), function(*inputs), rtol=1e-12, atol=1e-14)
    assert len(traces) == 1
