"""A network compiled by itself, and a function of batches replayed as one CUDA graph."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from itertools import count
from threading import RLock
from typing import Any
from weakref import WeakMethod

import torch
from torch import Tensor, nn

from spatlib.errors import cause

WARM = 2  # calls alike before a capture, which compile and let cuDNN choose
Tensors = tuple[Tensor, ...]
_stance, _names = RLock(), count()


@contextmanager
def uncompiled(when: bool = True) -> Iterator[None]:
    """Networks run as they are written; in all threads, of which one at a time may ask for it."""
    if not when:
        yield
        return
    with _stance, torch.compiler.set_stance("force_eager"):
        yield


def compiled(function: Callable[..., Any], dynamic: bool | None = False) -> Callable[..., Any]:
    """The function compiled for tensors shaped like the first; it runs as it is on others.

    With ``dynamic`` None a number that changes, such as a budget, costs one more compilation.
    """

    def own(*arguments: Any) -> Any:
        return function(*arguments)

    # torch compiles a code object at most 8 times in a process, and remembers by its name what
    # has changed: each network gets its own.
    own.__code__ = own.__code__.replace(co_name=f"own_{next(_names)}")
    fast, known = torch.compile(own, dynamic=dynamic), None

    def chosen(*arguments: Any, **named: Any) -> Any:
        nonlocal known
        shapes = [getattr(value, "shape", None) for value in arguments]
        known = known or shapes
        return (fast if shapes == known and not named else function)(*arguments, **named)

    return chosen


class Replayed:
    """A method of (generator, setting, tensors...) over a model, replayed as one CUDA graph.

    Only if ``on``, after a few calls with the same setting, like tensors and the model's tensors
    where they were. What cannot be captured runs as it is after one warning. The next call
    overwrites what is returned.
    """

    def __init__(
        self, function: Callable[..., Tensors], model: nn.Module, device: torch.device, on: bool
    ) -> None:
        # Whose method it is has this for its own: without a cycle its memory is freed with it.
        self.function: Any = WeakMethod(function)
        self.model, self.source = model, torch.Generator(device)
        self.on, self.key = on and device.type == "cuda", None

    def __call__(self, seed: int, setting: Any, *batch: Tensor) -> Tensors:
        source = self.source.manual_seed(seed)
        run: Callable[..., Tensors] = partial(self.function(), source, setting)
        if not self.on:
            return run(*batch)
        held = [t.data_ptr() for t in (*self.model.parameters(), *self.model.buffers())]
        key: Any = setting, held, [(t.shape, t.stride(), t.dtype) for t in batch]
        if key != self.key:
            self.key, self.calls, self.replay = key, 0, None
        self.calls += 1
        if self.calls <= WARM:
            return run(*batch)
        if self.replay is None:
            self.kept = [t.clone() for t in batch]
            try:
                self.replay = recorded(partial(run, *self.kept), self.source)
            except RuntimeError as error:
                what = f"the attack runs as it is, not as one CUDA graph ({cause(error)})"
                warnings.warn(f"{what}: look for what reads values in the model", stacklevel=2)
                self.on, self.source = False, torch.Generator(self.source.device)
                return self(seed, setting, *batch)
        for kept, new in zip(self.kept, batch, strict=True):
            kept.copy_(new)
        self.source.manual_seed(seed)
        return self.replay()


def recorded(run: Callable[[], Tensors], source: torch.Generator) -> Callable[[], Tensors]:
    """What does all that ``run`` does on the device, into the same tensors; or RuntimeError."""
    graph, aside = torch.cuda.CUDAGraph(), _aside(source.device)
    here, before = torch.cuda.current_stream(source.device), torch.cuda.get_sync_debug_mode()
    # Once more as it is, so that libraries take the memory that they keep outside the graph's.
    aside.wait_stream(here)
    with warnings.catch_warnings(action="ignore"):  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")  # what waits would leave a capture half open
    try:
        with torch.cuda.stream(aside), torch.random.fork_rng([source.device]):
            run()
    finally:
        torch.cuda.set_sync_debug_mode(before)
        here.wait_stream(aside)
    with torch.cuda.stream(here):  # and back on it, where a capture fails
        graph.register_generator_state(source)
        try:
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                made = run()
        except RuntimeError:
            # The global generator counts on as in a capture until one has ended well.
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=aside):
                torch.zeros(1, device=source.device)
            raise

    def replay() -> Tensors:
        graph.replay()
        return made

    return replay


@cache
def _aside(device: torch.device) -> torch.cuda.Stream:
    """One for all captures, as cuBLAS keeps memory for each stream that it has seen."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
