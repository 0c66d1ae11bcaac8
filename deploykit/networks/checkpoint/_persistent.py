"""The data that a pickle of `torch.save` refers to: ('storage', class, key, device, count, ...)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint._records import FormatError, Name
from deploykit.networks.checkpoint._tensors import DTYPES, ODD_STORAGES, StoredData

if TYPE_CHECKING:
    from deploykit.networks.checkpoint._tensors import Storages

_HOMES = ("torch", "torch.cuda", "torch.storage")


def stored(source: Storages, identity: Any) -> StoredData:  # noqa: ANN401 - whatever is referred to
    """Return the data in `source` that a tensor refers to. Raises: FormatError, CheckpointError."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise FormatError("a tensor without storage")
    kind, key, count = identity[1], identity[2], identity[4]
    if not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
        raise FormatError("a tensor with a strange storage")
    if count < 0:
        raise FormatError("a storage of less than no numbers")
    dtype, odd = element_type(kind)
    return StoredData(source, key, dtype, count, odd=odd)


def element_type(kind: Name) -> tuple[torch.dtype, str]:
    """Return what a class of storages holds, and why it cannot be weights.

    Raises: CheckpointError.
    """
    if kind.module in _HOMES and kind.name in DTYPES:
        return DTYPES[kind.name], ""
    if kind.module in _HOMES and kind.name in ODD_STORAGES:
        return torch.uint8, ODD_STORAGES[kind.name]
    raise CheckpointError(
        f"a tensor is stored as {kind}",
        expected="one of " + ", ".join(sorted(DTYPES)),
        fix="save the weights in half or single precision",
    )
