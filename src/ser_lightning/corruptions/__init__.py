"""The corruptions of ImageNet-C, generated on the fly with torch, numpy and PIL alone."""

from ser_lightning.corruptions.corrupt import (
    DISK_JPEG_QUALITY,
    check_image,
    corrupt,
    corruption_names,
    is_official,
    reencode,
)
from ser_lightning.corruptions.frost import FROST_FILES
from ser_lightning.corruptions.perturb import perturb
from ser_lightning.corruptions.tables import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    EXTRA_PERTURBATIONS,
    FROST_PROCEDURAL,
    NUM_SEVERITIES,
    PERTURBATIONS,
    REFERENCE,
    native_size,
    num_official_frames,
)

__all__ = [
    "CORRUPTIONS",
    "DISK_JPEG_QUALITY",
    "EXTRA_CORRUPTIONS",
    "EXTRA_PERTURBATIONS",
    "FROST_FILES",
    "FROST_PROCEDURAL",
    "NUM_SEVERITIES",
    "PERTURBATIONS",
    "REFERENCE",
    "check_image",
    "corrupt",
    "corruption_names",
    "is_official",
    "native_size",
    "num_official_frames",
    "reencode",
    "perturb",
]
