"""Whether what a caller feeds a model is what the model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.data import feeding
from deploykit.errors import ModelError
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def checked(inputs: Sequence[TensorSpec], feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Compare names, element types and shapes, and return the feeds, completed.

    An array is anything with `dtype` and `shape`; see `feeding.completed` for what may be left out.

    Raises: ModelError that states both sides in the notation of TensorSpec.
    """
    feeds = feeding.completed(inputs, feeds)
    # arithmetic on an array without dimensions gives a number
    feeds = {n: np.asarray(v) if isinstance(v, np.generic) else v for n, v in feeds.items()}
    if feeds.keys() != {spec.name for spec in inputs}:
        raise ModelError(
            f"the model was fed {_listed(map(repr, feeds)) or 'nothing'}",
            expected=_listed(map(str, inputs)),
        )
    for spec in inputs:
        found = TensorSpec(spec.name, str(feeds[spec.name].dtype), tuple(feeds[spec.name].shape))
        if not _fits(found, spec):
            raise ModelError(f"the model was fed {found}", expected=str(spec))
    return feeds


def _fits(found: TensorSpec, spec: TensorSpec) -> bool:
    return (
        found.dtype == spec.dtype
        and len(found.shape) == len(spec.shape)
        and all(
            size == dim
            for size, dim in zip(found.shape, spec.shape, strict=True)
            if isinstance(dim, int)
        )
    )


def _listed(items: Any) -> str:  # noqa: ANN401 - any iterable of text
    return ", ".join(items)
