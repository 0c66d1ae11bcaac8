"""Tensors of a checkpoint that are read only when they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

# Storage class -> element type, as `torch.save` names them.
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
ODD_STORAGES = {
    "QInt8Storage": "quantised",
    "QUInt8Storage": "quantised",
    "QInt32Storage": "quantised",
    "QUInt4x2Storage": "quantised",
    "QUInt2x4Storage": "quantised",
    "ComplexFloatStorage": "complex",
    "ComplexDoubleStorage": "complex",
}
MAX_DIMENSIONS = 64
"""What torch allows."""
_MOST = 1 << 40
"""Of one side of a tensor: an empty one could claim any."""


class Storages(Protocol):
    """Where the numbers are."""

    def storage(self, key: str) -> bytes | memoryview:
        """Return the bytes of the storage called `key`. Raises: CheckpointError."""
        ...


@dataclass(frozen=True, eq=False)
class StoredData:
    """A run of numbers that one or more tensors look into."""

    source: Storages
    key: str
    dtype: torch.dtype
    count: int
    start: int = 0
    """In numbers, from the start of the storage: old files have views of storages."""
    odd: str = ""
    """Why its numbers cannot be weights, e.g. "quantised"."""


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in the file."""

    data: StoredData
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the tensor lies within its data. Raises: CheckpointError."""
        negative = min((self.offset, *self.size, *self.stride)) < 0
        last = self.offset + sum(
            (n - 1) * step for n, step in zip(self.size, self.stride, strict=False)
        )
        empty = 0 in self.size
        outside = max(self.size, default=0) > _MOST or (not empty and last >= self.data.count)
        if negative or outside or len(self.size) != len(self.stride):
            raise CheckpointError(
                f"a tensor of size {list(self.size)} and stride {list(self.stride)} at "
                f"{self.offset} does not lie in its storage of {self.data.count} numbers",
                fix="the checkpoint is damaged: get it again",
            )

    @property
    def odd(self) -> str:
        """Return why this cannot be a weight, or nothing."""
        return self.data.odd

    @property
    def nbytes(self) -> int:
        """Return what it takes in memory once it is read."""
        return math.prod(self.size) * self.data.dtype.itemsize

    @property
    def place(self) -> tuple[int, str]:
        """Return what tensors have in common that are best read together."""
        return id(self.data.source), self.data.key

    def read(self) -> Tensor:
        """Return the tensor's values, in memory of their own. Raises: CheckpointError."""
        data = self.data
        content = data.source.storage(data.key)
        if len(content) < (data.start + data.count) * data.dtype.itemsize:
            raise CheckpointError(
                f"storage {data.key} has {len(content)} bytes",
                expected=f"{data.start + data.count} numbers of {data.dtype.itemsize} bytes",
                fix="the checkpoint is damaged: get it again",
            )
        if 0 in self.size or data.count == 0:
            return torch.zeros(self.size, dtype=data.dtype)
        first = (data.start + self.offset) * data.dtype.itemsize
        steps = [step if n > 1 else 0 for n, step in zip(self.size, self.stride, strict=True)]
        last = sum((n - 1) * step for n, step in zip(self.size, steps, strict=True))
        part = bytearray(content[first : first + (last + 1) * data.dtype.itemsize])
        return torch.frombuffer(part, dtype=data.dtype).as_strided(self.size, steps).clone()


@dataclass(frozen=True, eq=False)
class OddTensor:
    """A tensor that holds no plain numbers: it can be beside the weights, and not among them."""

    odd: str
    place: tuple[int, str] = (0, "")
    size: tuple[int, ...] = ()
    nbytes: int = 0

    def read(self) -> Tensor:
        """Raise CheckpointError: there is nothing to read."""
        raise CheckpointError(f"a {self.odd} tensor", expected="plain tensors of real numbers")
