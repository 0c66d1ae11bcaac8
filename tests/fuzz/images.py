"""Hostile images, and hostile folders of them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import sound
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VERBS = ("eval", "quantize", "bench", "verify")
_SIDE = 13_000


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case."""
    photo = next((base / sound.COCO / sound.PHOTOS).glob("*.png")).read_bytes()
    files = {**_FILES, **dict(_damaged(photo, seed))}
    for i, (what, content) in enumerate(files.items()):
        yield Case(f"image: {what}", partial(_one, content=content, verb=_VERBS[1 + i % 3]))
    for name, write in _FOLDERS.items():
        yield Case(f"image: {name}", partial(_folder, write=write))


def _one(folder: Path, base: Path, *, content: bytes | Callable[[], bytes], verb: str) -> list[str]:
    (folder / "photos").mkdir()
    data = content if isinstance(content, bytes) else content()
    for name in ("a.png", "b.jpg", "c.png", "d.png"):
        (folder / "photos" / name).write_bytes(data)
    return _words(base, verb)


def _folder(folder: Path, base: Path, *, write: Callable[[Path], None]) -> list[str]:
    (folder / "photos").mkdir()
    write(folder / "photos")
    return _words(base, "quantize")


def _words(base: Path, verb: str) -> list[str]:
    model = str(base / sound.MODEL)
    match verb:
        case "quantize":
            return ["quantize", model, "--calib-dir", "photos", "-o", "out.onnx"]
        case "bench":
            times = ["--duration", "0.05", "--warmup", "0", "--iterations", "2"]
            return ["bench", model, "--end-to-end", "folder:photos", *times]
        case _:
            return ["verify", model, "--against", model, "--source", "folder:photos"]


def _png(width: int, height: int, rows: bytes, *, depth: int = 8, colour: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _bomb(side: int = _SIDE) -> bytes:
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    packed = b"".join(packer.compress(row) for _ in range(side))
    return _png(side, side, packed + packer.flush())


def _saved(kind: str, **options: object) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (9, 99, 9)).save(buffer, kind, **options)
    return buffer.getvalue()


def _bad_exif() -> bytes:
    return _saved("JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 200)


_FILES: dict[str, bytes | Callable[[], bytes]] = {
    "empty": b"",
    "text": b"no image",
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(touch canary) run\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>",
    "13,000 x 13,000": _bomb,
    "says 2^31 x 2^31": _png((1 << 31) - 1, (1 << 31) - 1, zlib.compress(b"")),
    "says 60,000 x 60,000": _png(60_000, 60_000, zlib.compress(bytes(100))),
    "1 x 1,000,000": partial(_png, 1, 1_000_000, zlib.compress(bytes(4_000_000))),
    "0 x 0": _png(0, 0, zlib.compress(b"")),
    "no pixels": _png(40, 30, zlib.compress(b"")),
    "bad colour type": _png(40, 30, zlib.compress(bytes(4000)), colour=99),
    "a GIF of 65,535 x 65,535": b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff"
    b",\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;",
    "a PPM of 10^9 x 10^9": b"P6 1000000000 1000000000 255\n" + bytes(100),
    "a PPM of -1": b"P6 -1 -1 255\n" + bytes(100),
    "a BMP of 2^31": b"BM"
    + struct.pack(
        "<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0
    ),
    "a TIFF that points to itself": b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0"
    b"\xff\xff\0\0\x08\0\0\0",
    "bad EXIF": _bad_exif,
    "WebP": partial(_saved, "WEBP"),
}


def _damaged(photo: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    import random

    rng = random.Random(seed)
    for share in (0.05, 0.5, 0.95):
        yield f"cut at {share:.0%}", photo[: int(len(photo) * share)]
    for number in range(6):
        damaged = bytearray(photo)
        for _ in range(3):
            damaged[rng.randrange(8, len(damaged))] ^= 1 << rng.randrange(8)
        yield f"damaged {number}", bytes(damaged)


def _fifo(photos: Path) -> None:
    os.mkfifo(photos / "a.png")


def _device(photos: Path) -> None:
    (photos / "a.png").symlink_to("/dev/zero")


def _circle(photos: Path) -> None:
    (photos / "a.png").symlink_to("b.png")
    (photos / "b.png").symlink_to("a.png")


def _folders_in_a_circle(photos: Path) -> None:
    (photos / "again").symlink_to(photos)
    (photos / "a.png").write_bytes(b"")


def _names(photos: Path) -> None:
    for name in (b"\x1b[31mred.png", "\u202egnp.png".encode(), b"\xff\xfe.png", b"a\nb.png"):
        (photos / os.fsdecode(name)).write_bytes(b"no image")


def _deep(photos: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(photos)
    for _ in range(200):
        Path("d" * 60).mkdir()
        os.chdir("d" * 60)
    os.fchdir(here)


def _a_folder_called_like_an_image(photos: Path) -> None:
    (photos / "a.png").mkdir()


_FOLDERS: dict[str, Callable[[Path], None]] = {
    "a pipe": _fifo,
    "a device": _device,
    "links in a circle": _circle,
    "folders in a circle": _folders_in_a_circle,
    "hostile names": _names,
    "200 folders deep": _deep,
    "a folder called like one": _a_folder_called_like_an_image,
    "an empty folder": lambda _: None,
}
