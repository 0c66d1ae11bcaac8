"""How much memory this machine, or the container we are in, has to give."""

from __future__ import annotations

from pathlib import Path

_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")
"""Version 2 of Linux's control groups; the folder is the one of a container's own group."""


def available() -> int | None:
    """Return how many bytes can be had without swapping, None where the system does not say."""
    known = [size for size in (_of_machine(), _of_container()) if size is not None]
    return min(known, default=None)


def _of_machine() -> int | None:
    size = _number(_MACHINE, "MemAvailable:")
    return None if size is None else size * 1024


def _of_container() -> int | None:
    limit, used = (_number(_CONTAINER / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return None
    cached = _number(_CONTAINER / "memory.stat", "inactive_file") or 0
    return max(limit - used + cached, 0)


def _number(path: Path, key: str = "") -> int | None:
    """Return the number after `key` in a file, None where there is none."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    rows = [line.split() for line in lines]
    values = [row[:2][-1] for row in rows if row and (not key or row[0] == key)]
    return next((int(value) for value in values if value.isdigit()), None)
