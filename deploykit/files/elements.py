"""Read a JSON object of long lists one element at a time, in memory that does not grow with it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_CHUNK = 1 << 20
"""Characters read at a time."""
_MOST = 1 << 26
"""Characters that one element may take: more than any mask needs."""
_SPACE = re.compile(r"[ \t\r\n]*")
_BEHIND = frozenset(" \t\r\n:,]}")
"""What may follow a value."""
_DECODER = json.JSONDecoder()


class Element(NamedTuple):
    """One entry of a list, and the bytes of the file that hold it."""

    key: str
    """Of the object's member whose list it stands in."""
    start: int
    end: int
    value: Any
    """Numbers and structure as `json` gives them; text beyond ASCII only by `parse`."""


def elements(path: Path) -> Iterator[Element]:
    """Yield every element of every list that the object in a JSON file holds, in file order.

    Each list begins with an element of no bytes. Members that are no lists are passed over.

    Raises: ValueError where the file is not a JSON object in UTF-8, names a member twice, or has
    an element of more than 64 MB; OSError; RecursionError.
    """
    # One character per byte: places in the text are then places in the file.
    with path.open(encoding="latin-1", newline="") as file:
        yield from _Reader(file).members()


def parse(path: Path, spans: Iterable[tuple[int, int]]) -> list[Any]:
    """Return the values that stretches (first byte, byte behind) of a file hold.

    Raises: ValueError, OSError.
    """
    with path.open("rb") as file:
        return [_parsed(file, start, end) for start, end in spans]


def _parsed(file: IO[bytes], start: int, end: int) -> Any:  # noqa: ANN401 - JSON
    file.seek(start)
    return json.loads(file.read(end - start).decode("utf-8"))


@dataclass
class _Reader:
    """A window that moves over the text of a file."""

    file: IO[str]
    text: str = ""
    at: int = 0
    """Where in `text` the next token starts."""
    passed: int = 0
    """Characters of the file before `text`."""
    seen: set[str] = field(default_factory=set)

    def members(self) -> Iterator[Element]:
        """Yield the elements of the lists of the object that the file holds."""
        self.skip("\xef\xbb\xbf")
        self.take("{")
        more = self.peek() != "}"
        while more:
            key = self.value()
            if not isinstance(key, str) or key in self.seen:
                raise ValueError(f"the name {key!r} stands twice, or is none")
            self.seen.add(key)
            self.take(":")
            if self.peek() == "[":
                yield from self.entries(key)
            else:
                self.value()
            more = self.skip(",")
        self.take("}")
        if self.peek():
            raise ValueError("something follows the object")

    def entries(self, key: str) -> Iterator[Element]:
        """Yield the elements of one list."""
        self.take("[")
        yield Element(key, self.passed + self.at, self.passed + self.at, None)
        more = self.peek() != "]"
        while more:
            self.peek()
            start = self.passed + self.at
            value = self.value()
            yield Element(key, start, self.passed + self.at, value)
            more = self.skip(",")
        self.take("]")

    def value(self) -> Any:  # noqa: ANN401 - JSON
        """Return the next value, reading on until it is whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                place = self.passed + error.pos
                if len(self.text) - self.at > _MOST or not self.more():
                    raise ValueError(f"{error.msg} at byte {place}") from error
                continue
            length = end - self.at
            if self.text[end : end + 1] not in _BEHIND and self.more():
                continue  # the window cuts a number
            self.at += length
            return value

    def peek(self) -> str:
        """Return the next character that is no space; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    def skip(self, token: str) -> bool:
        """Return whether `token` came next, and pass over it."""
        self.peek()
        while len(self.text) - self.at < len(token) and self.more():
            pass
        found = self.text.startswith(token, self.at)
        self.at += len(token) * found
        return found

    def take(self, token: str) -> None:
        """Pass over `token`. Raises: ValueError where something else comes."""
        if not self.skip(token):
            raise ValueError(f"no {token!r} at byte {self.passed + self.at}")

    def more(self) -> bool:
        """Return whether the file had more text; what was passed is forgotten."""
        chunk = self.file.read(max(_CHUNK, len(self.text) - self.at))
        self.passed += self.at
        self.text, self.at = self.text[self.at :] + chunk, 0
        return bool(chunk)
