"""HDF5 files as Keras writes them: groups of contiguous arrays; no library opens the file.

An HDF5 library follows what a file names: other files, compressors, virtual arrays. Here a file is
only numbers at places that are checked, and whatever else it holds is refused by name.
Source: HDF5 File Format Specification, version 3 (superblock 0 and 1, groups as symbol tables).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deploykit.errors import CheckpointError
from deploykit.files import contents
from deploykit.networks.checkpoint import _bounds
from deploykit.networks.checkpoint._records import FormatError
from deploykit.networks.checkpoint._tensors import (
    MAX_DIMENSIONS,
    OddTensor,
    StoredData,
    StoredTensor,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    Leaf = StoredTensor | OddTensor

MAGIC = contents.HDF5
_REPACK = "h5repack -f NONE -l CONTI OLD.h5 NEW.h5"
"""The command that makes plain arrays of others."""
_NOWHERE = (1 << 64) - 1
"""An address that stands for none."""
_PARTS = ("model_weights", "optimizer_weights")
"""Groups of a whole saved model; of bare weights, the groups are the layers."""
_LOOKS = 8 * _bounds.TENSORS
"""Entries, nodes and messages that are looked at: a network's file has about six for a tensor."""
_ROOT, _ENTRY, _WIDTHS = 56, 40, 13
"""Places in the superblock: the entry of the root group, bytes of an entry, sizes of numbers."""
_LINK = struct.Struct("<QQI")
"""How an entry begins: where its name is, where its object is, and of which kind it is."""
_MESSAGE = struct.Struct("<HHBxxx")
"""How a message begins: its kind, the bytes of its content, and flags."""
_SPACE, _LINK_INFO, _TYPE, _EXTERNAL, _LAYOUT = 0x1, 0x2, 0x3, 0x7, 0x8
_FILTERS, _CONTINUED, _TABLE = 0xB, 0x10, 0x11
_SHARED = 0x2
"""Of the flags of a message: its content is elsewhere."""
_FLOATS = {
    bytes((0, 0, 16, 0, 10, 5, 0, 10)): torch.float16,
    bytes((0, 0, 32, 0, 23, 8, 0, 23)): torch.float32,
    bytes((0, 0, 64, 0, 52, 11, 0, 52)): torch.float64,
}
"""Bit offset, precision, place and size of exponent and mantissa -> what they make."""
_WHOLE = {
    (1, True): torch.int8,
    (2, True): torch.int16,
    (4, True): torch.int32,
    (8, True): torch.int64,
    (1, False): torch.uint8,
}
"""Bytes, and whether there is a sign."""


def read(content: memoryview) -> dict[str, Any]:
    """Return path -> array, those of `_PARTS` in dictionaries of their own.

    Raises: FormatError; CheckpointError for what HDF5 has and is not followed.
    """
    if content[8] > 1:
        raise _foreign(f"a superblock of version {content[8]}")
    if bytes(content[_WIDTHS : _WIDTHS + 2]) != b"\x08\x08":
        raise _foreign("addresses that are not 8 bytes long")
    file = _File(content, _number(content, _ROOT + 4 * (content[8] == 1) - 32, 8))
    root = file.number(_ROOT + 4 * (content[8] == 1) + 8)
    found: dict[str, Any] = {}
    for path, leaf in file.tree(root):
        first, _, rest = path.partition("/")
        inner = found.setdefault(first, {}) if rest and first in _PARTS else found
        inner[rest if inner is not found else path] = leaf
        if len(found) > _bounds.TENSORS:
            raise _bounds.swollen(f"more than {_bounds.TENSORS} arrays", "a real network")
    return found


def _number(content: memoryview, at: int, size: int) -> int:
    return int.from_bytes(content[at : at + size], "little")


def _foreign(what: str) -> CheckpointError:
    return CheckpointError(
        f"an HDF5 file with {what}, which is not read",
        expected="the plain arrays that Keras writes",
        fix=f"write it again with: {_REPACK}, or load it in Keras and save_weights",
    )


@dataclass
class _Header:
    """The messages of an object: those that are read."""

    table: bytes = b""
    space: bytes = b""
    kind: bytes = b""
    layout: tuple[int, bytes] = (0, b"")
    """Where the message lies, and its content."""
    odd: str = ""
    """What else it has, that decides where its numbers are."""


@dataclass
class _File:
    """The bytes of a file, read at checked places."""

    content: memoryview
    base: int
    looks: int = 0

    def part(self, at: int, size: int) -> memoryview:
        """Return `size` bytes. Raises: FormatError where they are not all there."""
        start = at + self.base
        if at < 0 or size < 0 or start + size > len(self.content):
            raise FormatError(f"{size} bytes at {at} lie outside of the file")
        return self.content[start : start + size]

    def number(self, at: int, size: int = 8) -> int:
        """Return an unsigned number."""
        return int.from_bytes(self.part(at, size), "little")

    def look(self) -> None:
        """Count one step. Raises: CheckpointError beyond the bound."""
        self.looks += 1
        if self.looks > _LOOKS:
            raise _bounds.swollen("its groups have no end", "a group for each layer")

    def expect(self, at: int, mark: bytes) -> None:
        """Check what stands at a place. Raises: FormatError."""
        if self.part(at, len(mark)) != mark:
            raise FormatError(f"no {mark.decode()} at {at}")

    def tree(self, root: int) -> Iterator[tuple[str, Leaf]]:
        """Yield the path and the array of every dataset below the object at `root`."""
        groups = {_NOWHERE: ("", iter([("", root)]))}  # that are being gone through: path, the rest
        while groups:
            above, left = groups[next(reversed(groups))]
            name, at = next(left, (None, 0))
            if name is None:
                groups.popitem()
                continue
            path, header = f"{above}/{name}" if above else name, self.header(at)
            if not header.table:
                yield path, self.leaf(path, header)
            elif at in groups or len(groups) - 1 > _bounds.DEPTH:
                raise FormatError("a group contains itself")
            else:
                groups[at] = path, self.entries(header.table)

    def header(self, at: int) -> _Header:
        """Return what an object's header says."""
        if self.number(at, 1) != 1:
            raise _foreign("an object header of another version than 1")
        found, pending = _Header(), [(at + 16, self.number(at + 8, 4))]
        while pending:
            start, left = pending.pop()
            block, done = self.part(start, left), 0
            while left - done >= _MESSAGE.size:
                self.look()
                kind, size, flags = _MESSAGE.unpack_from(block, done)
                done += _MESSAGE.size
                self.message(found, kind, flags, (start + done, size))
                if kind == _CONTINUED:
                    pending.append((self.number(start + done), self.number(start + done + 8)))
                done += size
        return found

    def message(self, found: _Header, kind: int, flags: int, place: tuple[int, int]) -> None:
        """Keep one message, which lies at `place`: where, how long."""
        if kind not in (_SPACE, _LINK_INFO, _TYPE, _EXTERNAL, _LAYOUT, _FILTERS, _TABLE):
            return
        content = bytes(self.part(*place))
        if kind == _LINK_INFO:
            raise _foreign("groups of the newer kind")
        if kind == _EXTERNAL:
            found.odd = "stored in another file"
        elif kind == _FILTERS:
            found.odd = f"compressed; {_REPACK} undoes that"
        elif flags & _SHARED:
            found.odd = "of a type that stands elsewhere"
        elif kind == _SPACE:
            found.space = content
        elif kind == _TYPE:
            found.kind = content
        elif kind == _LAYOUT:
            found.layout = place[0], content
        else:
            found.table = content

    def entries(self, table: bytes) -> Iterator[tuple[str, int]]:
        """Yield the name and the address of each object in a group."""
        if len(table) < 16:
            raise FormatError("a group without a table")
        heap = int.from_bytes(table[8:16], "little")
        self.expect(heap, b"HEAP")
        names = self.part(self.number(heap + 24), self.number(heap + 8))
        for node in self.leaves(int.from_bytes(table[:8], "little")):
            self.expect(node, b"SNOD")
            for index in range(self.number(node + 6, 2)):
                self.look()
                entry = self.part(node + 8 + _ENTRY * index, _LINK.size)
                name, at, kind = _LINK.unpack(entry)
                if kind == 2:
                    raise _foreign("links to other names")
                yield _name(names, name), at

    def leaves(self, root: int) -> Iterator[int]:
        """Yield the addresses of a group's nodes, in the order of its names."""
        pending = [root]
        while pending:
            self.look()
            at = pending.pop()
            self.expect(at, b"TREE")
            if self.number(at + 4, 1) != 0:
                raise FormatError(f"the tree at {at} is none of names")
            children = [self.number(at + 32 + 16 * i) for i in range(self.number(at + 6, 2))]
            if self.number(at + 5, 1):
                pending += reversed(children)
            else:
                yield from children

    def leaf(self, path: str, header: _Header) -> Leaf:
        """Return a dataset as it lies in the file, or as something that holds no weights."""
        sizes, (dtype, odd) = _sizes(header.space), _element(header.kind)
        odd = header.odd or odd
        start, size, other = self.numbers(*header.layout)
        count = math.prod(sizes)
        if odd or other:
            return OddTensor(odd or other, size=sizes)
        if size < count * dtype.itemsize:
            raise FormatError(f"{path[: _bounds.NAME]!r} has {size} bytes for {list(sizes)}")
        self.part(start, count * dtype.itemsize)
        strides = tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
        source = _Numbers(self.part(start, count * dtype.itemsize))
        return StoredTensor(StoredData(source, path, dtype, count), 0, sizes, strides)

    def numbers(self, at: int, layout: bytes) -> tuple[int, int, str]:
        """Return where a dataset's numbers are, how many bytes, and why they cannot be read."""
        if len(layout) < 4 or layout[0] not in (3, 4):
            return 0, 0, "laid out as an old or unknown version does"
        if layout[1] == 0:
            return at + 4, int.from_bytes(layout[2:4], "little"), ""
        if layout[1] != 1 or len(layout) < 18:
            return (
                0,
                0,
                f"stored in chunks; {_REPACK} joins them"
                if layout[1] == 2
                else "a view of other arrays",
            )
        start, size = (int.from_bytes(layout[i : i + 8], "little") for i in (2, 10))
        return (0, 0, "") if start == _NOWHERE else (start, size, "")


@dataclass(frozen=True)
class _Numbers:
    """Where one array is."""

    content: memoryview

    def storage(self, _: str) -> memoryview:
        """Return its bytes."""
        return self.content


def _name(names: memoryview, at: int) -> str:
    text = bytes(names[at : at + _bounds.NAME])
    if b"\0" not in text:
        raise FormatError("a name has no end")
    return text.partition(b"\0")[0].decode("utf-8")


def _sizes(space: bytes) -> tuple[int, ...]:
    """Return the sizes of a dataspace."""
    if len(space) < 4 or space[0] not in (1, 2) or space[1] > MAX_DIMENSIONS:
        raise FormatError("an array without sizes")
    start = 8 if space[0] == 1 else 4
    if len(space) < start + 8 * space[1]:
        raise FormatError("an array whose sizes are cut off")
    return tuple(
        int.from_bytes(space[start + 8 * i : start + 8 * i + 8], "little") for i in range(space[1])
    )


def _element(kind: bytes) -> tuple[torch.dtype, str]:
    """Return the type of an array's numbers, and why they are no weights."""
    if len(kind) < 8:
        raise FormatError("an array without a type")
    group, size = kind[0] & 15, int.from_bytes(kind[4:8], "little")
    if kind[1] & 1 and group in (0, 1):
        return torch.uint8, "stored with the high byte first"
    if group == 1 and kind[8:16] in _FLOATS:
        dtype = _FLOATS[kind[8:16]]
        return dtype, "" if dtype.itemsize == size else "of an unknown kind of floats"
    whole = _WHOLE.get((size, bool(kind[1] & 8))) if group == 0 else None
    return (whole, "") if whole is not None else (torch.uint8, "not of numbers")
