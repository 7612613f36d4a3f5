"""The engines: what each provides, and how one is found without importing the others."""

import importlib
import json
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

import numpy as np

from .config import SPATConfig, Threat, TrainConfig
from .errors import BackendError, ConfigError, asking, reading, require

BACKENDS = {"torch": "spatlib_torch.engine", "tf": "spatlib_tf.engine"}
ENTRY_POINTS = "spatlib.backends"  # group under which other packages register an engine module
OURS = "spatlib"  # the key of our metadata in files of tensors
Pull = Callable[[np.ndarray], np.ndarray]
Rows = list[dict[str, float]]


class Engine(Protocol):
    """One framework's training and evaluation (a module is enough)."""

    CHANNELS_FIRST: bool
    threads: Callable[[], int]  # how many compute on the CPU; 0: one per core

    # By name; network: shape of an input, classes, mean and std (per channel or None).
    def build_model(self, name: str, seed: int, **network: Any) -> Any: ...
    # DataError unless data fit threat and model, called once: arrays whole, else a batch. Of data
    # (x, y) x may be a view (spatlib.data.Rows): read it by its rows, x[k:n].
    def check(self, model: Any, data: Any, threat: Threat, training: TrainConfig) -> None: ...
    # Train in place as the spatlib.monitor.Monitor says, return the history.
    def fit(
        self, model: Any, data: Any, config: SPATConfig, monitor: Any, optimizer: Any = None
    ) -> Rows: ...
    # Train with the other processes of a launcher: the number of this one, and of how many.
    def together(self) -> AbstractContextManager[tuple[int, int]]: ...
    # All weights, as the content of a safetensors file. An engine may have precision(model, device)
    # too: what precision="auto" becomes there, else float32.
    def weights(self, model: Any) -> bytes: ...
    # Put back what weights() gave; DataError if it is that of another architecture.
    def load_weights(self, model: Any, content: bytes, source: str = "weights") -> None: ...
    # The first examples, x and y, at most count of them and a batch; x' and the mask: as arrays.
    def perturb(
        self, model: Any, data: Any, config: SPATConfig, count: int, seed: int = 0
    ) -> Iterator[np.ndarray]: ...
    # Logits (N, K) of arrays in the engine's layout, in inference mode.
    def logits(self, model: Any, x: Any, batch_size: int = 256) -> np.ndarray: ...
    # The logits at x, and the map from a cotangent (N, K) to the gradient in x, once.
    def vjp(self, model: Any, x: np.ndarray) -> tuple[np.ndarray, Pull]: ...
    # Of each batch labels (n,), number of classes, and by metric spatlib.core's Verdict.
    def survivors(
        self, model: Any, data: Any, evaluation: Any, batch_size: int, device: str | None
    ) -> Iterator[tuple[Any, int, dict[str, Any]]]: ...


@contextmanager
def by_itself() -> Iterator[tuple[int, int]]:
    """The ``together`` of an engine that trains in one process; BackendError in one of several."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        how = "call it in one process, for tf inside a tf.distribute strategy"
        raise BackendError(f"only backend 'torch' trains in several processes of torchrun: {how}")
    yield 0, 1


def pack(
    save: Any, empty: Any, raw: Callable[[Any], Any], tensors: Mapping[str, Any], meta: Any = None
) -> Iterator[bytes]:
    """A safetensors file of named tensors and JSON: its header, then tensor by tensor.

    In the header that safetensors' ``save`` makes of empty tensors, shapes and places are filled in
    (its order aligns all of them); ``raw`` gives the memory of a tensor when its turn has come.
    """
    kinds = {name: empty(0, dtype=tensor.dtype) for name, tensor in tensors.items()}
    header, end = json.loads(save(kinds, metadata={OURS: json.dumps(meta)})[8:]), 0
    order = [name for name in header if name in tensors]
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] |= {"shape": [*tensors[name].shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from (raw(tensors[name]) for name in order)


def unpack(load: Callable[[bytes], Any], content: bytes, source: str) -> tuple[dict[str, Any], Any]:
    """What :func:`pack` was given; DataError, which names ``source``, for anything else."""
    with reading(source, "choose weights or a checkpoint written by spatlib"):
        end = 8 + int.from_bytes(content[:8], "little")  # of the header, whose length comes first
        return load(content), json.loads(json.loads(content[8:end])["__metadata__"][OURS])


def load_extra(module: str, packages: str) -> Any:
    """Import what not all uses need; BackendError that names the packages if that fails."""
    try:
        return importlib.import_module(module)
    except BackendError:
        raise
    except ImportError as error:
        how = f"run pip install {packages}"
        raise BackendError(f"{module} cannot be imported ({error}): {how}") from error


def from_factory(option: str, given: str | None, seed: int) -> Any:
    """What the factory ``package.module:name`` returns, seeded; other texts as they are.

    For the command line only: what a file names is never imported.
    """
    if given is None or os.path.exists(given) or not re.fullmatch(r"[\w.]+:[\w.]+", given):
        return given
    sys.path.append(os.getcwd())  # the command spatlib, unlike python -m, does not look there
    name = f"--{option.replace('_', '-')} {given}"
    with asking(name, "be a factory that can be imported, package.module:name"):
        factory = pkgutil.resolve_name(given)
    require(callable(factory), name, "be a factory, to call without arguments", factory)
    for module, seed_all in (("torch", "manual_seed"), ("keras.utils", "set_random_seed")):
        if module in sys.modules:
            getattr(sys.modules[module], seed_all)(seed % 2**32)
    with asking(name, "return what it makes, called without arguments (try it in Python)"):
        found = factory()
    require(found is not None, name, "return what it makes", found)
    return found


def load_engine(name: str) -> Engine:
    """The engine called ``name``; BackendError if there is none or its framework is missing."""
    known, packages = _known(), {"torch": "torch", "tf": "tensorflow keras"}
    if not isinstance(name, str) or name not in known:
        raise BackendError(f"backend must be one of {', '.join(map(repr, known))}, got {name!r}")
    return cast(Engine, load_extra(known[name], packages.get(name, "what it needs")))


def engine_of(model: Any) -> Engine:
    """The engine of a model, by the package that its class is derived from; or ConfigError."""
    packages = {module.partition(".")[0]: name for name, module in _known().items()}
    packages |= {"torch": "torch", "keras": "tf"}
    for kind in type(model).__mro__:
        if name := packages.get(kind.__module__.partition(".")[0]):
            return load_engine(name)
    word = "model must be a torch.nn.Module or a keras.Model that returns logits"
    raise ConfigError(f"{word}, got {type(model).__name__}")


def _known() -> dict[str, str]:
    """The engine modules by name, those that other packages registered first."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | BACKENDS
