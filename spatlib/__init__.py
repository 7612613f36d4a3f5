"""Semantics-preserving adversarial training (SPAT); importing it loads no framework."""

from .config import Bounds, SPATConfig, TrainConfig
from .errors import BackendError, ConfigError, DataError, NonFiniteError, SpatlibError
from .evaluate import evaluate
from .result import Report, Result
from .train import train

__version__ = "0.1.0"
__all__ = [
    "BackendError",
    "Bounds",
    "ConfigError",
    "DataError",
    "NonFiniteError",
    "Report",
    "Result",
    "SPATConfig",
    "SpatlibError",
    "TrainConfig",
    "evaluate",
    "train",
]
