"""From an image file to 8-bit colour: upright or as stored, opaque, and not too large.

Which sets are turned upright is decided in `folder.py` (`upright`).
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from ser_lightning.numbers import PositiveInt, checked, within
from ser_lightning.sources.base import UnreadableImage

_NO_PHOTOGRAPHS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "PDF", "WMF"}
EXTENSIONS = tuple(
    sorted(
        extension
        for extension, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PHOTOGRAPHS and extension != ".pfm"
    )
)
"""Extensions, in lower case, of the photographs and drawings that Pillow can open."""

TOO_LARGE = (
    "shrink the file, or raise the `max_pixels` of a CocoDetection, ImageFolder, MaskFolder or "
    "TorchvisionSet (--data.source.max_pixels)"
)
_SIDEWAYS = range(5, 9)  # of EXIF's orientations: height and width are those of the turned picture
_DEPTHS = (8, 10, 12, 14, 16)
_WHITE_OF_PPM = (1 << 16) - 1  # which a file of 16 bits says, whatever its pixels use
_ALPHA = ("RGBA", "LA", "PA")
_STRETCHED = {"L;2": 85, "L;4": 17}
_PHOTOMETRIC = 262  # of TIFF; 0 is white

if TYPE_CHECKING:
    Level = int
else:
    Level = within(int, 0, 255)


@checked
@dataclass(frozen=True)
class Decode:
    """How image files become pixels.

    Attributes:
        upright: whether to turn photographs as their EXIF orientation says. False shows them as
            they are stored, as published pipelines do. (Pillow itself turns TIFF files.)
        background: red, green and blue behind transparent areas.
        max_pixels: most pixels to decode of a file.
        reduced: whether JPEG's decoder may leave out detail that no view shows.
    """

    upright: bool = False
    background: tuple[Level, Level, Level] = (255, 255, 255)
    max_pixels: PositiveInt = 178_956_970  # where Pillow's own limit lies
    reduced: bool = False

    def describe(self) -> dict[str, Any]:
        """The settings in plain values, for a record; of the last one, only that it is on."""
        settings = asdict(self) | {"background": list(self.background)}
        return {name: value for name, value in settings.items() if name != "reduced" or value}


AS_STORED = Decode()


def read_image(path: str | Path, decode: Decode = AS_STORED, min_side: int | None = None) -> Tensor:
    """Reads the first picture of a file, in colour: (3, H, W) uint8.

    Pixels of more than 8 bits are divided by the file's own depth: the smallest of 8, 10, 12, 14
    and 16 bits that holds its brightest pixel.

    Args:
        path: the file.
        decode: how to show it.
        min_side: lets the decoder of JPEG leave out detail, as long as height and width stay at
            least as long; None for the full size.

    Raises:
        UnreadableImage: the file is missing, damaged or too large, or its pixels have no known
            range.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for a writer
            raise ValueError("is no file but a folder, pipe or device")
        with pixel_limit(None), Image.open(path) as image:
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            if image.width * image.height > decode.max_pixels:
                raise ValueError(
                    f"{image.width} x {image.height} pixels are more than max_pixels "
                    f"{decode.max_pixels:,}; {TOO_LARGE}"
                )
            return _to_rgb(image, decode)
    except Exception as error:  # damaged files make decoders raise almost anything
        raise UnreadableImage(f"{path}: {str(error) or type(error).__name__}") from error


def shown_size(image: Image.Image, decode: Decode) -> tuple[int, int]:
    """Height and width of an opened image as `read_image` shows it."""
    size = image.height, image.width
    with suppress(Exception):  # as there
        if image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS:
            if image.format == "TIFF":  # which Pillow turns, and some versions before loading
                image.load()
                return image.height, image.width
            return size[::-1] if decode.upright else size
    return size


class _Limit(int):
    """A limit that Pillow, which warns beyond it and refuses twice as much, takes at its word."""

    def __rmul__(self, other: int) -> int:
        return self


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Refuses larger files that are opened by a ValueError; None leaves that to the caller."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if max_pixels is None else _Limit(max_pixels)
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} {TOO_LARGE}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image, decode: Decode) -> Tensor:
    # The pixels of gray images with 16 bits are all there; of colours Pillow keeps the upper half.
    factor, _ = stretched(image)
    kinds = [str(tile[3]) for tile in getattr(image, "tile", ())]
    is_halved = any(";16" in kind or str(_WHITE_OF_PPM) in kind for kind in kinds)
    is_negative = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0  # type: ignore[attr-defined]
    image.load()
    info = image.info
    if "transparency" in info:
        info["transparency"] = _as_shown(info["transparency"], factor, is_halved)
    if decode.upright:
        with suppress(Exception):  # a damaged EXIF block does not make the picture unreadable
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save 8 or 16 bits")
    if image.mode.startswith("I"):
        return _from_deep_gray(np.asarray(image), info.get("transparency"), decode, is_negative)
    if is_halved:
        _check_brightness(image)
    if image.mode in _ALPHA or "transparency" in info:
        canvas = Image.new("RGBA", image.size, decode.background)
        image = Image.alpha_composite(canvas, image.convert("RGBA"))
    colours = image if image.mode == "RGB" else image.convert("RGB")  # which copies either way
    return torch.from_numpy(np.array(colours)).permute(2, 0, 1)


def stretched(image: Image.Image) -> tuple[int, bool]:
    """The factor by which Pillow spreads gray levels of few bits, and whether it inverts levels.

    It spreads those of 2 and 4 bits over 0 to 255, and inverts those of a TIFF whose 0 is white. To
    be asked before the image is loaded.
    """
    *_, kind = next(iter(getattr(image, "tile", ())), ("",))
    name = str(kind[0] if isinstance(kind, tuple) else kind)  # TIFF's has more
    inverted = re.fullmatch(r"(1|L)(;\d?)I(R?)", name)
    plain = f"{inverted[1]}{inverted[2]}" if inverted else name
    return _STRETCHED.get(plain, 1), inverted is not None


def _as_shown(transparent: Any, factor: int, is_halved: bool) -> Any:
    """The level or colour that is transparent, which Pillow leaves in the file's own depth."""
    if isinstance(transparent, tuple) and is_halved:
        return tuple(level >> 8 for level in transparent)
    return factor * transparent if isinstance(transparent, int) else transparent


def _from_deep_gray(
    levels: np.ndarray, transparent: Any, decode: Decode, is_negative: bool
) -> Tensor:
    """Scales gray levels of up to 16 bits by the depth that they use."""
    low, high = int(levels.min()), int(levels.max())
    depth = next((depth for depth in _DEPTHS if high < 1 << depth), None)
    if low < 0 or depth is None:
        raise ValueError(f"levels from {low} to {high} are not of 16 bits; save 8 or 16 bits")
    shown = (1 << depth) - 1 - levels.astype(np.int64) if is_negative else levels.astype(np.int64)
    gray = torch.from_numpy((shown >> (depth - 8)).astype(np.uint8))
    if transparent is None:
        return gray.expand(3, -1, -1)
    background = torch.tensor(decode.background, dtype=torch.uint8)[:, None, None]
    return torch.where(torch.from_numpy(levels == transparent), background, gray)


def _check_brightness(image: Image.Image) -> None:
    """Refuses colours of 16 bits per channel that use fewer: their upper half is all but black."""
    colours = image.getchannel("L") if image.mode == "LA" else image.convert("RGB")
    brightest = int(np.asarray(colours).max())
    if brightest < 1 << (_DEPTHS[-2] - 8):
        raise ValueError(
            "16 bits per channel, of which the brightest pixel uses fewer than 15, and only the "
            "upper 8 can be read: it would be dark; save it with 8 bits per channel"
        )
