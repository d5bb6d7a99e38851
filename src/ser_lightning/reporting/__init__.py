"""Tables and pictures of what a run did; independent of Lightning.

Colours: of token maps `token_maps.py`, of their agreement and of runs `figures.py` and `look.py`.
"""

from typing import TYPE_CHECKING

from ser_lightning.on_demand import on_demand

if TYPE_CHECKING:
    from ser_lightning.reporting.figures import demo_figure
    from ser_lightning.reporting.gallery import ViewGallery
    from ser_lightning.reporting.side_by_side import RunCurve, takeaway
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
    "summary_table",
    "takeaway",
    "token_maps_of",
]

__getattr__ = on_demand(__name__, __file__)
