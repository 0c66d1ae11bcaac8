"""Add lines to a file that other processes add lines to as well."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING

from deploykit.errors import OutputError
from deploykit.files import artifacts, paths

if TYPE_CHECKING:
    from pathlib import Path

_PATIENCE, _PAUSE = 60.0, 0.01
"""Seconds: to wait for other writers, and between two looks. A line takes milliseconds, but many
writers on a slow disk come in no order, and one of them may be the last."""
_LONGEST = 1 << 26
"""Bytes of the first line that are looked at."""
_UNLOCKABLE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""


def append(path: Path, line: str) -> None:
    """Add `line` at once and whole; a full disk leaves the file as it was. Raises: OutputError."""
    paths.target(path)
    try:
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError as error:
        raise artifacts.unwritable(path, error) from error
    try:
        _lock(handle, path)
        _append(handle, line.encode() + b"\n")
    except OSError as error:
        raise artifacts.unwritable(path, error) from error
    finally:
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    """Wait until no other process of ours writes to the file; closing it ends the lock."""
    ends = time.monotonic() + _PATIENCE
    while not _locked(handle):
        if time.monotonic() > ends:
            raise OutputError(
                f"cannot write {path}: another process has locked it for {_PATIENCE:g} s",
                fix="end that process, or give another file for the records",
            )
        time.sleep(_PAUSE)


def _locked(handle: int) -> bool:
    """Return whether the file is ours to write to: nobody else has it, or it has no locks."""
    try:
        import fcntl  # noqa: PLC0415 - absent on Windows, where writers are not kept apart

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except ImportError:
        return True
    except OSError as error:
        if error.errno not in _UNLOCKABLE:
            raise
    return True


def _append(handle: int, line: bytes) -> None:
    """Write `line` whole, or not at all; a torn last line before it stays a line of its own."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        while line:
            line = line[os.write(handle, line) :]
        os.fsync(handle)
    except OSError:
        os.ftruncate(handle, size)
        raise


def check(path: Path) -> bytes:
    """Return the first line of the file, empty where there is none yet; nothing is written.

    Raises: OutputError where it cannot be written.
    """
    if not paths.target(path).exists():
        artifacts.check_writable(path)
        return b""
    try:
        with path.open("r+b") as file:
            return file.readline(_LONGEST)
    except OSError as error:
        raise artifacts.unwritable(path, error) from error
