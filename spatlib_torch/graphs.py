"""A network compiled by itself, and the attack of a training step replayed as one CUDA graph."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spatlib.errors import cause

WARM = 3  # calls before a capture: they compile, choose kernels, and the last shows what waits
Tensors = tuple[Tensor, ...]


def compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass compiled for inputs shaped like the first; it runs as it is on others."""

    def own(x: Tensor) -> Any:
        return forward(x)

    # torch compiles one code object 8 times at most, and all networks of a class have theirs.
    own.__code__ = own.__code__.replace()
    fast, shape = torch.compile(own, dynamic=False), None

    def chosen(x: Tensor, *others: Any, **named: Any) -> Any:
        nonlocal shape
        shape = shape or x.shape
        alike = x.shape == shape and not (others or named)
        return fast(x) if alike else forward(x, *others, **named)

    return chosen


class Replayed:
    """A function of (generator, setting, tensors...), if ``on`` replayed as one CUDA graph.

    Only for tensors like those of the first call; for another setting it is captured anew. What
    cannot be captured runs as it is after one warning. The next call overwrites what is returned.
    """

    def __init__(self, function: Callable[..., Tensors], device: torch.device, on: bool) -> None:
        self.function, self.device, self.on = function, device, on and capturable(device)
        self.source = torch.Generator(device)
        self.form: Any = None
        self.setting: Any = None

    def __call__(self, seed: int, setting: Any, *batch: Tensor) -> Tensors:
        run = partial(self.function, self.source.manual_seed(seed), setting)
        form = [(t.shape, t.stride(), t.dtype) for t in batch]
        self.form = self.form or form
        if not self.on or form != self.form:
            return run(*batch)
        if setting != self.setting:
            self.setting, self.calls, self.replay = setting, 0, None
        self.calls += 1
        if self.calls < WARM:
            return run(*batch)
        try:
            if self.calls == WARM:
                with waiting_refused():
                    return run(*batch)
            if self.replay is None:
                self.kept = [t.clone() for t in batch]
                self.replay = recorded(partial(run, *self.kept), self.source)
        except RuntimeError as error:
            what = f"the attack runs as it is, not as one CUDA graph ({cause(error)})"
            warnings.warn(f"{what}: look for what reads values in the model", stacklevel=2)
            self.on, self.source = False, torch.Generator(self.device)
            return self(seed, setting, *batch)
        for kept, new in zip(self.kept, batch, strict=True):
            kept.copy_(new)
        return self.replay()


def capturable(device: torch.device) -> bool:
    """Whether it has CUDA graphs."""
    return device.type == "cuda"


@contextmanager
def waiting_refused() -> Iterator[None]:
    """RuntimeError where the host would wait for the device, which ends a capture badly."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def recorded(run: Callable[[], Tensors], source: torch.Generator) -> Callable[[], Tensors]:
    """What does all that ``run`` does on the device, and returns the same tensors anew."""
    graph, device = torch.cuda.CUDAGraph(), source.device
    graph.register_generator_state(source)
    # Where a capture fails, torch leaves its stream and its mark on the global generator.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                made = run()
        except RuntimeError:
            whole = torch.cuda.default_generators[source.device.index]
            whole.graphsafe_set_state(torch.Generator(device))
            raise

    def replay() -> Tensors:
        graph.replay()
        return made

    return replay
