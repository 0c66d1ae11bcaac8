"""What a file holds, judged by its first bytes: for errors that say what was really given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.files import paths

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deploykit.errors import InputError

HEAD = 512
"""Bytes that are enough to recognise every kind below."""
ZIP = b"PK\x03\x04"
HDF5 = b"\x89HDF\r\n\x1a\n"
_NAME_SIZE, _NAME_PLACE = 26, 30
"""Where a zip archive says how long the name of its first member is, and the name."""
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_OLD_PICKLES = (b"(dp", b"(lp", b"(tp", b"ccollections\n", b"ccopy_reg\n", b"}q", b"]q")
"""Protocols 0 and 1 have no mark of their own: a dictionary, a list or an object begins so."""
_ENGINES = (b"ftrt", b"ptrt", b"vtrt")
Kind: TypeAlias = Literal["checkpoint", "engine", "onnx"]
_UNTEXT = frozenset(range(32)) - frozenset(b"\t\n\r\f")

# First bytes (lower case for text), what the file is, what to do about it.
_KINDS = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer: the file itself was not downloaded",
        "fetch it with: git lfs pull",
    ),
    (b"<!doctype", "a web page: the download failed", "download the file itself, not its page"),
    (b"<html", "a web page: the download failed", "download the file itself, not its page"),
    (b"ftrt", "a TensorRT engine", ""),
    (b"ptrt", "a TensorRT-RTX engine", ""),
    (b"vtrt", "a TensorRT-RTX engine", ""),
    (ZIP, "a zip archive, such as a PyTorch checkpoint", ""),
    (b"\x80\x02", "a Python pickle, such as a PyTorch checkpoint", ""),
    (b"\x80\x03", "a Python pickle, such as a PyTorch checkpoint", ""),
    (b"\x80\x04", "a Python pickle, such as a PyTorch checkpoint", ""),
    (b"\x80\x05", "a Python pickle, such as a PyTorch checkpoint", ""),
    (b"\x1f\x8b", "a gzip archive", "unpack it first: gunzip FILE"),
    (b"BZh", "a bzip2 archive", "unpack it first: bunzip2 FILE"),
    (b"\xfd7zXZ", "an xz archive", "unpack it first: unxz FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive", "unpack it first: unzstd FILE"),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"Rar!", "a RAR archive", "unpack it first"),
    (b"\x89hdf", "an HDF5 file, such as Keras' weights", ""),
    (b"\x89png", "a PNG image", ""),
    (b"\xff\xd8\xff", "a JPEG image", ""),
)


def kind(first: bytes) -> Kind:
    """Return what kind of model a file that begins with `first` holds.

    An ONNX file has no mark of its own: it is what is nothing else.
    """
    if first[:4].lower() in _ENGINES or is_bundle(first):
        return "engine"
    safetensors = first[6:9] == b"\0\0{"  # a length of 8 bytes, then JSON
    tar = first[257:262] == b"ustar"
    if first.startswith((ZIP, HDF5, *_PICKLES, *_OLD_PICKLES)) or safetensors or tar:
        return "checkpoint"
    return "onnx"


def is_bundle(first: bytes) -> bool:
    """Return whether a file that begins with `first` holds engines for several sizes of image."""
    size = int.from_bytes(first[_NAME_SIZE : _NAME_SIZE + 2], "little")
    return first.startswith(ZIP) and first[_NAME_PLACE : _NAME_PLACE + size].endswith(b".plan")


def head(path: Path, error: type[InputError], what: str) -> bytes:
    """Return the first HEAD bytes of `path`, which should hold `what`, e.g. "an ONNX model".

    Raises: `error` where the file is missing, a folder, a device or a pipe, unreadable or empty.
    """
    return read(path, error, what, whole=lambda _: False)


def read(
    path: Path,
    error: type[InputError],
    what: str,
    *,
    whole: Callable[[bytes], bool] = lambda _: True,
    check: Callable[[int], None] = lambda _: None,
) -> bytes:
    """Return the content of `path`, which should hold `what`, in one reading.

    whole: from the first HEAD bytes, whether the rest is wanted too.
    check: takes the size of the file in bytes before the rest is read.

    Raises: `error` where the file is missing, no plain file, unreadable or empty; what `check`
    does.
    """
    paths.require_file(path, what, error)
    try:
        with path.open("rb", buffering=0) as file:  # to add the rest to a buffer would copy all
            found = file.read(HEAD)
            if whole(found):
                check(os.fstat(file.fileno()).st_size)
                file.seek(0)
                found = file.read()
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror or reason}") from reason
    if not found:
        raise error(f"{path} is empty", expected=what, fix="make or download the file again")
    return found


def foreign(path: Path, first: bytes, error: type[InputError], what: str) -> InputError:
    """Return the error for a file that begins with `first` and does not hold `what`."""
    kind, fix = recognise(first)
    found = f"{path} is {kind}" if kind else f"{path} is not {what}, or it is damaged"
    return error(found, expected=what, fix=fix or "give another file, or download it again")


def recognise(first: bytes) -> tuple[str, str]:
    """Return what a file that begins with `first` is, and what to do; empty where unknown."""
    start = first.lstrip().lower()
    for prefix, kind, fix in _KINDS:
        if start.startswith(prefix) or first.startswith(prefix):
            return kind, fix
    if first and not _UNTEXT.intersection(first) and _decodes(first):
        return "a text file", ""
    return "", ""


def _decodes(first: bytes) -> bool:
    try:
        first.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > HEAD - 4  # the head may end within a character
    return True
