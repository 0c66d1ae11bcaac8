"""The paths of one command, judged together before the slow step.

Every file that a command writes is another one than those it reads or writes beside it, and what
lies there already is a plain file: a device, a pipe or a folder is never replaced. A link is
followed: what it points to is replaced, and the link stays.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deploykit.errors import InputError, OptionError, OutputError

if TYPE_CHECKING:
    from deploykit.errors import DeployError

Named: TypeAlias = Mapping[str, "Path | str | None"]
"""What a path is for, as the user named it (`--table`) -> the path; None: not given."""

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def check(*, reads: Named, writes: Named) -> None:
    """Check that no file written is one of the others, and that each can be written.

    `reads` may name one file twice, and folders. Raises: InputError, OptionError, OutputError.
    """
    places = {}
    for name, path in reads.items():
        if path is not None:
            places[name] = _place(Path(path), InputError)
    for name, path in writes.items():
        if path is None:
            continue
        found = target(Path(path))
        for other, place in places.items():
            if place == found or _is_same(place, found):
                raise OptionError(
                    f"{name} is {other} itself: {path}",
                    expected="files that differ",
                    fix=f"give another name for {name}",
                )
        places[name] = found


def target(path: Path) -> Path:
    """Return where a file written to `path` comes to lie: links are followed.

    Raises: OutputError where something other than a plain file is there.
    """
    place = _place(path, OutputError)
    kind = _kind(place, OutputError)
    if kind:
        raise OutputError(f"cannot write {path}: it is {kind}", fix="give the name of a file")
    return place


def require_file(path: Path, what: str, error: type[InputError] = InputError) -> None:
    """Check that `path`, which should hold `what`, is a plain file. Raises: `error`."""
    kind = _kind(path, error)
    if kind is None:
        raise error(f"no such file: {path}", expected=what)
    if kind:
        raise error(f"{path} is {kind}", expected=f"a file that holds {what}")


def _place(path: Path, error: type[DeployError]) -> Path:
    try:
        str(path).encode()  # libraries take names as UTF-8
        return Path(os.path.realpath(path))
    except (OSError, ValueError) as reason:
        raise error(f"cannot use {_short(path)}: {_why(reason)}") from reason


def _kind(path: Path, error: type[DeployError]) -> str | None:
    """Return what is at `path`, empty for a plain file, None for nothing."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as reason:
        raise error(f"cannot use {_short(path)}: {_why(reason)}") from reason
    return next(
        (kind for test, kind in _KINDS if test(mode)), "" if stat.S_ISREG(mode) else "no file"
    )


def _is_same(one: Path, other: Path) -> bool:
    """Return whether two names lead to one file, as hard links and ignored case make them."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _why(reason: OSError | ValueError) -> str:
    if isinstance(reason, UnicodeEncodeError):
        return "its name is no Unicode text"
    return (reason.strerror if isinstance(reason, OSError) else None) or str(reason)


def _short(path: Path) -> str:
    """Return a path for a message, cut where it is too long to be read."""
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN = 200
