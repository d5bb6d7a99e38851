"""Tables and pictures of what a run did; independent of Lightning."""

from ser_lightning.reporting.comparison import (
    TokenComparison,
    TokenMaps,
    colour_maps,
    token_maps_of,
)
from ser_lightning.reporting.figures import Curves, ViewGallery, demo_figure
from ser_lightning.reporting.tables import RunMetrics, runs_markdown, summary_table
from ser_lightning.reporting.words import describe_element

__all__ = [
    "Curves",
    "RunMetrics",
    "TokenComparison",
    "TokenMaps",
    "ViewGallery",
    "colour_maps",
    "demo_figure",
    "describe_element",
    "runs_markdown",
    "summary_table",
    "token_maps_of",
]
