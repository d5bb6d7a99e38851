"""Tests of decoding image files: every mode in colour, upright or as stored, within a limit."""

import struct
import tempfile
import warnings
import zlib
from inspect import signature

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

import ser_lightning.sources.coco
import ser_lightning.sources.mask_folder  # noqa: F401 - all that have the option
from ser_lightning.data.crops import DETAIL
from ser_lightning.sources.base import Source, UnreadableImage
from ser_lightning.sources.decode import EXTENSIONS, TOO_LARGE, Decode, read_image, shown_size
from written_files import write_png, write_tiff


def save(path, value=(200, 30, 60), size=(12, 8), mode="RGB"):
    Image.new(mode, size, value).save(path)
    return str(path)


def photograph(height, width):
    """Smooth areas, edges and grain, as in a photograph."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:height, 0:width] / 64
    image = 120 + 60 * np.sin(x)[..., None] * np.cos(y + 1)[..., None] * [1, 0.6, -0.4]
    image[(x - 3) ** 2 + (y - 3) ** 2 < 2] = (230, 60, 40)
    image += rng.normal(0, 8, (height, width, 1))
    return Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "extension",
    ["jpg", "JPEG", "jfif", "jpe", "png", "webp", "bmp", "tif", "TIFF", "gif", "ppm", "jp2", "tga"],
)
def test_every_format_is_read_as_colour(tmp_path, extension):
    path = tmp_path / f"image.{extension}"
    save(path)
    image = read_image(str(path))
    assert image.dtype == torch.uint8
    assert image.shape == (3, 8, 12)
    expected = torch.tensor([200, 30, 60])[:, None, None]
    assert (image.int() - expected).abs().max() <= 4  # JPEG and WebP are lossy


@pytest.mark.parametrize(
    ("mode", "value"), [("L", 90), ("LA", (90, 255)), ("RGBA", (90, 90, 90, 255)), ("P", 90)]
)
def test_other_colour_modes_are_read_as_colour(tmp_path, mode, value):
    picture = Image.new(mode, (12, 8), value)
    if mode == "P":
        picture.putpalette([level for level in range(256) for _ in range(3)])
    picture.save(tmp_path / "image.png")
    image = read_image(str(tmp_path / "image.png"))
    assert image.shape == (3, 8, 12)
    assert (image == 90).all()


def test_cmyk_jpeg_is_read_as_colour(tmp_path):
    save(tmp_path / "image.jpg", (0, 255, 255, 0), mode="CMYK")
    red, green, blue = read_image(str(tmp_path / "image.jpg")).float().mean((1, 2)).tolist()
    assert red > 200
    assert max(green, blue) < 80


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_images_keep_their_upper_half(tmp_path, extension):
    levels = np.arange(96, dtype=np.uint16).reshape(8, 12) * 600
    path = tmp_path / f"image.{extension}"
    Image.fromarray(levels).save(path)
    image = read_image(str(path))
    assert np.array_equal(image.numpy(), np.broadcast_to(levels >> 8, (3, 8, 12)))


def test_floating_point_image_is_refused(tmp_path):
    Image.fromarray(np.zeros((8, 12), np.float32)).save(tmp_path / "image.tif")
    with pytest.raises(UnreadableImage, match=r"image\.tif: floating-point pixels"):
        read_image(str(tmp_path / "image.tif"))


def test_bit_images_are_black_and_white(tmp_path):
    image = read_image(save(tmp_path / "image.png", 1, mode="1"))
    assert (image == 255).all()


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("extension", ["png", "tif"])
def test_deep_gray_is_scaled_by_the_depth_that_it_uses(tmp_path, bits, extension):
    levels = np.linspace(0, 2**bits - 1, 96).astype(np.uint16).reshape(8, 12)
    path = tmp_path / f"image.{extension}"
    Image.fromarray(levels).save(path)
    image = read_image(str(path))
    assert image.min() == 0
    assert image.max() == 255
    assert np.array_equal(image[1].numpy(), levels >> (bits - 8))


def test_gray_of_32_bits_is_scaled_within_16_and_refused_beyond(tmp_path):
    Image.fromarray(np.array([[0, 4095]], dtype=np.int32)).save(tmp_path / "image.tif")
    assert read_image(str(tmp_path / "image.tif"))[0].tolist() == [[0, 255]]
    for levels in ([0, 1 << 16], [-1, 5]):
        Image.fromarray(np.array([levels], dtype=np.int32)).save(tmp_path / "image.tif")
        with pytest.raises(
            UnreadableImage, match=rf"image\.tif: levels from {levels[0]} to .*save"
        ):
            read_image(str(tmp_path / "image.tif"))


@pytest.mark.parametrize(("brightest", "is_read"), [(255, False), (4095, False), (60_000, True)])
def test_deep_colour_is_read_or_refused_but_never_dark(tmp_path, brightest, is_read):
    """Written by hand: Pillow neither writes nor keeps 16 bits per channel."""
    levels = np.full((8, 12, 3), brightest, dtype=">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    path = tmp_path / "image.png"
    header = struct.pack(">IIBBBBB", 12, 8, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
            for kind, content in chunks
        )
    )
    if is_read:
        assert (read_image(str(path)) == brightest >> 8).all()
    else:
        with pytest.raises(
            UnreadableImage, match=r"image\.png: 16 bits per channel.*save it with 8"
        ):
            read_image(str(path))


@pytest.mark.parametrize("background", [(255, 255, 255), (10, 20, 30)])
@pytest.mark.parametrize(
    ("mode", "value", "option"),
    [
        ("LA", (90, 0), {}),
        ("RGBA", (90, 80, 70, 0), {}),
        ("P", 1, {"transparency": 1}),
        ("P", 1, {"transparency": b"\xff\0"}),
        ("L", 90, {"transparency": 90}),
        ("I;16", 90, {"transparency": 90}),
        ("RGB", (90, 80, 70), {"transparency": (90, 80, 70)}),
    ],
)
def test_transparent_areas_show_the_background(tmp_path, mode, value, option, background):
    image = Image.new(mode, (12, 8), value)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 30, 60])
    image.save(tmp_path / "image.png", **option)
    shown = read_image(str(tmp_path / "image.png"), Decode(background=background))
    assert (shown == torch.tensor(background)[:, None, None]).all()


def test_half_transparent_colour_is_mixed_with_the_background(tmp_path):
    image = read_image(save(tmp_path / "image.png", (100, 0, 255, 128), mode="RGBA"))
    expected = torch.tensor([177, 127, 255])[:, None, None]
    assert (image.int() - expected).abs().max() <= 1


@pytest.mark.parametrize("extension", ["gif", "png", "webp", "tif"])
def test_animation_shows_its_first_picture(tmp_path, extension):
    frames = [Image.new("RGB", (12, 8), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    path = tmp_path / f"image.{extension}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    red, green, _ = read_image(str(path)).float().mean((1, 2)).tolist()
    assert red > 240
    assert green < 10


def stored_as(upright, orientation):
    """How a camera stores an upright picture (H, W, 3), from the definition in EXIF.

    The value says where row 0 and column 0 of the stored picture lie in the upright one.
    """
    return {
        1: upright,  # top, left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.swapaxes(0, 1),  # left, top
        6: upright[:, ::-1].swapaxes(0, 1),  # right, top
        7: upright[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: upright[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation]


@given(
    orientation=st.integers(1, 8),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 9),
    extension=st.sampled_from(["png", "webp"]),
)
@settings(max_examples=60, deadline=None)
def test_photographs_are_shown_upright_or_as_stored(orientation, height, width, seed, extension):
    upright = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stored = np.ascontiguousarray(stored_as(upright, orientation))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.{extension}"
        Image.fromarray(stored).save(path, exif=exif, lossless=True)
        assert np.array_equal(read_image(path, Decode(upright=True)).permute(1, 2, 0), upright)
        assert np.array_equal(read_image(path).permute(1, 2, 0), stored)


def test_orientation_of_jpeg_deep_gray_and_damaged_blocks(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = Decode(upright=True)
    path = tmp_path / "image.jpg"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    assert read_image(path, upright).shape == (3, 40, 20)
    assert read_image(path, upright, min_side=10).shape == (3, 20, 10)
    Image.fromarray(np.zeros((2, 4), np.uint16)).save(tmp_path / "deep.png", exif=exif)
    assert read_image(tmp_path / "deep.png", upright).shape == (3, 4, 2)
    Image.new("RGB", (40, 20)).save(path, exif=b"Exif\0\0no such block")
    assert read_image(path, upright).shape == (3, 20, 40)


def test_limit_on_pixels_names_file_and_option_and_pillow_is_silent(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    path = save(tmp_path / "image.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == (3, 8, 12)
    assert Image.MAX_IMAGE_PIXELS == 20
    with pytest.raises(UnreadableImage, match=r"image\.png: 12 x 8 pixels .* `max_pixels`"):
        read_image(path, Decode(max_pixels=95))
    assert read_image(path, Decode(max_pixels=96)).shape == (3, 8, 12)


def test_limit_counts_the_pixels_that_are_decoded(tmp_path):
    photograph(400, 600).save(tmp_path / "image.jpg")
    limit = Decode(max_pixels=300 * 200)
    assert read_image(tmp_path / "image.jpg", limit, min_side=200).shape == (3, 200, 300)
    with pytest.raises(UnreadableImage, match="600 x 400 pixels"):
        read_image(tmp_path / "image.jpg", limit)


@pytest.mark.parametrize("reduced", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("detail", [DETAIL, 2])
def test_reduced_decoding_does_not_change_a_view_visibly(tmp_path, reduced, mode, detail):
    """Measured: 0.22 to 0.83 levels of 255.

    In 93 photographs of ImageNet, halved or quartered: 1.0 to 1.3 on average and 3.8 at most with
    1.5 times the pixels of the view, 0.7 to 1.0 and 3.6 with twice.
    """
    side, view = 128, round(128 / detail)
    photograph(side * reduced, (side + 8) * reduced).save(tmp_path / "image.jpg", quality=90)
    whole = read_image(tmp_path / "image.jpg")
    small = read_image(tmp_path / "image.jpg", min_side=side)
    assert small.shape == (3, side, side + 8)
    views = [
        torch.nn.functional.interpolate(
            image[None, :, :, : image.shape[1]].float(),
            (view, view),
            mode=mode,
            antialias=True,
        )
        for image in (whole, small)
    ]
    assert (views[0] - views[1]).abs().mean() < 1.5


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    min_side=st.integers(1, 200),
    extension=st.sampled_from(["jpg", "png"]),
)
@settings(max_examples=40, deadline=None)
def test_reduced_decoding_keeps_the_shortest_side(height, width, min_side, extension):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.{extension}"
        Image.new("RGB", (width, height)).save(path)
        image = read_image(path, min_side=min_side)
    assert min(image.shape[1:]) >= min(min_side, height, width)
    assert image.shape[1] <= height
    if extension == "png":
        assert image.shape == (3, height, width)


@pytest.mark.parametrize("options", [{"background": (0, 0)}, {"background": (0, 0, 256)}])
def test_background_that_is_no_colour_is_refused(options):
    with pytest.raises(ValueError, match=r"background .* must be .*int in \[0, 255\]"):
        Decode(**options)


def test_limit_below_one_pixel_is_refused():
    with pytest.raises(ValueError, match="max_pixels 0"):
        Decode(max_pixels=0)


def test_extensions_are_those_of_photographs():
    jpeg, others = {".jpg", ".jpeg", ".jpe", ".jfif"}, {".png", ".webp", ".gif", ".bmp"}
    assert jpeg | others | {".tif", ".tiff", ".ppm", ".pgm", ".pnm", ".jp2"} <= set(EXTENSIONS)
    assert not {".pdf", ".mpg", ".mpeg", ".eps", ".h5", ".wmf", ".pfm"} & set(EXTENSIONS)


def test_wrong_extension_is_read_all_the_same(tmp_path):
    save(tmp_path / "image.bmp")
    (tmp_path / "image.bmp").rename(tmp_path / "image.jpg")
    assert read_image(str(tmp_path / "image.jpg")).shape == (3, 8, 12)


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "gif"])
def test_truncated_file_is_named_with_the_reason(tmp_path, extension):
    path = tmp_path / f"torn.{extension}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnreadableImage, match=rf"torn\.{extension}: .+"):
        read_image(str(path))


def test_remedy_for_large_files_names_the_sources_that_have_it():
    having = {
        kind.__name__
        for kind in Source.__subclasses__()
        if kind.__module__.startswith("ser_lightning.")
        and "max_pixels" in signature(kind.__init__).parameters
    }
    assert having == {"CocoDetection", "ImageFolder", "MaskFolder", "TorchvisionSet"}
    assert all(name in TOO_LARGE for name in having)


@pytest.mark.parametrize("kind", ["P6", "P3"])
def test_colours_of_12_bits_in_a_file_that_says_16_are_not_read_as_black(tmp_path, kind):
    levels = np.linspace(0, 4095, 60).astype(int).reshape(4, 5, 3)

    def write(white):
        text = " ".join(map(str, levels.ravel())).encode()
        body = levels.astype(">u2").tobytes() if kind == "P6" else text
        (tmp_path / "deep.ppm").write_bytes(f"{kind}\n5 4\n{white}\n".encode() + body)
        return read_image(tmp_path / "deep.ppm")

    expected = torch.from_numpy(levels / 4095 * 255).permute(2, 0, 1)
    assert (write(4095) - expected).abs().max() <= 1
    with pytest.raises(UnreadableImage, match="it would be dark"):
        write(65535)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_gray_of_which_0_is_white_is_no_negative(tmp_path, depth):
    levels = np.linspace(0, (1 << depth) - 1, 64).astype(int).reshape(8, 8).tolist()
    for photometric, ends in ((1, [0, 255]), (0, [255, 0])):
        write_tiff(tmp_path / "gray.tif", levels, depth, photometric)
        assert read_image(tmp_path / "gray.tif")[1].flatten()[[0, -1]].tolist() == ends


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_transparent_level_of_any_depth_shows_the_background(tmp_path, depth):
    top, decode = (1 << depth) - 1, Decode(background=(10, 200, 100))
    write_png(tmp_path / "gray.png", [[0, top] * 4], depth, [top])
    assert read_image(tmp_path / "gray.png", decode)[:, 0, :2].T.tolist() == [
        [0, 0, 0], [10, 200, 100],
    ]  # fmt: skip


def test_transparent_colour_of_16_bits_shows_the_background(tmp_path):
    pixels, decode = [0x1234, 0x5678, 0x9ABC, *[0xFFFF] * 3], Decode(background=(10, 200, 100))
    write_png(tmp_path / "colour.png", [pixels], 16, pixels[:3], colours=3)
    assert read_image(tmp_path / "colour.png", decode)[:, 0].T.tolist() == [
        [10, 200, 100], [255, 255, 255],
    ]  # fmt: skip


@pytest.mark.parametrize("upright", [True, False])
@pytest.mark.parametrize("extension", ["tif", "png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_shown_size_is_that_of_the_image_that_is_read(tmp_path, extension, orientation, upright):
    path, exif = tmp_path / f"photo.{extension}", Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (48, 24)).save(path, exif=exif)
    decode = Decode(upright)
    with Image.open(path) as image:
        assert shown_size(image, decode) == tuple(read_image(path, decode).shape[1:])
