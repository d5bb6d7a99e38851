"""Measuring representations: one evaluation per file, on frozen features."""

from ser_lightning.evaluation.metrics.diagnostics import feature_std, rankme
from ser_lightning.evaluation.metrics.equivariance import (
    equivariance_scores,
    family_elements,
    token_cosine,
)
from ser_lightning.evaluation.metrics.knn import KNNAccuracy, knn_accuracy, knn_predict
from ser_lightning.evaluation.online import OnlineEvaluation

__all__ = [
    "KNNAccuracy",
    "OnlineEvaluation",
    "equivariance_scores",
    "family_elements",
    "feature_std",
    "knn_accuracy",
    "knn_predict",
    "rankme",
    "token_cosine",
]
