"""Tables and pictures of what a run did; independent of Lightning.

Colours: of token maps `token_maps.py`, of their agreement and of runs `figures.py` and `look.py`.
"""

from ser_lightning.reporting.figures import ViewGallery, demo_figure
from ser_lightning.reporting.side_by_side import RunCurve, side_by_side, takeaway
from ser_lightning.reporting.summary import summary_table
from ser_lightning.reporting.token_maps import (
    TokenComparison,
    TokenMaps,
    colour_maps,
    describe_element,
    token_maps_of,
)

__all__ = [
    "RunCurve",
    "TokenComparison",
    "TokenMaps",
    "ViewGallery",
    "colour_maps",
    "demo_figure",
    "describe_element",
    "side_by_side",
    "summary_table",
    "takeaway",
    "token_maps_of",
]
