"""Semantics-preserving adversarial training (SPAT); importing it loads no framework."""

from .audit import Audit, audit
from .config import Mask, SPATConfig, Threat, TrainConfig
from .data import Dataset, load_data
from .errors import BackendError, ConfigError, DataError, NonFiniteError, SpatlibError
from .evaluate import evaluate
from .recipes import RECIPES, Recipe
from .report import Report, Result
from .runs import load_model
from .train import train

__version__ = "0.1.0"
__all__ = ["RECIPES", "Mask", "Recipe", "SPATConfig", "Threat", "TrainConfig"]
__all__ += ["Audit", "Dataset", "Report", "Result"]
__all__ += ["audit", "evaluate", "load_data", "load_model", "train"]
__all__ += ["BackendError", "ConfigError", "DataError", "NonFiniteError", "SpatlibError"]
