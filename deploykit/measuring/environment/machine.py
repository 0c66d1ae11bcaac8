"""How facts about a machine are read; another machine can be put in its place."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from deploykit import backends

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploykit.backends import Availability

T = TypeVar("T")
_SECONDS = 10
"""After which a program that was asked is given up."""


def _run(command: Sequence[str]) -> str:
    """Return what a program prints. Raises: OSError where it is absent or fails."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed commands, no shell
            command, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except FileNotFoundError as error:
        raise OSError(f"{command[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{command[0]} did not answer in {_SECONDS} s") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise OSError(said[-1] if said else f"{command[0]} failed with status {done.returncode}")
    return done.stdout


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8", errors="replace")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Machine:
    """How facts about a machine are read: another one can be put in its place."""

    read: Callable[[str], str] = _read
    """(path) -> the file's text. Raises: OSError."""
    run: Callable[[Sequence[str]], str] = _run
    """(command) -> what it prints. Raises: OSError."""
    version: Callable[[str], str | None] = _version
    """(package) -> its version, None where it is not installed."""
    find: Callable[[str], str | None] = shutil.which
    """(program) -> its path."""
    availability: Callable[[str], Availability] = field(
        default=lambda name: backends.load(name).availability()
    )
    load_average: Callable[[], Sequence[float]] = os.getloadavg
    cores: Callable[[], int] = _usable_cores


@dataclass
class Reader:
    """Collects facts; one that cannot be read becomes None, with a reason."""

    machine: Machine
    reasons: list[str] = field(default_factory=list)

    def get(self, what: str, read: Callable[[], T]) -> T | None:
        """Return what `read` gives, None where it fails."""
        try:
            return read()
        except (OSError, ValueError, IndexError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self.reasons.append(f"{what}: {reason}")
            return None

    def number(self, what: str, path: str, scale: float) -> float | None:
        """Return the number in a file times `scale`, None where there is none."""
        return self.get(what, lambda: float(self.machine.read(path)) * scale)


def stripped(text: str) -> str:
    """Return `text` without spaces around it. Raises: ValueError where nothing is left."""
    if not text.strip():
        raise ValueError("empty")
    return text.strip()
