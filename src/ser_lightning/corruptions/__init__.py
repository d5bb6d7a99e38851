"""The corruptions of ImageNet-C and perturbations of ImageNet-P, generated for any image.

`corrupted.py` and `perturbed.py` are the entries, `tables.py` says what each severity means; the
other files are a family each.
"""

from typing import TYPE_CHECKING

from ser_lightning.on_demand import on_demand

if TYPE_CHECKING:
    from ser_lightning.corruptions.corrupted import corrupt, corruption_names
    from ser_lightning.corruptions.frost import FROST_FILES
    from ser_lightning.corruptions.perturbed import perturb
    from ser_lightning.corruptions.tables import (
        CORRUPTIONS,
        EXTRA_CORRUPTIONS,
        EXTRA_PERTURBATIONS,
        FROST_PROCEDURAL,
        NUM_SEVERITIES,
        PERTURBATIONS,
        REFERENCE,
        num_official_frames,
    )

__all__ = [
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "EXTRA_PERTURBATIONS",
    "FROST_FILES",
    "FROST_PROCEDURAL",
    "NUM_SEVERITIES",
    "PERTURBATIONS",
    "REFERENCE",
    "corrupt",
    "corruption_names",
    "num_official_frames",
    "perturb",
]

__getattr__ = on_demand(__name__, __file__)
