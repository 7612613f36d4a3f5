"""What an attack changes on a module or a generator, and puts back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch._functorch import config as compiled_backward

from .norm import as_affine


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a (Distributed)DataParallel wrapper.

    The attack must not go through the wrapper: it would synchronise, and wait for gradients of
    parameters that never come.
    """
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    return model.module if isinstance(model, wrappers) else model


@contextmanager
def attack_state(
    model: nn.Module, mode: str, device: torch.device, *, keep_rng: bool
) -> Iterator[None]:
    """Set the model up for gradients with respect to its input only.

    Modules are in inference mode (``mode="eval"``) or as they stand (``"train"``), parameters
    frozen, autograd on even inside no_grad or inference_mode. On the way out, also after an
    exception, every module's own training flag, every requires_grad, every buffer and (with
    ``keep_rng``) the global generators of the CPU and of ``device`` are what they were.
    """
    training = [(module, module.training) for module in model.modules()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    buffers = [(b, b.detach().clone()) for b in model.buffers()] if mode == "train" else []
    with ExitStack() as stack:
        if keep_rng:
            devices = [device] if device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
        # The mask needs several backward passes through one compiled forward pass.
        stack.enter_context(compiled_backward.patch(donated_buffer=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        try:
            # Flags are set one by one: module.eval() would also run overridden train() methods.
            for module, flag in training:
                module.training = flag and mode == "train"
            for p in trainable:
                p.requires_grad_(False)
            with as_affine(model):
                yield
        finally:
            for module, flag in training:
                module.training = flag
            for p in trainable:
                p.requires_grad_(True)
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


@contextmanager
def compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Compile the network's forward pass (torch.compile) until the end of the block.

    The module stays the same object with the same state dict; one that its owner has compiled is
    left alone. Training flags are constants of compiled code, so the attack and the update have a
    version each, and each a second one for other batch sizes.
    """
    own = "forward" in vars(model) or model._compiled_call_impl is not None
    if not wanted or own:
        yield
        return
    vars(model)["forward"] = torch.compile(model.forward)
    try:
        yield
    finally:
        del vars(model)["forward"]


def mask_generator(generator: torch.Generator | None, device: torch.device) -> torch.Generator:
    """A CPU generator for the mask's draws, seeded by the state of the one for the starts.

    Its draws never touch that one, so the starts are the same with and without a mask.
    """
    state = (generator or _global_generator(device)).get_state()
    digest = hashlib.blake2b(state.numpy().tobytes(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def advance(generator: torch.Generator | None, device: torch.device) -> None:
    """Draw once from a generator that gave no start, so that the next mask differs."""
    torch.rand(1, generator=generator, device=device)


def _global_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index]
    return torch.default_generator
