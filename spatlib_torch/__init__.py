"""SPAT in PyTorch: the mask, the attack and the loss for a loop of your own."""

from .attack import perturb, shared_mask, spat_loss

__all__ = ["perturb", "shared_mask", "spat_loss"]
