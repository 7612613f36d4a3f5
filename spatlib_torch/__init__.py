"""SPAT in PyTorch: the mask, the attack and the loss for a loop of your own."""

from .attack import perturb
from .losses import spat_loss
from .mask import shared_mask

__all__ = ["perturb", "shared_mask", "spat_loss"]
