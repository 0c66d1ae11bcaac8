"""One hostile command, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Make: TypeAlias = "Callable[[Path, Path], list[str]]"

Stdout: TypeAlias = Literal["file", "closed", "full", "broken"]
CANARY = "canary"
"""A file of this name in the case's folder: code that came in was run."""


@dataclass(frozen=True)
class Case:
    """A command line over hostile files."""

    name: str
    """`kind: what is wrong`."""
    make: Make
    """(empty folder, folder of sound files) -> the command's words; it runs in that folder."""
    stdout: Stdout = "file"
    small: bool = False
    """Its files are a checkpoint of less than 1 MB: memory is judged too."""

    @property
    def kind(self) -> str:
        """Return what kind of file is hostile."""
        return self.name.partition(":")[0]


@dataclass(frozen=True)
class Spent:
    """What a command took."""

    seconds: float
    """By the clock."""
    computed: float
    """Seconds of computing, of all its processes and threads."""
    peak: int
    """Bytes of resident memory at most."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    case: Case
    status: int
    """Exit status; negative: the signal that ended it."""
    spent: Spent
    said: str
    """Its stdout and stderr."""
    wrongs: tuple[str, ...]
    """Of code, traceback, hang, memory, crash, unforeseen, status, escape, left: none is right."""
