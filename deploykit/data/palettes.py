"""Which class each colour of a label map is.

Read are lines with a name and three numbers of 0 to 255, in any of the orders and marks that tools
write: `car 64 0 128`, `64 0 128 car`, `car,64,0,128`, `car:64,0,128::`; a header and lines behind
`#` are left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.data import class_maps
from deploykit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

IGNORED = 255
"""Id of pixels that do not count."""
IGNORE = "__ignore__"
"""Name of a colour whose pixels do not count."""
_WHAT = "a name and a colour in each line, such as `car 64 0 128`"
_THREE = r"(?<![\w.])(\d{1,3})[\s,;]+(\d{1,3})[\s,;]+(\d{1,3})(?![\w.])"
_COLOUR = re.compile(rf"(?<=^){_THREE}|{_THREE}(?=\D*$)")
"""At the beginning of a line, or its last three numbers."""
_LEVELS = 256
_BORDER = (224, 224, 192)
"""VOC's colour of borders, which do not count."""


@dataclass(frozen=True)
class Palette:
    """Colours of a set of label maps."""

    ids: Mapping[int, int]
    """Colour, red * 65536 + green * 256 + blue -> id."""
    of: str
    """Where it is from."""
    names: tuple[str, ...] = field(default=())
    """Of the ids, from the first on."""

    def read(self, pixels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return the ids, int32[H, W], of colours uint8[H, W, 3].

        Raises: DataError where a pixel has another colour.
        """
        codes = pixels.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
        known, places = np.unique(codes, return_inverse=True)
        unknown = [code for code in known.tolist() if code not in self.ids]
        if unknown:
            first = unknown[0] >> 16, unknown[0] >> 8 & 255, unknown[0] & 255
            share = float(np.isin(codes, unknown).mean())
            raise DataError(
                f"{share:.2%} of the pixels have colours such as {first}",
                expected=f"those of {self.of} alone",
                fix="name every colour: colours=FILE; maps that were resized or stored as JPEG "
                "have mixed colours, and hold no ids any more",
            )
        found = np.array([self.ids[code] for code in known.tolist()], np.int32)
        return found[places].reshape(codes.shape)


def voc(count: int) -> Palette:
    """Return the colours of VOC's first `count` classes: bits of the id from the highest down."""
    ids = {_code(_BORDER): IGNORED}
    for number in range(min(count, _LEVELS)):
        colour = [0, 0, 0]
        for place in range(8):
            bits = number >> 3 * place
            for channel in range(3):
                colour[channel] |= (bits >> channel & 1) << 7 - place
        ids[_code(colour)] = number
    return Palette(ids, f"VOC's {count} classes")


def read(path: Path, first: int = 0) -> Palette:
    """Return the colours in a file; the ids count from `first` on. Raises: DataError."""
    ids: dict[int, int] = {}
    names: list[str] = []
    for line in map(str.strip, class_maps.text(path, _WHAT).splitlines()):
        match = _COLOUR.search(line)
        if not line or line.startswith("#"):
            continue
        if match is None:
            if names or ids or any(mark.isdecimal() for mark in line):
                raise DataError(f"{path}: {line[:80]!r} has no colour", expected=_WHAT)
            continue  # a header
        colour = [int(part) for part in match.groups() if part is not None]
        name = (line[: match.start()] or line[match.end() :]).strip(" \t,:;")
        _add(path, ids, colour, IGNORED if name == IGNORE else first + len(names))
        names += [] if name == IGNORE else [name or f"class{len(names)}"]
    if not ids:
        raise DataError(f"{path} has no colours", expected=_WHAT)
    return Palette(ids, path.name, tuple(names))


def _add(path: Path, ids: dict[int, int], colour: Sequence[int], number: int) -> None:
    if max(colour) >= _LEVELS or _code(colour) in ids:
        what = "is no colour" if max(colour) >= _LEVELS else "is the colour of two classes"
        raise DataError(f"{path}: {tuple(colour)} {what}", expected=_WHAT)
    ids[_code(colour)] = number


def _code(colour: Sequence[Any]) -> int:
    red, green, blue = colour
    return int(red) << 16 | int(green) << 8 | int(blue)
