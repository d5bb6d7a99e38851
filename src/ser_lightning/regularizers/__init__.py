"""Equivariance add-ons to an invariance objective."""

from ser_lightning.regularizers.base import Regularizer
from ser_lightning.regularizers.contrastive import contrastive_loss
from ser_lightning.regularizers.info_nce import token_info_nce
from ser_lightning.regularizers.per_layer import PerLayer
from ser_lightning.regularizers.ser import SERRegularizer

__all__ = ["PerLayer", "Regularizer", "SERRegularizer", "contrastive_loss", "token_info_nce"]
