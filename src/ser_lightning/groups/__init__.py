"""The transformation group: elements, their action on pixels and tokens, and their sampling."""

from ser_lightning.groups.action import act, resize
from ser_lightning.groups.element import GroupElement, relative
from ser_lightning.groups.frame import Frame, transport
from ser_lightning.groups.sampler import GroupSampler
from ser_lightning.groups.turning import turn_each

__all__ = [
    "Frame",
    "GroupElement",
    "GroupSampler",
    "act",
    "relative",
    "resize",
    "transport",
    "turn_each",
]
