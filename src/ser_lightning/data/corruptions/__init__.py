"""The corruptions of ImageNet-C, generated on the fly with torch, numpy and PIL alone."""

from ser_lightning.data.corruptions.corrupt import (
    DISK_JPEG_QUALITY,
    check_image,
    corrupt,
    corruption_names,
    is_official,
    reencode,
)
from ser_lightning.data.corruptions.frost import FROST_FILES
from ser_lightning.data.corruptions.tables import (
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    FROST_PROCEDURAL,
    NUM_SEVERITIES,
    native_size,
)

__all__ = [
    "CORRUPTIONS",
    "DISK_JPEG_QUALITY",
    "EXTRA_CORRUPTIONS",
    "FROST_FILES",
    "FROST_PROCEDURAL",
    "NUM_SEVERITIES",
    "check_image",
    "corrupt",
    "corruption_names",
    "is_official",
    "native_size",
    "reencode",
]
