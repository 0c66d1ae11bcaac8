"""A folder of images, nested as deep as one likes; no truth."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.data import images
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


def _open(location: str) -> Dataset:
    """Return the images below `location`, sorted by relative path; hidden names are left out."""
    root = images.folder(location)
    names, others = [], 0
    for path in _files(root):
        if path.suffix.lower() in images.SUFFIXES:
            names.append(path.relative_to(root).as_posix())
        else:
            others += 1
    if not names:
        raise DataError(
            f"{root} holds no images: {others} other file{'' if others == 1 else 's'}",
            expected="files ending in " + " ".join(sorted(images.SUFFIXES)),
        )
    samples = [Sample(name, partial(images.decode, root / name)) for name in sorted(names)]
    return Dataset(f"folder:{location}", samples)


def _files(root: Path) -> Iterator[Path]:
    """Yield every visible file below `root`; links to folders are not followed."""
    for folder, folders, files in os.walk(root, onerror=_unlistable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _unlistable(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


source = Source("folder", "a folder of images, without truth", _open)
