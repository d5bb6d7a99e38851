"""Weights as other projects store them: which layout a file has, what is in it, in timm's names."""

from ser_lightning.foreign.layouts import Branch, Weights, read_weights

__all__ = ["Branch", "Weights", "read_weights"]
