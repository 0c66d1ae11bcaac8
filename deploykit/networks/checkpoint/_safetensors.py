"""Safetensors files: a length, a JSON header, the numbers.

Source: the format's own description: no holes, no overlaps, little-endian, row-major.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch

from deploykit.networks.checkpoint import _bounds
from deploykit.networks.checkpoint._layouts import METADATA
from deploykit.networks.checkpoint._records import FormatError
from deploykit.networks.checkpoint._tensors import MAX_DIMENSIONS, StoredData, StoredTensor

_LENGTH = 8
_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_WIDTHS = {"U16": 2, "U32": 4, "U64": 8, "C64": 8, "F8": 1}
"""Bytes of the types that are no weights; every other is 1."""


def is_safetensors(first: bytes) -> bool:
    """Return whether a file that begins with `first` is one: a length that is real, then `{`."""
    return first[:1] != b"\x80" and first[8:9] == b"{" and first[6:8] == b"\0\0"


def read(content: memoryview) -> dict[str, Any]:
    """Return name -> tensor, and the metadata where there is any. Raises: FormatError."""
    length = int.from_bytes(content[:_LENGTH], "little")
    if length > min(len(content) - _LENGTH, _bounds.HEADER):
        raise FormatError(f"its header has {length} bytes, the file {len(content)}")
    try:
        header = json.loads(bytes(content[_LENGTH : _LENGTH + length]), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its header is no JSON: {str(error)[:200]}") from error
    if not isinstance(header, dict):
        raise FormatError("its header is no object")
    metadata = header.pop(METADATA, None)
    numbers = _Numbers(content[_LENGTH + length :])
    found: dict[str, Any] = {name: numbers.tensor(name, said) for name, said in header.items()}
    numbers.check_filled()
    return {**found, METADATA: metadata} if isinstance(metadata, dict) else found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


class _Numbers:
    """What lies behind the header."""

    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._places: dict[str, tuple[int, int]] = {}

    def storage(self, key: str) -> memoryview:
        """Return the bytes of the tensor called `key`."""
        start, end = self._places[key]
        return self._content[start:end]

    def tensor(self, name: str, said: object) -> StoredTensor:
        """Return a tensor as the header describes it. Raises: FormatError."""
        dtype, shape, place = _described(name, said)
        start, end = place
        found = _TYPES.get(dtype, torch.uint8)
        width = found.itemsize if dtype in _TYPES else _WIDTHS.get(dtype, 1)
        if not 0 <= start <= end <= len(self._content):
            raise FormatError(f"tensor {name!r} lies outside of the file")
        if math.prod(shape) * width != end - start:
            raise FormatError(f"tensor {name!r} has {end - start} bytes for {shape} of {dtype}")
        self._places[name] = start, end
        stride = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
        odd = "" if dtype in _TYPES else f"stored as {dtype}"
        return StoredTensor(
            StoredData(self, name, found, (end - start) // found.itemsize, odd=odd),
            0,
            shape,
            stride,
        )

    def check_filled(self) -> None:
        """Check that the tensors lie side by side, to the end. Raises: FormatError."""
        at = 0
        for start, end in sorted(self._places.values()):
            if start != at:
                raise FormatError("its tensors overlap, or there are holes between them")
            at = end
        if at != len(self._content):
            raise FormatError(f"{len(self._content) - at} bytes belong to no tensor")


def _described(name: str, said: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:  # noqa: ANN401 - any JSON
    try:
        dtype, shape, (start, end) = said["dtype"], tuple(said["shape"]), said["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise FormatError(f"tensor {name[:80]!r} is not described") from error
    numbers = all(type(n) is int and 0 <= n < 1 << 48 for n in (*shape, start, end))
    if not isinstance(dtype, str) or not numbers or len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"tensor {name[:80]!r} is described by something else than numbers")
    return dtype, shape, (start, end)
