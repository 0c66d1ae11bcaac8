"""One file of several engines, one for each size of image: a zip archive, not compressed.

Its members are called `800x1344.plan`: `unzip` gives what TensorRT's own tools take.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import InputError
from deploykit.files import artifacts, contents

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Size = tuple[int, int]
    """Height and width of the images, in pixels."""

_NAME = re.compile(r"(\d{1,6})x(\d{1,6})\.plan")
_WHAT = "engines of `deploykit build`, one for each size of image"
_DATE = (1980, 1, 1, 0, 0, 0)


def name(size: Size) -> str:
    """Return the member's name for images of this height and width."""
    return f"{size[0]}x{size[1]}.plan"


def write(path: Path, engines: Mapping[Size, Path]) -> None:
    """Write the files `engines` into one, in this order. Raises: OutputError."""
    with artifacts.replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for size, engine in engines.items():
            member = zipfile.ZipInfo(name(size), _DATE)
            with engine.open("rb") as source, archive.open(member, "w", force_zip64=True) as sink:
                shutil.copyfileobj(source, sink)


def sizes(path: Path) -> tuple[Size, ...]:
    """Return the sizes of image of a file's engines, none for one that is no such archive.

    Raises: InputError where the archive is damaged or holds something else.
    """
    if not contents.is_bundle(contents.head(path, InputError, _WHAT)):
        return ()
    with _opened(path) as archive:
        return tuple(map(_size, archive.infolist()))


@contextlib.contextmanager
def one(path: Path, size: Size) -> Iterator[Path]:
    """Yield the engine for a size as a file of its own, with a sidecar; gone afterwards.

    What the sidecar names beside the archive, its ancestors and a library, is beside it too.

    Raises: InputError.
    """
    said = artifacts.said(path)
    with tempfile.TemporaryDirectory(prefix="deploykit-engine-") as folder:
        engine = Path(folder) / name(size)
        with _opened(path) as archive, archive.open(name(size)) as source:
            engine.write_bytes(source.read())
        artifacts.write_json(
            artifacts.sidecar(engine), {**said, "sha256": artifacts.sha256(engine)}
        )
        for beside in _named(said):
            if (path.parent / beside).is_file():
                (Path(folder) / beside).symlink_to((path.parent / beside).resolve())
        yield engine


def _named(said: Mapping[str, object]) -> Iterator[str]:
    """Yield the names of files that a sidecar speaks of, without their folders."""
    parents, made_by = said.get("parents"), said.get("made_by")
    if isinstance(parents, dict):
        yield from {Path(parent).name for parent in parents}
    plugins = made_by.get("plugins") if isinstance(made_by, dict) else None
    library = plugins.get("library") if isinstance(plugins, dict) else None
    if library:
        yield Path(str(library)).name


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, KeyError, EOFError, NotImplementedError, OSError) as error:
        raise InputError(
            f"{path} is damaged: {error}", expected=_WHAT, fix="build it again"
        ) from error


def _size(member: zipfile.ZipInfo) -> Size:
    """Return the size that a member is for. Raises: BadZipFile."""
    match = _NAME.fullmatch(member.filename)
    stored = member.compress_type == zipfile.ZIP_STORED
    if match is None or not stored or member.compress_size != member.file_size:
        raise zipfile.BadZipFile(f"its member {member.filename!r} is no engine")
    return int(match[1]), int(match[2])
