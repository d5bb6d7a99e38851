"""The transformation group: elements, their action on pixels and tokens, and their sampling."""

from ser_lightning.groups.action import act, resize
from ser_lightning.groups.element import GroupElement, relative
from ser_lightning.groups.sampler import GroupSampler

__all__ = ["GroupElement", "GroupSampler", "act", "relative", "resize"]
