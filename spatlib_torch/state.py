"""What is changed for a while and put back: models, generators; named tensors of a training."""

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.modules.module import register_module_buffer_registration_hook
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from spatlib.core.calls import alone
from spatlib.engines import pack, unpack
from spatlib.errors import DataError, require

Named = Mapping[str, Tensor]
PLAIN = (int, float, str, type(None), tuple)  # JSON gives them back, a tuple as a list
# The purposes of a seed, fold(seed, epoch, number of the step or item, purpose): as every draw
# follows from one, no state of a generator is saved.
ORDER, ITEM, FETCH, STEP, AUGMENT, ATTACK = range(1, 7)
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS has equal bits where it is :4096:8 or :16:8


def bare(model: nn.Module, *, compiled: bool = False) -> nn.Module:
    """The module in DataParallel's wrapper, and unless ``compiled`` in that of torch.compile."""
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        model = model.module
    wrapped = type(model).__name__ == "OptimizedModule" and not compiled
    return next(model.children()) if wrapped else model


@contextmanager
def attack_state(
    model: nn.Module,
    mode: str = "eval",
    fork: torch.device | None = None,
    foreign: bool = False,
    casting: bool = False,
) -> Iterator[nn.Module]:
    """Set the bare model up for gradients in its input only; another thread has to wait.

    Modules are in inference mode (``mode="eval"``; lazy ones with buffers always) or as they stand
    (``"train"``), parameters frozen, unless autocast is ``casting`` them. Afterwards, also after an
    exception, flags and buffers (value, shape, identity), with ``fork`` the global generators of
    the CPU and of that device, and after ``foreign`` code the parameters are as before.
    """
    model = bare(model, compiled=True)
    forked = torch.random.fork_rng([fork] if fork and fork.type == "cuda" else [], fork is not None)
    # Out of inference mode autograd is on, inside no_grad too.
    with alone(bare(model)), forked, torch.inference_mode(False), ExitStack() as undo:
        for module in model.modules():  # module.eval() would also run overridden train() methods
            undo.callback(setattr, module, "training", module.training)
            own = dict(module.named_buffers(recurse=False))
            known = {name: buffer for name, buffer in own.items() if not is_lazy(buffer)}
            module.training &= mode == "train" and len(known) == len(own)
            if isinstance(module, nn.RNNBase) and not module.training:
                # cuDNN goes back through it in training mode alone: there, then, without dropout.
                undo.callback(setattr, module, "dropout", module.dropout)
                module.training, module.dropout = True, 0.0
            known |= dict(module.named_parameters(recurse=False)) if foreign else {}
            for name, buffer in known.items():
                undo.callback(_put_back, module, name, buffer, buffer.detach().clone())
        modules = set(model.modules())

        def watch(module: nn.Module, name: str, buffer: Tensor | None) -> None:
            if module in modules and buffer is not None and getattr(module, name, None) is None:
                if not hasattr(module, name):
                    undo.callback(delattr, module, name)
                undo.callback(setattr, module, name, None)

        undo.enter_context(register_module_buffer_registration_hook(watch))
        # Autocast keeps casts of trainable weights alone; what is compiled would go back to all.
        casting &= type(model).__name__ != "OptimizedModule" and "forward" not in vars(model)
        for p in model.parameters():
            undo.callback(setattr, p, "requires_grad", p.requires_grad)
            p.requires_grad &= casting  # requires_grad_() refuses lazy parameters
        yield model


@torch.no_grad()
def _put_back(module: nn.Module, name: str, buffer: Tensor, value: Tensor) -> None:
    """Make it the module's buffer again, with this value, in its memory if that can hold it."""
    setattr(module, name, buffer)
    if buffer.grad_fn is not None:  # what moved it in place depends on the inputs
        buffer.detach_()
    if buffer.shape != value.shape or 0 in buffer.stride():  # those of expand() share entries
        buffer.data = value
    else:  # not seen by autograd: the graph of a loss may have saved the same value
        with torch.inference_mode(buffer.is_inference()):
            buffer.data.copy_(value)


def seed_globals(seed: int, device: torch.device) -> None:
    """Seed the global generators of Python, NumPy, and torch on the CPU and on the device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # transforms may draw from it
    torch.default_generator.manual_seed(seed)  # torch.manual_seed takes 200 us
    if device.type != "cpu":
        with torch.accelerator.device_index(device.index):
            torch.get_device_module(device).manual_seed(seed)


def keeping_globals(device: torch.device, deterministic: bool = False) -> ExitStack:
    """A context that puts all that :func:`seed_globals` seeds back as it was.

    ``deterministic``: in it, and in the whole process, only algorithms that give equal bits run.
    """
    undo, others = ExitStack(), [device] if device.type != "cpu" else []
    undo.callback(random.setstate, random.getstate())
    undo.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
    undo.enter_context(torch.random.fork_rng(others, device_type=device.type))
    if deterministic:
        undo.callback(torch.set_deterministic_debug_mode, torch.get_deterministic_debug_mode())
        torch.set_deterministic_debug_mode("error")
        for name, value in {"deterministic": True, "benchmark": False}.items():
            undo.callback(setattr, cudnn, name, getattr(cudnn, name))
            setattr(cudnn, name, value)
        if CUBLAS not in os.environ:
            undo.callback(os.environ.pop, CUBLAS, None)
            os.environ[CUBLAS] = ":4096:8"
    return undo


def packed(named: Named, meta: Any = None) -> Iterator[bytes]:
    """A safetensors file in parts, of which each comes to the host when it is due."""

    def raw(tensor: Tensor) -> Any:
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return copy.flatten().view(torch.uint8).numpy()

    return pack(safetensors.torch.save, torch.empty, raw, named, meta)


def weights(model: nn.Module) -> bytes:
    """All parameters and buffers, as the content of a safetensors file."""
    return b"".join(packed(bare(model).state_dict()))


def load_weights(model: nn.Module, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave, into a model of the same architecture."""
    put(model, unpack(safetensors.torch.load, content, source)[0], source)


def put(model: nn.Module, named: Named, source: str) -> None:
    """Load a state dict; DataError if it is that of another architecture."""
    try:
        bare(model).load_state_dict(named)
    except RuntimeError as error:  # torch's own text is as long as the list of layers
        what = f"{source} must hold weights of this architecture: build the model as it was trained"
        raise DataError(what) from error


def optimizer_state(optimizer: Optimizer, trained: Named) -> tuple[Named, dict[str, Any]]:
    """The tensors of an optimizer, named by their parameters, and the rest as it goes into JSON."""
    names, found, numbers = {p: name for name, p in trained.items()}, {}, {}
    for name, p in trained.items():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor):  # Adam counts on the CPU, wherever its parameters are
                found[f"{key}.{value.device.type}.{name}"] = value
            else:
                numbers[f"{key}.{name}"] = value
    all_groups = optimizer.param_groups
    kind = [type(optimizer).__name__, *([names.get(p) for p in g["params"]] for g in all_groups)]
    # Their rates are those of the scheduler, which goes through its steps again.
    groups = [{k: g[k] for k in g if k != "lr" and isinstance(g[k], PLAIN)} for g in all_groups]
    return found, {"kind": kind, "groups": groups, "numbers": numbers}


def load_optimizer(optimizer: Optimizer, trained: Named, found: Named, meta: Any) -> None:
    """Put back what :func:`optimizer_state` gave; ConfigError if it is that of another one."""
    kind, saved = optimizer_state(optimizer, trained)[1]["kind"], meta["kind"]
    what = f"be {saved[0]} of the parameters with which the run began: pass the same function"
    require(kind == saved, "optimizer", what, kind[0])
    for group, values in zip(optimizer.param_groups, meta["groups"], strict=True):
        group.update({key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
    for path, number in meta["numbers"].items():
        key, name = path.split(".", 1)
        optimizer.state[trained[name]][key] = number
    for path, value in found.items():
        key, device, name = path.split(".", 2)
        p = trained[name]
        like = p.detach() if value.shape == p.shape else value  # its memory format is that of p
        at = p.device if device == p.device.type else device
        optimizer.state[p][key] = torch.empty_like(like, dtype=value.dtype, device=at).copy_(value)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, those of no state dict too."""
    return dict(bare(model).named_parameters()) | dict(bare(model).named_buffers())


def clones(named: Named) -> dict[str, Tensor]:
    """Copies on the device."""
    return {name: tensor.detach().clone() for name, tensor in named.items()}


@torch.no_grad()
def fill(named: Named, values: Named) -> None:
    """Copy values into the tensors of the same names."""
    for name, value in values.items():
        named[name].copy_(value)
