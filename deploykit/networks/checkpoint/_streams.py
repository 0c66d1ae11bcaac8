"""The formats before torch 1.6: a row of pickles with the numbers behind them, or a tar of such.

Source: `_legacy_save` and `_legacy_load` in torch/serialization.py. The row is: a magic number, the
version, the machine, the saved object, the keys of its storages; then for each key a count (int64)
and the numbers. Pickles made without torch.save hold each storage as such a row of its own.
"""

from __future__ import annotations

import io
import struct
from typing import IO, TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint import _calls, _pickles
from deploykit.networks.checkpoint._persistent import stored
from deploykit.networks.checkpoint._records import FormatError
from deploykit.networks.checkpoint._tensors import StoredData

if TYPE_CHECKING:
    import torch

MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001
_COUNT = struct.Struct("<q")
_EMBEDDED = "torch.storage._load_from_bytes"


class Stream:
    """A row of pickles, and the storages behind them."""

    def __init__(self, content: memoryview, file: IO[bytes], *, embedded: bool = False) -> None:
        """Keep the content, and `file` that reads it; embedded: it lies in another pickle."""
        self._content, self._file = content, file
        self._calls = _calls.CALLS if embedded else {**_calls.CALLS, _EMBEDDED: self._embedded}
        self._storages: dict[int, tuple[bytes, StoredData]] = {}
        self._types: dict[str, torch.dtype] = {}
        self._places: dict[str, tuple[int, int]] = {}

    def read(self) -> Any:  # noqa: ANN401 - any object
        """Return the saved object of a row of pickles, or what a single pickle holds.

        Raises: FormatError, CodeError, CheckpointError.
        """
        first = self._next()
        if type(first) is not int or first != MAGIC:
            return first
        if self._next() != _VERSION:
            raise FormatError("it is of an unknown version of the format before torch 1.6")
        machine = self._next()
        if isinstance(machine, dict) and machine.get("little_endian") is False:
            raise CheckpointError(
                "it was written by a big-endian machine", expected="a little-endian checkpoint"
            )
        saved, keys = self._next(), self._next()
        self._locate(keys)
        return saved

    def _next(self) -> Any:  # noqa: ANN401 - any object
        size = len(self._content)
        return _pickles.read(self._file, size, persistent=self.persistent, calls=self._calls)

    def persistent(self, identity: Any) -> Any:  # noqa: ANN401 - whatever the pickle refers to
        """Return the data, or the class, that the pickle refers to. Raises: FormatError."""
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            return identity[1]  # a class, with its source code
        data = stored(self, identity)
        if self._types.setdefault(data.key, data.dtype) != data.dtype:
            raise FormatError("a storage of two types")
        view = identity[5] if len(identity) > 5 else None
        if view is None:
            return data
        if not isinstance(view, tuple) or len(view) != 3:
            raise FormatError("a strange view of a storage")
        return cut(data, view[1], view[2])

    def _locate(self, keys: object) -> None:
        """Find out where each storage lies. Raises: FormatError."""
        if not isinstance(keys, list):
            raise FormatError("the storages are not listed")
        for key in keys:
            if not isinstance(key, str) or key not in self._types or key in self._places:
                raise FormatError("a storage is listed that no tensor, or another, uses")
            start, end = extent(self._content, self._file.tell(), self._types[key])
            self._places[key] = (start, end)
            self._file.seek(end)

    def storage(self, key: str) -> memoryview:
        """Return the bytes of the storage called `key`. Raises: CheckpointError."""
        if key not in self._places:
            raise CheckpointError(f"it lacks storage {key}: it is damaged")
        start, end = self._places[key]
        return self._content[start:end]

    def _embedded(self, arguments: tuple[Any, ...]) -> StoredData:
        """Return the storage in a call of torch's `_load_from_bytes`: a row within the pickle.

        Raises: FormatError, CodeError, CheckpointError.
        """
        content = arguments[0] if arguments else None
        if not isinstance(content, bytes):
            raise FormatError("a storage that is no bytes")
        if id(content) not in self._storages:  # read once, however often it is referred to
            found = Stream(memoryview(content), io.BytesIO(content), embedded=True).read()
            if not isinstance(found, StoredData):
                raise FormatError("a storage that holds something else")
            self._storages[id(content)] = content, found
        return self._storages[id(content)][1]


def cut(data: StoredData, start: object, count: object) -> StoredData:
    """Return a part of a storage. Raises: FormatError."""
    if type(start) is not int or type(count) is not int or min(start, count) < 0:
        raise FormatError("a strange view of a storage")
    return StoredData(data.source, data.key, data.dtype, count, start, data.odd)


def extent(content: memoryview, at: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return where the numbers lie that follow their count at byte `at`. Raises: FormatError."""
    if at + _COUNT.size > len(content):
        raise FormatError("it ends before its numbers")
    count = _COUNT.unpack(content[at : at + _COUNT.size])[0]
    start = at + _COUNT.size
    end = start + count * dtype.itemsize
    if count < 0 or end > len(content):
        raise FormatError("it ends within its numbers")
    return start, end
