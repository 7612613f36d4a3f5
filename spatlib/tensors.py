"""Named tensors and JSON in one safetensors file, which holds data only, no code."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from .errors import DataError

META = "spatlib"  # key of the header's metadata
LENGTH = struct.Struct("<Q")  # a safetensors file begins with the length of its JSON header


def pack(save: Callable[..., bytes], tensors: Mapping[str, Any], meta: Any = None) -> bytes:
    """The content of a file; ``save`` is that of safetensors for the framework."""
    return save(dict(tensors), metadata={META: json.dumps(meta)})


def unpack(
    load: Callable[[bytes], dict[str, Any]], content: bytes, source: str
) -> tuple[dict[str, Any], Any]:
    """What :func:`pack` was given.

    Raises:
        DataError: The content is truncated or something else; names ``source``.
    """
    try:
        (length,) = LENGTH.unpack_from(content)
        header = json.loads(content[LENGTH.size : LENGTH.size + length])
        return load(content), json.loads(header["__metadata__"][META])
    except Exception as error:  # SafetensorError derives from Exception itself
        raise DataError(
            f"{source} must be weights or a checkpoint written by spatlib, got a file that cannot "
            f"be read ({type(error).__name__}: {error}): choose another"
        ) from error
