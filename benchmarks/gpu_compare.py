"""One launch of an op with every output watched, and how far two arrays are apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gpu_ops import Library
    from gpu_regions import Array

ELEMENTS = (np.float32, np.float16)
BORDER, DIRT = 64, 77
"""Elements after an output that must stay as they were; what memory holds before a launch."""


class Memory:
    """Makes outputs that start dirty, with a border behind each that nothing may write to."""

    def __init__(self, device: str) -> None:
        """Make nothing yet."""
        self.device, self._made = device, list[Any]()

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> Any:  # noqa: ANN401 - torch's
        """Return an output."""
        import torch  # noqa: PLC0415 - `--help` is instant

        size = math.prod(shape)
        self._made.append(torch.full((size + BORDER,), DIRT, dtype=dtype).to(self.device))
        return self._made[-1][:size].view(shape)

    def intact(self) -> bool:
        """Return whether every border is."""
        return all(bool((made.cpu()[-BORDER:] == DIRT).all()) for made in self._made)


def launched(
    library: Library,
    op: str,
    inputs: Sequence[Array],
    **options: Any,  # noqa: ANN401 - the op's
) -> tuple[list[Array], str]:
    """Return an op's outputs, and what is wrong with where it wrote, "" where nothing is."""
    import torch  # noqa: PLC0415 - `--help` is instant

    memory = Memory(library.device)
    there = [torch.from_numpy(np.ascontiguousarray(each)).to(library.device) for each in inputs]
    outputs = library(op, there, make=memory, **options)
    arrays = [each.cpu().numpy() for each in outputs]
    return arrays, "" if memory.intact() else "writes beyond an output"


def apart(found: Array, wanted: Array, limit: float) -> str:
    """Return how far two arrays are apart where that is more than `limit`, else ""."""
    if found.shape != wanted.shape:
        return f"{found.shape}, not {wanted.shape}"
    if limit == 0:
        differ = ~((found == wanted) | ((found != found) & (wanted != wanted)))  # noqa: PLR0124 - NaN
        return f"{int(differ.sum())} of {differ.size} differ" if differ.any() else ""
    error = np.abs(found.astype(np.float64) - wanted).max(initial=0)
    return "" if error <= limit else f"{error:.0e} off, more than {limit:.0e}"
