"""The core's text compiles as it stands: one graph, any batch size, the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import torch

import spatlib_tf.ops
import spatlib_torch.ops
from spatlib import Mask, SPATConfig, Threat
from spatlib.config import plain_pgd
from spatlib.core import mask, target
from spatlib.core.attack import adversarial
from spatlib.core.feasible import FeasibleSet, random_start
from spatlib.core.ops import rivals
from spatlib.core.survivors import Attacked, begun, climbed, placed, risen
from spatlib_torch import perturb
from spatlib_torch.attack import Draws, vjp
from spatlib_torch.ops import one_hot

from .landscapes import auto_ascend
from .record import agree, saw_dtypes

SCORES = ("min", "mean", "rms", "neutral")
NORMS = ("Linf", "L2", "L1")
MASKS = {
    "min": Mask(),
    "random": Mask(score="random"),
    "rms": Mask(score="rms", probes=1),
}
AXES = (1, 2, 3)
# Settings are made outside of graphs.
THREAT = plain_pgd(Threat(eps=0.1), 2)
ATTACK = SPATConfig(eps=0.3, steps=2, loss="trades")


def a_step(norm: str) -> Callable[..., Any]:
    threat, same = SPATConfig(eps=0.1, norm=norm), lambda like, _: like
    draws: Any = SimpleNamespace(uniform=same, normal=same)

    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        allowed = FeasibleSet(ops, x, threat)
        d = allowed.begin(random_start(ops, x, threat, draws))
        return allowed.at(allowed.step(d, grad, 0.02))

    return function


def a_mask(score: str) -> Callable[..., Any]:
    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        state = mask.begin(ops, x, score, 1)
        for k in range(3):
            state = mask.fold(ops, state, grad + k * x, score, 1)
        return mask.finish(ops, state, 0.5, 0.25)

    return function


def a_loss(loss: str) -> Callable[..., Any]:
    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        label, log_p = ops.argmax_one_hot(logits), ops.log_softmax(2 * logits)
        base = ops.log_softmax(logits) if loss == "trades" else None
        total = target.stalled(ops, label, log_p, 0.3)
        for guard in (True, False):
            cotangent = target.ascent(ops, base, label, log_p, 0.3, guard)
            total = total + ops.sum(cotangent * logits, axis=1)
        goal = ops.argmax_one_hot(rivals(ops, logits, label))
        for name in ("margin", "apgd-t"):
            value, cotangent = target.objective(ops, name, logits, label, goal)
            total = total + value + ops.sum(cotangent * logits, axis=1)
        outer = target.outer_loss(ops, loss, 6.0, label, logits, 2 * logits)
        return ops.sum(outer + total, axis=0)

    return function


def an_ascent(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
    allowed = FeasibleSet(ops, x, THREAT)

    def look(d: Any) -> tuple[Any, ...]:  # sum of grad d - 10 d^2
        value = ops.sum(grad * d - 10 * d * d, axis=AXES)
        return value, grad - 20 * d, value < 1, value < 2

    return auto_ascend(ops, look, 0 * x, allowed, 5)[0]


def by_hand(ops: Any, grad: Any, logits: Any) -> Callable[..., Any]:
    """vjp of the network z_k(x) = z_k + k sum(grad x) + z_k sum(x^2)."""

    def own_vjp(x: Any, **_: Any) -> tuple[Any, Callable[..., Any]]:
        slope = ops.sum(grad * x, axis=AXES)[:, None]
        square = ops.sum(x * x, axis=AXES)[:, None]
        order = rank(ops, logits)

        def pull(cotangent: Any, **_: Any) -> Any:
            linear = ops.sum(cotangent * order, axis=1)[:, None, None, None]
            return linear * grad + 2 * ops.sum(cotangent * logits, axis=1)[:, None, None, None] * x

        return logits + slope * order + square * logits, pull

    return own_vjp


def rank(ops: Any, logits: Any) -> Any:
    """(N, K) numbers of order 1, other ones for each class."""
    return ops.sign(logits) + ops.log_softmax(logits)


class Given:
    """Draws without a generator: the label's signs, no others, and one noise."""

    def __init__(self, ops: Any) -> None:
        self.ops = ops

    def signs(self, label: Any, count: int) -> Any:
        return (2 * label - 1)[None]

    def uniform(self, like: Any, purpose: str) -> Any:
        return self.ops.exp(like)


def a_shared_mask(config: Mask) -> Callable[..., Any]:
    def function(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
        vjp = by_hand(ops, grad, logits)
        return mask.shared_mask(ops, x, vjp, ops.argmax_one_hot, config, Given(ops))[0]

    return function


def an_attack(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
    own = by_hand(ops, grad, logits), ops.argmax_one_hot
    found = adversarial(ops, *own, x, ATTACK, (0.1 * grad, None), Given(ops))
    return found.x + (found.stalls + found.holes)[:, None, None, None]


def an_evaluation(ops: Any, x: Any, grad: Any, logits: Any) -> Any:
    own, label = by_hand(ops, grad, logits), ops.argmax_one_hot(logits)
    goal, net = ops.argmax_one_hot(-logits), Attacked(ops, own, lambda z: own(z)[0], THREAT)
    d, *seen = placed(net, x, label, random_start(ops, x, THREAT, Given(ops)))
    found = [seen, climbed(net._replace(name="targeted"), x, label, goal, d)]
    state = begun(net, x, label, goal, d)
    for _ in range(2):
        x_adv, state = risen(net, x, label, goal, 1, *state)
        found.append((x_adv, state.stands, state.sound))
    total = 0 * x
    for k, (x_adv, right, sound) in enumerate(found):
        known = 2.0**k * ops.cast(right & sound, like=x)
        total = total + x_adv + known[:, None, None, None]
    return total


FUNCTIONS = {
    "apgd": an_ascent,
    **{f"step {norm}": a_step(norm) for norm in NORMS},
    **{f"mask {score}": a_mask(score) for score in SCORES},
    **{f"loss {loss}": a_loss(loss) for loss in ("pgd", "trades", "mart")},
    **{f"shared mask {name}": a_shared_mask(config) for name, config in MASKS.items()},
    "attack": an_attack,
    "evaluation": an_evaluation,
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
    config = SPATConfig(eps=0.1, steps=2, loss="trades", smoothing=0.3)
    model = a_network()

    def attack(x: torch.Tensor, d: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        own = partial(vjp, model), partial(one_hot, y)
        return adversarial(spatlib_torch.ops, *own, x, config, (d, None), Draws(None)).x

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
    config = SPATConfig(eps=0.1, steps=2, loss="trades", mask=Mask())
    for x, first, y in map(problem, (3, 5, 8)):
        ours, expected = (perturb(each, x, y, config, start=first) for each in (compiled, model))
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    assert len(graphs) == 1


@pytest.mark.verifies("tf")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_tensorflow_traces_it_once_for_all_batch_sizes(name: str) -> None:
    traces = []
    shapes = ((None, 2, 4, 4), (None, 2, 4, 4), (None, 5))

    def function(*inputs: Any) -> Any:
        return FUNCTIONS[name](spatlib_tf.ops, *inputs)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.float64) for shape in shapes])
    def traced(*inputs: Any) -> Any:
        traces.append(1)
        return function(*inputs)

    compiled = tf.function(traced, jit_compile=True)  # anew for each size, by XLA
    for count in (3, 5, 8):
        inputs = [tf.constant(array) for array in arrays(count)]
        expected = function(*inputs)
        for way in (traced, compiled) if count == 5 else (traced,):
            # XLA reorders sums: a few ulp of the largest term.
            agree(way(*inputs), expected, rtol=1e-12, atol=1e-14)
    assert len(traces) == 1
