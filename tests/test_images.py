from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

from deploykit.data import images
from deploykit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def noise(height: int = 12, width: int = 17, channels: int = 3) -> NDArray[np.uint8]:
    shape = (height, width, channels)
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
def test_every_exif_orientation_is_turned_upright_as_pillow_does(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / f"photo{suffix}", Image.fromarray(noise()), exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = images.decode(path)
    assert found.shape == ((12, 17, 3) if orientation < 5 else (17, 12, 3))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_exif_does_not_define_turns_nothing(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "photo.png", Image.fromarray(noise()), exif=exif)
    np.testing.assert_array_equal(images.decode(path), noise())


def test_damaged_exif_does_not_hide_a_good_image(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "photo.png", Image.fromarray(noise()), exif=b"Exif\0\0MM\0*\0\0\xff\xff"
    )
    np.testing.assert_array_equal(images.decode(path), noise())


OWN_TIFF = pytest.mark.skipif(
    PIL.__version__.startswith("12."), reason="Pillow 12 cannot read the YCbCr TIFF it wrote"
)


@pytest.mark.parametrize(
    "mode",
    [
        *("L", "1", "P", "RGB", "RGBA", "LA", "CMYK", "HSV"),
        pytest.param("YCbCr", marks=OWN_TIFF),
    ],
)
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    original = Image.fromarray(noise()).convert(mode)
    path = tmp_path / "image.tif"
    if mode == "HSV":
        original = original.convert("RGB")
    original.save(path)
    found = images.decode(path)
    assert found.dtype == np.uint8
    assert found.shape == (12, 17, 3)
    np.testing.assert_array_equal(found, np.asarray(original.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    for suffix in (".png", ".tif"):
        path = saved(tmp_path / f"deep{suffix}", Image.fromarray(levels))
        expected = np.round(levels / 65535 * 255)
        np.testing.assert_array_equal(images.decode(path)[..., 1], expected)


def test_a_16_bit_pgm_is_scaled_by_its_own_maximum(tmp_path: Path) -> None:
    levels = np.array([[0, 1000, 2000]], ">u2")
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 3 1 2000\n" + levels.tobytes())
    np.testing.assert_allclose(images.decode(path)[0, :, 0], [0, 127.5, 255], atol=1)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_16_bit_colour_keeps_its_range(tmp_path: Path) -> None:
    values = np.array([0, 32768, 65535, 257, 4000, 60000], ">u2")
    path = tmp_path / "deep.png"
    path.write_bytes(png(2, 1, 16, 2, b"\0" + values.tobytes()))
    np.testing.assert_allclose(images.decode(path).ravel(), values / 257.0, atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_over_black(tmp_path: Path, mode: str) -> None:
    pixels = np.full((2, 2, 4), 200, np.uint8)
    pixels[..., 3] = [[0, 255], [128, 255]]
    path = saved(tmp_path / "see.png", Image.fromarray(pixels).convert(mode))
    found = images.decode(path)[..., 0]
    np.testing.assert_allclose(found, [[0, 200], [100, 200]], atol=1)


def test_a_transparent_palette_entry_lies_over_black(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([250, 10, 10, 10, 250, 10])
    image.putdata([0, 1])
    path = saved(tmp_path / "see.png", image, transparency=0)
    np.testing.assert_array_equal(images.decode(path), [[[0, 0, 0], [10, 250, 10]]])


def test_the_first_frame_of_an_animation_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / "moving.gif", frames[0], save_all=True, append_images=frames[1:])
    assert images.decode(path)[0, 0].tolist() == [255, 0, 0]


def test_a_large_jpeg_is_decoded_at_full_size(tmp_path: Path) -> None:
    path = saved(tmp_path / "large.jpg", Image.new("RGB", (1600, 900), "navy"))
    assert images.decode(path).shape == (900, 1600, 3)


def test_the_content_counts_not_the_suffix(tmp_path: Path) -> None:
    path = saved(tmp_path / "really.jpg", Image.fromarray(noise()), format="PNG")
    np.testing.assert_array_equal(images.decode(path), noise())


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


HOSTILE = {
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"not an image at all", "not an image in a known format"),
    "truncated.jpg": (jpeg()[:900], "cannot decode"),
    "head.jpg": (jpeg()[:30], ""),
    "postscript.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "known format"),
    "zero.png": (png(0, 0, 8, 2, b""), ""),
    "broken.png": (png(9, 9, 8, 2, b"\0\0"), "cannot decode"),
    "bomb.png": (png(40000, 40000, 8, 2, b"\0"), "unpacks to too many pixels"),
    "large.png": (png(11000, 9000, 8, 2, b"\0"), "unpacks to too many pixels"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_usable_image_is_an_error_that_names_it(
    tmp_path: Path, name: str
) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        images.decode(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_a_path_that_is_no_file_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        images.decode(tmp_path / name)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_values_without_a_known_range_are_refused(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "values.tif", Image.new(mode, (3, 3)))
    with pytest.raises(DataError, match="range is not known") as caught:
        images.decode(path)
    assert str(path) in str(caught.value)
    assert "8 or 16 bits" in str(caught.value)


def test_the_suffixes_are_those_that_pillow_gives_the_formats() -> None:
    known = Image.registered_extensions()
    for suffix in images.SUFFIXES & known.keys():
        assert known[suffix] in images._SUFFIXES


def test_a_small_file_that_unpacks_to_too_many_pixels_is_named_with_its_size(
    tmp_path: Path,
) -> None:
    row = bytes(1 + 13_000)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(row) for _ in range(13_000)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 13_000, 13_000, 8, 0, 0, 0, 0))
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"bomb\.png.*(13000x13000|169000000) pixels"):
        images.decode(path)
