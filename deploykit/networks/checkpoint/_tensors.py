"""Tensors of a checkpoint that are read only when they are wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from deploykit.networks.checkpoint._archive import Archive

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
}


@dataclass(frozen=True)
class StoredData:
    """A run of numbers in the archive that one or more tensors look into."""

    archive: Archive
    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the archive."""

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
        overlapping = math.prod(self.size) > max(self.data.count, 1)
        outside = not empty and (last >= self.data.count or overlapping)
        if negative or outside or len(self.size) != len(self.stride):
            raise CheckpointError(
                f"a tensor of size {list(self.size)} and stride {list(self.stride)} at "
                f"{self.offset} does not lie in its storage of {self.data.count} numbers",
                fix="the checkpoint is damaged: get it again",
            )

    def read(self) -> Tensor:
        """Return the tensor's values. Raises: CheckpointError."""
        data = self.data
        content = data.archive.storage(data.key)
        if len(content) != data.count * data.dtype.itemsize:
            raise CheckpointError(
                f"storage {data.key} has {len(content)} bytes",
                expected=f"{data.count} numbers of {data.dtype.itemsize} bytes",
                fix="the checkpoint is damaged: get it again",
            )
        if 0 in self.size:
            return torch.zeros(self.size, dtype=data.dtype)
        flat = torch.frombuffer(bytearray(content), dtype=data.dtype)
        return flat.as_strided(self.size, self.stride, self.offset).clone()
