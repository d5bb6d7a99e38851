"""Tables and pictures of what a run did; independent of Lightning."""

from ser_lightning.reporting.figures import Curves, ViewGallery, demo_figure
from ser_lightning.reporting.summary import summary_table
from ser_lightning.reporting.token_maps import (
    TokenComparison,
    TokenMaps,
    colour_maps,
    describe_element,
    token_maps_of,
)

__all__ = [
    "Curves",
    "TokenComparison",
    "TokenMaps",
    "ViewGallery",
    "colour_maps",
    "demo_figure",
    "describe_element",
    "summary_table",
    "token_maps_of",
]
