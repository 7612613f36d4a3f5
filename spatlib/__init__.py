"""Semantics-preserving adversarial training (SPAT); importing it loads no framework."""

from .audit import Audit, audit
from .config import Bounds, SPATConfig
from .errors import BackendError, ConfigError, DataError, NonFiniteError, SpatlibError
from .evaluate import evaluate
from .recipes import RECIPES, Recipe
from .result import Report, Result
from .train import train
from .train_config import TrainConfig
from .trained import load_model

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Audit",
    "BackendError",
    "Bounds",
    "ConfigError",
    "DataError",
    "NonFiniteError",
    "Recipe",
    "Report",
    "Result",
    "SPATConfig",
    "SpatlibError",
    "TrainConfig",
    "audit",
    "evaluate",
    "load_model",
    "train",
]
