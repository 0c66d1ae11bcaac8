"""How much memory this machine has to give."""

from __future__ import annotations

from pathlib import Path

_LINUX = Path("/proc/meminfo")


def available() -> int | None:
    """Return how many bytes can be had without swapping, None where the system does not say."""
    try:
        lines = _LINUX.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kibi) * 1024 for kibi in found), None)
