"""Models of any engine made of one function of the primitives, and how to evaluate them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

import spatlib
from spatlib import Report, Threat
from spatlib.core import apgd
from spatlib.core.feasible import FeasibleSet
from spatlib.core.ops import Array, Ops

from .backends import BACKENDS
from .engines import ENGINES

EPS = 0.1
Landscape = Callable[[Ops, Array, Callable[[Any], Array]], Array]  # ops, x, array -> logits


def auto_ascend(
    ops: Ops, look: apgd.Look, d: Array, allowed: FeasibleSet, steps: int
) -> tuple[Array, Array, Array]:
    """All steps of Auto-PGD: the d found, whether the label stood, whether all was finite."""
    state = apgd.begin(ops, look, d, allowed.threat.eps)
    for count in apgd.stretches(steps):
        state = apgd.rise(ops, look, state, allowed, count)
    return apgd.found(ops, state), state.stands, state.sound


def model(name: str, logits: Landscape) -> Any:
    """A network of the framework; ``array`` makes a tensor of the dtype of x."""
    backend = BACKENDS[name]()

    def function(x: Array) -> Array:
        return logits(backend.ops, x, lambda v: backend.ops.cast(backend.array(np.array(v)), x))

    return ENGINES[name].network(function)


def measure(
    name: str, network: Any, x: Any, y: Any, attacks: Any, norm: str = "Linf", **settings: Any
) -> Report:
    array, threat = BACKENDS[name]().array, Threat(eps=EPS, norm=norm)
    data = (array(np.float32(x)), array(np.int64(y)))
    return spatlib.evaluate(network, data, threat, attacks=attacks, **settings)


def ridges(ops: Ops, x: Array, array: Callable[[Any], Array]) -> Array:
    """Logits of 4 classes on 16 pixels, for which the start decides much."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=(16, 40)), rng.normal(size=(40, 4))
    return (1 - 2 / (1 + ops.exp(2 * (x @ array(3 * first))))) @ array(second)


@cache
def rugged(name: str) -> Any:
    return model(name, ridges)


@cache
def points(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and the labels that the network gives them, but for every tenth; never class 3."""
    x = np.random.default_rng(4).uniform(size=(150, 16)).astype(np.float32)
    y = ENGINES[name].module.logits(rugged(name), x).argmax(axis=1)
    x, y = x[y < 3], y[y < 3]
    y[::10] = (y[::10] + 1) % 3
    return x, y


@cache
def noise(name: str) -> Any:
    """An attack of half of the ball, by numbers from the framework's own generator."""
    uniform_like, ops = ENGINES[name].uniform_like, BACKENDS[name]().ops

    def noise(network: Any, x: Array, y: Array) -> Array:
        return ops.clip(x + EPS * (uniform_like(x) - 0.5), 0.0, 1.0)

    return noise
