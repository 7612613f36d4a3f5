"""What an attack changes on a module or a generator and puts back; weights as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from spatlib.errors import ConfigError, DataError
from spatlib.runs import pack, unpack

from .models import BatchNorm

PLAIN = (int, float, str, type(None))  # JSON gives them back as they were
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNorm)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a (Distributed)DataParallel wrapper.

    The attack must not go through the wrapper: it would synchronise, and wait for gradients of
    parameters that never come.
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


@contextmanager
def attack_state(
    model: nn.Module, mode: str = "eval", fork: torch.device | None = None
) -> Iterator[nn.Module]:
    """Set the model up for gradients with respect to its input only.

    Modules are in inference mode (``mode="eval"``) or as they stand (``"train"``), parameters
    frozen, autograd on even inside no_grad or inference_mode. On the way out, also after an
    exception, every module's own training flag, every requires_grad, every buffer (value, shape
    and identity) and, with ``fork``, the global generators of the CPU and of that device are what
    they were. Lazy modules take their shapes: those with buffers are in inference mode until then.
    """
    training = [(module, module.training) for module in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    with ExitStack() as stack:
        if fork is not None:
            devices = [fork] if fork.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # Flags are set one by one: module.eval() would also run overridden train() methods.
        for module, flag in training:
            module.training = flag and mode == "train" and not _lazy(module)
        buffers = _buffers(model)
        try:
            for p in trainable:
                p.requires_grad = False  # requires_grad_() refuses lazy parameters
            yield model
        finally:
            for module, flag in training:
                module.training = flag
            for p in trainable:
                p.requires_grad = True
            _put_back(buffers)


def _lazy(module: nn.Module) -> bool:
    return any(map(nn.parameter.is_lazy, module.buffers(recurse=False)))


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor, Tensor]]:
    """Every buffer with a copy, but for the statistics that BatchNorm cannot move: they stay."""
    fixed = {m for m in model.modules() if type(m) in NORMS and not m.training}
    return [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        if module not in fixed
        for name, buffer in module.named_buffers(recurse=False)
        if not nn.parameter.is_lazy(buffer)
    ]


@torch.no_grad()
def _put_back(buffers: list[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    for module, name, buffer, value in buffers:
        if buffer.grad_fn is not None:  # what moved it in place depends on the inputs
            buffer.detach_()
        if buffer.shape == value.shape:
            buffer.copy_(value)
        else:
            buffer.data = value
        setattr(module, name, buffer)


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the network's forward pass (torch.compile) until the end of the block.

    The module stays what it is, parameters, names of its state and all; one that its owner wrapped
    by torch.compile stays that. The attack and the update differ in flags that are constants of the
    compiled code, so each has a version of its own, and a second one for other batch sizes.
    """
    if not wanted or "forward" in vars(model):
        yield
        return
    vars(model)["forward"] = torch.compile(model.forward)
    try:
        yield
    finally:
        del vars(model)["forward"]


def weights(model: nn.Module) -> bytes:
    """All parameters and buffers, as the content of a safetensors file."""
    return pack(safetensors.torch.save, copies(unwrap(model).state_dict()))


def load_weights(model: nn.Module, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave, into a model of the same architecture."""
    put(model, unpack(safetensors.torch.load, content, source)[0], source)


def copies(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the host, each with memory of its own: safetensors refuses tensors that share it."""
    return {name: t.detach().cpu().clone().contiguous() for name, t in named.items()}


def put(model: nn.Module, named: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict; DataError if it is that of another architecture."""
    try:
        unwrap(model).load_state_dict(named)
    except RuntimeError as error:
        raise DataError(
            f"{source} must hold weights of this architecture: build the model as it was trained"
        ) from error


def like(p: Tensor, value: Tensor) -> Tensor:
    """A copy of the value on the device and in the memory format of p."""
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def optimizer_state(
    optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an optimizer, named by their parameters, and the rest as it goes into JSON."""
    found, numbers = {}, {}
    for name, p in trained.items():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):  # Adam counts on the CPU, wherever its parameters are
                found[f"{key}.{value.device.type}.{name}"] = value
            elif isinstance(value, PLAIN):
                numbers[f"{key}.{name}"] = value
            else:
                raise ConfigError(
                    f"optimizer must keep tensors and numbers only to be saved in run_dir, got "
                    f"{key} of type {type(value).__name__}: take another, or leave run_dir out"
                )
    groups = [
        {key: value for key, value in group.items() if isinstance(value, (*PLAIN, tuple))}
        for group in optimizer.param_groups
    ]
    return found, {"kind": _kind(optimizer, trained), "groups": groups, "numbers": numbers}


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    trained: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    meta: Mapping[str, Any],
) -> None:
    """Put back what :func:`optimizer_state` gave; ConfigError if it is that of another one."""
    kind = _kind(optimizer, trained)
    if meta["kind"] != kind:
        raise ConfigError(
            f"optimizer must be {meta['kind'][0]} of the parameters with which the run began, got "
            f"{kind[0]}: pass the same function"
        )
    for group, saved in zip(optimizer.param_groups, meta["groups"], strict=True):
        group.update({key: tuple(v) if isinstance(v, list) else v for key, v in saved.items()})
    for path, number in meta["numbers"].items():
        key, name = path.split(".", 1)
        optimizer.state[trained[name]][key] = number
    for path, value in found.items():
        key, device, name = path.split(".", 2)
        p = trained[name]
        where = p.device if device == p.device.type else torch.device(device)
        whole = where == p.device and value.shape == p.shape
        optimizer.state[p][key] = like(p, value) if whole else value.to(where, copy=True)


def _kind(optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]) -> list[Any]:
    """Its class, and the names of the parameters in each of its groups."""
    names = {p: name for name, p in trained.items()}
    groups = [[names.get(p) for p in group["params"]] for group in optimizer.param_groups]
    return [type(optimizer).__name__, groups]
