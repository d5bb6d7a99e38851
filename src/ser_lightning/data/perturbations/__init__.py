"""The perturbation sequences of ImageNet-P, generated with torch and numpy alone."""

from ser_lightning.data.perturbations.sequence import sequence
from ser_lightning.data.perturbations.tables import (
    EXTRA_PERTURBATIONS,
    PERTURBATIONS,
    REFERENCE,
    num_official_frames,
)

__all__ = [
    "EXTRA_PERTURBATIONS",
    "PERTURBATIONS",
    "REFERENCE",
    "num_official_frames",
    "sequence",
]
