"""What seeds all draws of a training, and the global generators, which are put back after it."""

import os
import random
from contextlib import ExitStack

import numpy as np
import torch
from torch.backends import cudnn

# The purposes of a seed, fold(seed, epoch, number of the step or item, purpose): as every draw
# follows from one, no state of a generator is saved.
ORDER, ITEM, FETCH, STEP, AUGMENT, ATTACK = range(1, 7)
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS has equal bits where it is :4096:8 or :16:8


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
