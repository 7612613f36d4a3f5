"""Semantics-preserving adversarial training (SPAT); importing it loads no framework."""

from .audit import Audit, audit
from .config import Mask, SPATConfig, Threat, TrainConfig
from .data import Dataset, load_data
from .errors import BackendError, ConfigError, DataError, NonFiniteError, SpatlibError
from .evaluate import Report, evaluate
from .recipes import RECIPES, Recipe
from .runs import load_model
from .train import Result, train

__version__ = "0.1.0"
__all__ = [
    "RECIPES",
    "Audit",
    "BackendError",
    "ConfigError",
    "DataError",
    "Dataset",
    "Mask",
    "NonFiniteError",
    "Recipe",
    "Report",
    "Result",
    "SPATConfig",
    "SpatlibError",
    "Threat",
    "TrainConfig",
    "audit",
    "evaluate",
    "load_data",
    "load_model",
    "train",
]
