"""The images below a folder, and what the text after a source's name says."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from deploykit.data import images
from deploykit.errors import DataError, OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def location(source: str, text: str, known: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """Return the folder and the options that `FOLDER,key=value,...` names.

    Raises: DataError where there is no such folder; OptionError for an unknown option.
    """
    folder, *parts = text.split(",")
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals and not options:  # the folder's name has a comma
            folder = f"{folder},{part}"
            continue
        if key not in known:
            raise unknown_name(f"option of {source}", key, known)
        if key in options:
            raise OptionError(f"{source}: {key} is given twice", fix=f"keep one {key}=...")
        options[key] = value
    return images.folder(folder), options


def options(source: str, text: str, known: Sequence[str]) -> dict[str, str]:
    """Return what `key=value,...` says. Raises: OptionError for another key, or one given twice."""
    found: dict[str, str] = {}
    for part in text.split(",") if text.strip() else ():
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in known:
            raise unknown_name(f"option of {source}", key, known)
        if key in found:
            raise OptionError(f"{source}: {key} is given twice", fix=f"keep one {key}=...")
        found[key] = value
    return found


def below(root: Path, *, least: int = 1) -> list[str]:
    """Return the relative paths of all images below a folder, sorted; hidden names are left out.

    Raises: DataError where there are fewer than `least`, or a folder cannot be listed.
    """
    names, others = [], 0
    for path in _files(root):
        if path.suffix.lower() in images.SUFFIXES:
            names.append(path.relative_to(root).as_posix())
        else:
            others += 1
    if len(names) < least:
        raise DataError(
            f"{root} holds no images: {others} other file{'' if others == 1 else 's'}",
            expected="files ending in " + " ".join(sorted(images.SUFFIXES)),
        )
    return sorted(names)


def _files(root: Path) -> Iterator[Path]:
    """Yield every visible file below `root`; links to folders are not followed."""
    for folder, folders, files in os.walk(root, onerror=_unlistable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder, name) for name in files if not name.startswith("."))


def _unlistable(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}") from error


def stem(name: str) -> str:
    """Return a relative path without its last ending."""
    return str(PurePosixPath(name).with_suffix(""))


def stems(root: Path) -> dict[str, str]:
    """Return the relative path of each image below a folder, by its `stem`. Raises: DataError."""
    if not root.is_dir():
        raise DataError(f"no such folder: {root}")
    return {stem(name): name for name in below(root)}
