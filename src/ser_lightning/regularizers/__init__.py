"""Equivariance add-ons to an invariance objective.

Every file of this room is imported, so that each add-on is known to the command line by its class
name alone.
"""

from importlib import import_module
from pkgutil import iter_modules

from ser_lightning.regularizers.base import Regularizer
from ser_lightning.regularizers.info_nce import token_info_nce
from ser_lightning.regularizers.per_layer import PerLayer
from ser_lightning.regularizers.ser import SERRegularizer

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = ["PerLayer", "Regularizer", "SERRegularizer", "token_info_nce"]
