"""HDF5 files written from the format's description, as Keras has them: groups of plain arrays.

hdf5_files.write(path, {"conv1/conv1/kernel:0": array})
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

NAMES, NODES = 8, 128
"""Names that a node of names has room for, and nodes that a group's tree has room for."""
_FLOATS = {
    2: (0, 16, 10, 5, 0, 10, 15),
    4: (0, 32, 23, 8, 0, 23, 127),
    8: (0, 64, 52, 11, 0, 52, 1023),
}
_SIGNS = {2: 15, 4: 31, 8: 63}


class Writer:
    """Bytes of a file, one object after the other; parts can be spoilt on the way."""

    def __init__(self) -> None:
        self.content = bytearray(96)
        self.places: dict[str, int] = {}
        """Path -> the address of the object's header."""

    def add(self, part: bytes) -> int:
        """Append a part at a multiple of 8, and return its address."""
        self.content += bytes(-len(self.content) % 8)
        at = len(self.content)
        self.content += part
        return at

    def header(self, messages: list[tuple[int, bytes]]) -> int:
        body = b""
        for kind, data in messages:
            padded = data + bytes(-len(data) % 8)
            body += struct.pack("<HHB3x", kind, len(padded), 0) + padded
        return self.add(struct.pack("<BxHII4x", 1, len(messages), 1, len(body)) + body)

    def array(self, values: NDArray[Any]) -> int:
        at = self.add(values.tobytes()) if values.size else (1 << 64) - 1
        space = struct.pack("<BBB5x", 1, values.ndim, 0)
        space += struct.pack(f"<{values.ndim}Q", *values.shape)
        layout = struct.pack("<BBQQ", 3, 1, at, values.nbytes)
        return self.header([(1, space), (3, kind_of(values.dtype)), (8, layout)])

    def group(self, children: Mapping[str, int]) -> int:
        names, offsets = bytearray(8), {}
        for name in sorted(children):
            offsets[name] = len(names)
            names += name.encode() + bytes(1)
            names += bytes(-len(names) % 8)
        order, nodes = sorted(children), []
        for first in range(0, max(len(order), 1), NAMES):
            mine = order[first : first + NAMES]
            entries = b"".join(
                struct.pack("<QQII16x", offsets[name], children[name], 0, 0) for name in mine
            )
            node = b"SNOD" + struct.pack("<BxH", 1, len(mine)) + entries
            nodes.append((self.add(node.ljust(8 + 40 * NAMES, b"\0")), offsets.get(mine[-1], 0)))
        segment = self.add(bytes(names))
        heap = self.add(b"HEAP" + struct.pack("<B3xQQQ", 0, len(names), 1, segment))
        nowhere = (1 << 64) - 1
        tree = b"TREE" + struct.pack("<BBHQQQ", 0, 0, len(nodes), nowhere, nowhere, 0)
        tree += b"".join(struct.pack("<QQ", *node) for node in nodes)
        at = self.add(tree.ljust(24 + 16 * NODES + 8, b"\0"))
        return self.header([(17, struct.pack("<QQ", at, heap))])

    def finish(self, root: int) -> bytes:
        nowhere = (1 << 64) - 1
        start = b"\x89HDF\r\n\x1a\n" + struct.pack(
            "<8BHHI", 0, 0, 0, 0, 0, 8, 8, 0, NAMES // 2, NODES // 2, 0
        )
        start += struct.pack("<QQQQ", 0, nowhere, len(self.content), nowhere)
        start += struct.pack("<QQII16x", 0, root, 0, 0)
        self.content[:96] = start
        return bytes(self.content)


def kind_of(dtype: np.dtype[Any]) -> bytes:
    """Return the message that describes an element type."""
    size = dtype.itemsize
    if dtype.kind == "f":
        numbers = _FLOATS[size]
        first = struct.pack("<4BI", 0x11, 0x20, _SIGNS[size], 0, size)
        return first + struct.pack("<HHBBBBI", *numbers)
    return struct.pack("<4BIHH", 0x10, 8 * (dtype.kind == "i"), 0, 0, size, 0, 8 * size)


def content(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return a file that has these arrays at these paths."""
    writer = Writer()
    return writer.finish(_tree(writer, {k.split("/")[0]: None for k in arrays}, arrays, ""))


def _tree(
    writer: Writer, names: Mapping[str, None], arrays: Mapping[str, NDArray[Any]], prefix: str
) -> int:
    children = {}
    for name in names:
        path = prefix + name
        if path in arrays:
            children[name] = writer.places[path] = writer.array(arrays[path])
        else:
            below = [key[len(path) + 1 :] for key in arrays if key.startswith(f"{path}/")]
            inner = {each.split("/")[0]: None for each in below}
            children[name] = writer.places[path] = _tree(writer, inner, arrays, f"{path}/")
    return writer.group(children)


def write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Write such a file."""
    path.write_bytes(content(arrays))
    return path
