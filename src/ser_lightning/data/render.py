"""The device half of the data path: batches of views from what was made on the host."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ser_lightning.batch import NO_IMAGES, PartitionedBatch, View, ViewRecord
from ser_lightning.data import crops, photometric
from ser_lightning.data.crops import Interpolation
from ser_lightning.groups import GroupElement, act

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class HostView(NamedTuple):
    """A view before its colours and geometry.

    Attributes:
        pixels: (B, 3, S, S) uint8, cropped or squashed and resized.
        record: what was drawn; stays on the host, where it is known without waiting for a device
            which images an operation touches.
        element: the group element still to be applied; None for a crop.
        elements: those of several views with the same colours, which it stands for.
    """

    pixels: Tensor
    record: ViewRecord[np.ndarray]
    element: GroupElement | None = None
    elements: tuple[GroupElement, ...] = ()


class HostBatch(NamedTuple):
    """What a worker hands over; the fields are those of `PartitionedBatch` before rendering.

    Attributes:
        unreadable: (n,) images that could not be read: positions of those that others stand in
            for in training, slots of those left out in evaluation.
    """

    crop: tuple[HostView, ...]
    invertible: tuple[HostView, ...]
    indices: Tensor
    label: Tensor
    extra: tuple[HostView, ...] = ()
    unreadable: Tensor = NO_IMAGES


def render(
    batch: HostBatch,
    patch_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> PartitionedBatch:
    """Applies colours, normalisation and geometry on the device where the pixels are."""

    def views(hosts: tuple[HostView, ...]) -> tuple[View, ...]:
        return tuple(view for host in hosts for view in _render_view(host, patch_size, mean, std))

    return PartitionedBatch(
        views(batch.crop),
        views(batch.invertible),
        batch.indices,
        batch.label,
        batch.indices.new_full((), len(batch.unreadable)),
        views(batch.extra),
    )


def _render_view(
    host: HostView, patch_size: int, mean: Sequence[float], std: Sequence[float]
) -> list[View]:
    """One view, or several that differ in their elements; colours are applied once."""
    pixels = photometric.apply_(host.record, (host.pixels / 255).contiguous())
    pixels = normalise(pixels, mean, std)
    record = to_device(host.record, pixels.device)
    elements = host.elements if host.element is None else (host.element,)
    if not elements:
        return [View(pixels, record=record)]
    return [View(act(element, pixels, patch_size), element, record) for element in elements]


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Standardises float pixels (B, 3, H, W) in [0, 1] per channel, without waiting for them."""
    centre, scale = (
        torch.tensor(values, dtype=pixels.dtype).view(-1, 1, 1).to(pixels.device, non_blocking=True)
        for values in (mean, std)
    )
    return (pixels - centre).div_(scale)


def to_device(
    record: ViewRecord[np.ndarray], device: torch.device | str = "cpu"
) -> ViewRecord[Tensor]:
    """Moves a record beside the pixels: columns of one (B, 20) float32 tensor, in one transfer."""
    columns = [
        field.astype(np.float32).reshape(len(field), *field.shape[1:] or (1,)) for field in record
    ]
    packed = torch.from_numpy(np.concatenate(columns, axis=1)).to(device, non_blocking=True)
    fields = packed.split([column.shape[1] for column in columns], dim=1)
    ranks = (field.ndim for field in record)
    return ViewRecord(*(f if n > 1 else f[:, 0] for f, n in zip(fields, ranks, strict=True)))


def replay(
    record: ViewRecord[Tensor],
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

    Raises:
        ValueError: the images are not as many, or not of the sizes, as the record's.
    """
    drawn: ViewRecord[np.ndarray] = ViewRecord(*(field.cpu().double().numpy() for field in record))
    sizes = drawn.source_size
    if not np.array_equal(crops.image_sizes(images), sizes):
        raise ValueError(
            f"images of sizes {crops.image_sizes(images).tolist()} for a record of images of sizes "
            f"{sizes.astype(int).tolist()}; give the images of the record's rows, as they were read"
        )
    drawn = drawn._replace(box=np.rint(drawn.box))
    return photometric.apply(drawn, crops.cut(images, drawn, size, interpolation) / 255)
