"""Numpy's arrays, numbers and element types as they are pickled, read without numpy's own code.

Source: numpy's `ndarray.__reduce__` and `dtype.__reduce__` (format versions 1 and 3), protocol 5's
`_frombuffer`, and `scalar`; Python 2 wrote the bytes as text.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint._records import FormatError, Record
from deploykit.networks.checkpoint._tensors import MAX_DIMENSIONS

_KIND = re.compile(r"[<>=|]?([biuf])([1248])\Z")
_BOOL = "?"
_ENCODE = "_codecs.encode"


@dataclass(eq=False, repr=False, slots=True)
class StoredArray:
    """An array whose numbers are in the pickle itself."""

    state: Any = None
    """(version, shape, element type, whether in Fortran's order, content), once it is known."""

    @property
    def place(self) -> tuple[int, str]:
        """Return what arrays have in common that are best read together: nothing."""
        return 0, ""

    @property
    def odd(self) -> str:
        """Return why this cannot be a weight, or nothing."""
        return "" if self._dtype() is not None else "no array of numbers"

    @property
    def size(self) -> tuple[int, ...]:
        """Return the shape. Raises: CheckpointError."""
        shape = self.state[1] if self._is_whole() else None
        if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
            raise _damaged("an array without a shape")
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in shape):
            raise _damaged("an array whose shape is not made of numbers")
        return shape

    @property
    def nbytes(self) -> int:
        """Return what it takes in memory once it is read. Raises: CheckpointError."""
        dtype = self._dtype()
        return math.prod(self.size) * (dtype.itemsize if dtype else 0)

    def read(self) -> torch.Tensor:
        """Return the array as a tensor in memory of its own. Raises: CheckpointError."""
        dtype, size = self._dtype(), self.size
        if dtype is None:
            raise _damaged("an array that holds no numbers")
        content = as_bytes(self.state[4], self.nbytes)
        if content is None:
            raise _damaged(f"an array of shape {list(size)} whose content has another size")
        values = np.frombuffer(content, dtype).reshape(size, order="F" if self.state[3] else "C")
        return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))

    def _is_whole(self) -> bool:
        return isinstance(self.state, tuple) and len(self.state) == 5

    def _dtype(self) -> np.dtype[Any] | None:
        return element_type(self.state[2]) if self._is_whole() else None


def _damaged(found: str) -> CheckpointError:
    return CheckpointError(found, fix="the checkpoint is damaged: get it again")


def element_type(record: object) -> np.dtype[Any] | None:
    """Return the type in a pickled `numpy.dtype`; None where it is not of plain numbers."""
    if not isinstance(record, Record) or str(record.of) != "numpy.dtype":
        return None
    said = record.arguments[0] if record.arguments else None
    state = record.state if isinstance(record.state, tuple) else ()
    swapped = len(state) > 1 and state[1] == ">"
    if isinstance(said, bytes):
        said = said.decode("latin-1")
    match = _KIND.match("b1" if said == _BOOL else said) if isinstance(said, str) else None
    if match is None:
        return None
    kind, width = match.groups()
    if (kind == "f" and width == "1") or (kind == "b" and width != "1"):
        return None
    return np.dtype(f"{'>' if swapped else '<'}{kind}{width}")


def as_bytes(value: object, count: int) -> bytes | None:
    """Return the `count` bytes that `value` stands for, None where it stands for something else."""
    if isinstance(value, Record) and str(value.of) == _ENCODE:
        value = value.arguments[0] if value.arguments else None
    if not isinstance(value, (str, bytes, bytearray)) or len(value) != count:
        return None
    try:
        return value.encode("latin-1") if isinstance(value, str) else bytes(value)
    except UnicodeEncodeError:
        return None


def scalar(arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401 - a number of some type
    """Return the plain number in a call of numpy's `scalar`, None where it is no number."""
    dtype = element_type(arguments[0]) if len(arguments) == 2 else None
    content = as_bytes(arguments[1], dtype.itemsize) if dtype is not None else None
    return None if content is None else np.frombuffer(content, dtype)[0].item()


def from_buffer(arguments: tuple[Any, ...]) -> StoredArray:
    """Return the array in a call of numpy's `_frombuffer`. Raises: FormatError."""
    if len(arguments) != 4:
        raise FormatError("an array is described by something else than numbers")
    content, dtype, shape, order = arguments
    return StoredArray((1, shape, dtype, order == "F", content))
