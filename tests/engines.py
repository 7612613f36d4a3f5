"""The engines under test, by names of BACKENDS; :class:`Entry` says what one has to offer."""

from __future__ import annotations

from .entry import Entry
from .entry_tf import TFEngine
from .entry_torch import TorchEngine

ENGINES: dict[str, type[Entry]] = {"torch": TorchEngine, "tf": TFEngine}
