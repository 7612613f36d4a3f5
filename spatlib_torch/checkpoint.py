"""Weights of a module as the content of a file, and back."""

from __future__ import annotations

from collections.abc import Mapping

import safetensors.torch
from torch import Tensor, nn

from spatlib import tensors
from spatlib.errors import DataError

from .state import unwrap


def weights(model: nn.Module) -> bytes:
    """All parameters and buffers, as the content of a safetensors file."""
    return tensors.pack(safetensors.torch.save, copies(unwrap(model).state_dict()))


def load_weights(model: nn.Module, content: bytes, source: str = "weights") -> None:
    """Put back what :func:`weights` gave, into a model of the same architecture."""
    put(model, tensors.unpack(safetensors.torch.load, content, source)[0], source)


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
