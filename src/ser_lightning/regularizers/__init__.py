"""Equivariance add-ons to an invariance objective."""

from ser_lightning.regularizers.base import Regularizer
from ser_lightning.regularizers.info_nce import token_info_nce
from ser_lightning.regularizers.ser import SERRegularizer

__all__ = ["Regularizer", "SERRegularizer", "token_info_nce"]
