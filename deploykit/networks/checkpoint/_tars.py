"""The tar archive that torch wrote until 0.1.9: sys_info, pickle, storages and tensors.

Source: `legacy_load` in torch/serialization.py. The tar is read here, since Python's own reader
unpacks sparse members to whatever size they claim.
"""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint import _bounds, _pickles
from deploykit.networks.checkpoint._persistent import element_type
from deploykit.networks.checkpoint._records import FormatError, Name
from deploykit.networks.checkpoint._streams import cut, extent
from deploykit.networks.checkpoint._tensors import MAX_DIMENSIONS, StoredData, StoredTensor

if TYPE_CHECKING:
    from collections.abc import Mapping

_BLOCK = 512
_MEMBERS = ("pickle", "storages", "tensors")
_MARK = slice(257, 262)


def is_tar(first: bytes) -> bool:
    """Return whether a file that begins with `first` is a tar archive."""
    return first[_MARK] == b"ustar"


def read(content: memoryview) -> Any:  # noqa: ANN401 - any object
    """Return the saved object. Raises: FormatError, CodeError, CheckpointError."""
    members = _members(content)
    if not set(_MEMBERS) <= set(members):
        raise CheckpointError(
            "it is a tar archive that holds " + (", ".join(list(members)[:3]) or "nothing"),
            expected="a checkpoint",
            fix="unpack it, and give the checkpoint inside",
        )
    objects: dict[int, Any] = _Storages(members["storages"]).found
    objects |= _tensors(members["tensors"], objects)

    def persistent(identity: Any) -> Any:  # noqa: ANN401 - whatever the pickle refers to
        if isinstance(identity, tuple):
            return identity[0]  # a class, with its source code
        return objects[int(identity)]

    pickle = members["pickle"]
    return _pickles.read(io.BytesIO(pickle), len(pickle), persistent=persistent)


def _members(content: memoryview) -> Mapping[str, memoryview]:
    """Return the plain files of a tar archive by name. Raises: FormatError."""
    found: dict[str, memoryview] = {}
    at = 0
    while at + _BLOCK <= len(content) and len(found) < _bounds.TENSORS:
        header = bytes(content[at : at + _BLOCK])
        if not header.strip(b"\0"):
            break
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        if size < 0 or at + _BLOCK + size > len(content):
            raise FormatError("a file in the tar archive is cut off")
        if header[156:157] in b"0\0":
            name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
            found[name] = content[at + _BLOCK : at + _BLOCK + size]
        at += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return found


class _Storages:
    """The member `storages`: for each storage a pickle, a count and the numbers."""

    def __init__(self, content: memoryview) -> None:
        """Find the storages and the views of them. Raises: FormatError."""
        self._content = content
        self._places: dict[str, tuple[int, int]] = {}
        self.found: dict[int, Any] = {}
        file = io.BytesIO(content)
        for _ in range(_number(_pickles.read(file, len(content)))):
            described = _pickles.read(file, len(content))
            if not isinstance(described, tuple) or len(described) != 3:
                raise FormatError("a strange storage")
            self._add(described[0], described[2], file)
        views = _pickles.read(file, len(content))
        for view in views if isinstance(views, list) else ():
            target, root, start, count = view
            self.found[_number(target)] = cut(self.found[root], start, count)

    def _add(self, key: object, kind: object, file: io.BytesIO) -> None:
        if not isinstance(kind, Name):
            raise FormatError("a storage without a type")
        dtype, odd = element_type(kind)
        start, end = extent(self._content, file.tell(), dtype)
        file.seek(end)
        count = (end - start) // dtype.itemsize
        self._places[str(_number(key))] = start, end
        self.found[_number(key)] = StoredData(self, str(key), dtype, count, odd=odd)

    def storage(self, key: str) -> memoryview:
        """Return the bytes of the storage called `key`."""
        start, end = self._places[key]
        return self._content[start:end]


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise FormatError("something else in the place of a number")
    return value


def _tensors(content: memoryview, storages: Mapping[int, Any]) -> dict[int, StoredTensor]:
    """Return the tensors: for each a pickle, then its sizes, strides and offset."""
    file = io.BytesIO(content)
    found = {}
    for _ in range(_number(_pickles.read(file, len(content)))):
        described = _pickles.read(file, len(content))
        if not isinstance(described, tuple) or len(described) != 3:
            raise FormatError("a strange tensor")
        rank = _integers(file, "<i4x")[0]
        if not 0 <= rank <= MAX_DIMENSIONS:
            raise FormatError("a tensor of strange dimensions")
        size, stride = _integers(file, f"<{rank}q"), _integers(file, f"<{rank}q")
        data = replace(storages[_number(described[1])])
        found[_number(described[0])] = StoredTensor(data, _integers(file, "<q")[0], size, stride)
    return found


def _integers(file: io.BytesIO, layout: str) -> tuple[int, ...]:
    content = file.read(struct.calcsize(layout))
    if len(content) < struct.calcsize(layout):
        raise FormatError("it ends within a tensor")
    return struct.unpack(layout, content)
