"""Measuring representations, in stages on a checkpoint and while training.

`stages/` has the protocols with all their settings, such as the linear probe's learning rates in
`stages/linear.py`; `metrics/` the definitions of the numbers; `online` what is measured while
training. The other files are shared by stages: `stage` and `features` by all, `probe` and
`probe_stage` by those that train heads, `linear_head` and `benchmark_stage` by those that test one.
"""

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
