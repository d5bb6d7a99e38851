"""What is drawn for each view, and the device half of the data path: batches of views from it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ser_lightning.batch import PartitionedBatch, View, ViewRecord
from ser_lightning.data import crops, photometric
from ser_lightning.data.crops import Cut, Interpolation
from ser_lightning.data.photometric import (
    PhotometricRecord,
)
from ser_lightning.data.plan import BatchKey
from ser_lightning.groups import GroupElement, act
from ser_lightning.randomness import Stream, uniforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class HostView(NamedTuple):
    """A view before its colours and geometry.

    Attributes:
        pixels: (B, 3, S, S) uint8, cropped or squashed and resized.
        record: the photometric draws; numpy arrays, which stay on the host.
        element: the group element still to be applied; None for a crop.
        packed: (B, 19) float32, all that was drawn, for `unpack`.
        elements: those of several views with the same colours, which it stands for.
    """

    pixels: Tensor
    record: PhotometricRecord
    element: GroupElement | None = None
    packed: Tensor | None = None
    elements: tuple[GroupElement, ...] = ()


class HostBatch(NamedTuple):
    """What a worker hands over; the fields are those of `PartitionedBatch` before rendering."""

    crop: tuple[HostView, ...]
    invertible: tuple[HostView, ...]
    indices: Tensor
    label: Tensor
    num_unreadable: Tensor
    extra: tuple[HostView, ...] = ()


def render(
    batch: HostBatch,
    patch_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PartitionedBatch:
    """Applies colours, normalisation and geometry on the device where the pixels are.

    Args:
        batch: what a worker made, moved to the device.
        patch_size: side of a token in pixels.
        mean: (3,) channel means.
        std: (3,) channel standard deviations.
    """

    def views(hosts: tuple[HostView, ...]) -> tuple[View, ...]:
        return tuple(view for host in hosts for view in _render_view(host, patch_size, mean, std))

    return PartitionedBatch(
        views(batch.crop),
        views(batch.invertible),
        batch.indices,
        batch.label,
        batch.num_unreadable,
        views(batch.extra),
    )


def _render_view(
    host: HostView, patch_size: int, mean: Sequence[float], std: Sequence[float]
) -> list[View]:
    """One view, or several that differ in their elements; colours are applied once."""
    pixels = normalise(photometric.apply(host.record, host.pixels / 255), mean, std)
    record = None if host.packed is None else unpack(host.packed)
    elements = host.elements if host.element is None else (host.element,)
    if not elements:
        return [View(pixels, record=record)]
    return [View(act(element, pixels, patch_size), element, record) for element in elements]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Standardises float pixels (B, 3, H, W) in [0, 1] per channel."""
    scale = pixels.new_tensor(std).reshape(-1, 1, 1)
    return (pixels - pixels.new_tensor(mean).reshape(-1, 1, 1)) / scale


_NUM_CROP_UNIFORMS = crops.NUM_UNIFORMS + 1  # the box, then the flip
_NUM_UNIFORMS = _NUM_CROP_UNIFORMS + photometric.NUM_UNIFORMS
_WIDTHS = (2, 4, 1, 1, 4, 1, 1, 1, 1, 1, 1, 1)  # of the fields of ViewRecord, in their order


def draws(
    seed: int, key: BatchKey, indices: np.ndarray, view: int
) -> tuple[np.ndarray, np.ndarray]:
    """The uniform numbers of one view of each image: for crop and flip, and for its colours."""
    block = uniforms(seed, Stream.AUGMENT, key.epoch, indices, view, _NUM_UNIFORMS)
    return block[:, :_NUM_CROP_UNIFORMS], block[:, _NUM_CROP_UNIFORMS:]


def pack(where: Cut, colours: PhotometricRecord) -> Tensor:
    """Writes all that was drawn into one tensor, which travels faster than twelve.

    Args:
        where: the crops.
        colours: the photometric draws of the same images.

    Returns:
        (B, 19) float32, the fields of `ViewRecord` beside each other.
    """
    packed = np.empty((len(where.flips), sum(_WIDTHS)), dtype=np.float32)
    start = 0
    for field, width in zip((*where, *colours), _WIDTHS, strict=True):
        packed[:, start : start + width] = field.reshape(-1, width)
        start += width
    return torch.from_numpy(packed)


def unpack(packed: Tensor) -> ViewRecord:
    """The columns of `pack`, on any device: slices of the same memory."""
    columns = packed.split(_WIDTHS, dim=1)
    return ViewRecord(
        *(
            column.squeeze(1) if width == 1 else column
            for column, width in zip(columns, _WIDTHS, strict=True)
        )
    )


def replay(
    record: ViewRecord,
    images: Sequence[Tensor],
    size: int,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Makes a view again, for pictures and for finding mistakes; waits for the record's device.

    Equal to the batch's view, before its group element and normalisation, but for the float32
    rounding of the record. The boxes of a plain view are rounded, so that it is close only.

    Args:
        record: what was drawn for B images: a view's record, or some rows of it.
        images: those B images, uint8 (3, H, W), as they were read.
        size: side of the view in pixels, before its group element.
        interpolation: the resize filter of the pipeline that made the view.

    Returns:
        (B, 3, size, size) float32 images in [0, 1], on the host.

    Raises:
        ValueError: if the images are not as many, or not of the sizes, as the record's.
    """
    fields = [field.cpu().double().numpy() for field in record]
    sizes, boxes, flips = fields[:3]
    if not np.array_equal(crops.image_sizes(images), sizes):
        raise ValueError(
            f"images of sizes {crops.image_sizes(images).tolist()} for a record of images of sizes "
            f"{sizes.astype(int).tolist()}; give the images of the record's rows, as they were read"
        )
    colours = PhotometricRecord(*fields[3:])
    colours = colours._replace(
        jitter=colours.jitter > 0,
        order=colours.order.astype(np.int64),
        gray=colours.gray > 0,
        solarize=colours.solarize > 0,
    )
    where = Cut(sizes, np.rint(boxes).astype(np.int64), flips > 0)
    return photometric.apply(colours, crops.cut(images, where, size, interpolation) / 255)
