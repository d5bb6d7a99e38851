"""What is drawn for a view of each image: the numbers, their record, and the view made from it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ser_lightning.batch import ViewRecord
from ser_lightning.data import crops, photometric
from ser_lightning.data.crops import Cut, Interpolation
from ser_lightning.data.partition import BatchKey
from ser_lightning.data.photometric import PhotometricRecord
from ser_lightning.data.randomness import Stream, uniforms

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
