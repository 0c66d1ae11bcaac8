"""Temporary files and folders that do not outlive the process for good, however it ends.

A process that is killed cannot tidy up. So each name says who made it, and whoever makes the next
one in that folder removes those of the dead. The name holds the process's number and start, for
numbers come again, and a mark of the machine and its process space: a process of another machine
or container that shares the folder cannot be seen from here, and is left alone.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"\.?(?:.*\.)?deploykit-(\d+)-(\d+)-([0-9a-f]{8})\..*", re.DOTALL)
_LONGEST = 100
"""Characters of the final name that a temporary one begins with: names have 255 bytes at most."""
_START = 19
"""Place of the start in the fields of /proc/<pid>/stat that follow the program's name."""


def beside(path: Path) -> Path:
    """Return a new, empty file in the folder of `path`, called after it. Raises: OSError."""
    sweep(path.parent)
    begin = path.name.encode()[:_LONGEST].decode(errors="ignore")
    prefix = f".{begin}.{_mark()}."
    handle, name = tempfile.mkstemp(
        prefix=prefix, suffix=path.suffix if len(path.suffix) < _LONGEST else "", dir=path.parent
    )
    os.close(handle)
    return Path(name)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a new folder among the machine's temporary ones; it is gone afterwards."""
    place = Path(tempfile.gettempdir())
    sweep(place)
    with tempfile.TemporaryDirectory(prefix=f"{_mark()}.", dir=place) as name:
        yield Path(name)


def sweep(place: Path) -> int:
    """Remove what dead processes left in a folder, and return how many names that were."""
    left = 0
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if _is_stale(entry):
                _remove(entry)
                left += 1
    return left


def _is_stale(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is ours, and its process has ended."""
    match = _NAME.fullmatch(entry.name)
    if match is None or match[3] != _place():
        return False
    own = getattr(os, "getuid", lambda: 0)
    try:
        return entry.stat(follow_symlinks=False).st_uid == own() and not _lives(*match.group(1, 2))
    except OSError:
        return False


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        Path(entry.path).unlink()


def _mark() -> str:
    """Return who this process is, as names hold it."""
    return f"deploykit-{os.getpid()}-{_start(os.getpid()) or 0}-{_place()}"


@functools.cache
def _place() -> str:
    """Return a mark of this machine and of the space in which its process numbers count."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _lives(pid: str, start: str) -> bool:
    """Return whether the process of that number and start still runs."""
    if Path("/proc/self/stat").exists():
        return _start(int(pid)) == int(start)
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _start(pid: int) -> int | None:
    """Return when a process began, in clock ticks since the machine did.

    None where that is not known: it has ended, or this system does not say.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[_START - 1])
