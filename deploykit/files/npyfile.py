"""Arrays in .npy and .npz files of anybody's: bounded, of numbers, and never run."""

from __future__ import annotations

import math
import zipfile
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from deploykit.files import paths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.errors import InputError

ENDING = ".npy"
LARGEST = 1 << 31
"""Bytes of one array."""
_NUMBERS = "biuf"
"""Kinds of element that are numbers."""


def read(path: Path, error: type[InputError], *, member: str | None = None) -> NDArray[Any]:
    """Return the array in a file, or that of a name in an archive; one of its own file is mapped.

    Raises: `error` where it is no array of numbers, or not all there.
    """
    paths.require_file(path, "a file of arrays", error)
    try:
        with _opened(path, member) as (file, size):
            shape, fortran, dtype = _header(file)
            count = math.prod(shape)
            whole = min(shape, default=0) >= 0 and count * dtype.itemsize == size - file.tell()
            if dtype.kind not in _NUMBERS or not whole or size > LARGEST:
                raise error(
                    f"{path} holds {dtype}{list(shape)} in {size} bytes",
                    expected=f"numbers, all of them, in at most {LARGEST} bytes",
                )
            order: Any = "F" if fortran else "C"
            if member is None and count:
                return np.memmap(path, dtype, "r", file.tell(), shape, order)
            return np.frombuffer(file.read(), dtype).reshape(shape, order=order)
    except (OSError, ValueError, KeyError, EOFError, MemoryError, OverflowError) as reason:
        raise error(f"{path} is no file of arrays of numbers: {_short(reason)}") from reason
    except zipfile.BadZipFile as reason:
        raise error(f"{path} is no {ENDING} file or archive of such: {_short(reason)}") from reason


def members(path: Path, error: type[InputError]) -> tuple[str, ...]:
    """Return the names of the arrays in an archive. Raises: `error`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(ENDING) for name in archive.namelist())
    except (OSError, ValueError, zipfile.BadZipFile) as reason:
        raise error(f"{path} is no archive of {ENDING} files: {_short(reason)}") from reason


@contextmanager
def _opened(path: Path, member: str | None) -> Iterator[tuple[IO[bytes], int]]:
    """Yield what holds an array, and its size in bytes."""
    if member is None:
        with path.open("rb") as file:
            yield file, path.stat().st_size
        return
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(member + ENDING)
        with archive.open(entry) as inner:
            yield inner, entry.file_size


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, order and element type. Raises: ValueError; what holds it is never run."""
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    found: tuple[tuple[int, ...], bool, np.dtype[Any]] = read_header(file)
    return found


def _short(reason: Exception) -> str:
    """Return the first line of an error."""
    return next(iter(str(reason).splitlines()), type(reason).__name__)[:200]
