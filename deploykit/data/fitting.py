"""Which sizes of input a set of images needs, so that each lies in one as its family pads it."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.data import samples
from deploykit.errors import DataError, OptionError
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploykit.data.preprocess import Preprocess, Size
    from deploykit.data.sources import Dataset
    from deploykit.values import Progress

MOST = 16
"""Sizes of input: each is traced, proven and built on its own."""
_LOOKED_AT = 512
"""Images of a set, evenly spread."""


@dataclass(frozen=True)
class Fitted:
    """Input sizes for a set of images."""

    preprocess: Preprocess
    """With these sizes, the most frequent first."""
    images: Mapping[Size, int]
    """Size -> how many of the images take it."""
    exact: int
    """How many of them lie in a size that is theirs alone, not only one that holds them."""

    def __str__(self) -> str:
        """Return what was chosen, for the user."""
        total = sum(self.images.values())
        each = ", ".join(
            f"{height}x{width} ({count / total:.0%})"
            for (height, width), count in self.images.items()
        )
        more = "" if self.exact == total else f"; {total - self.exact} have more padding than alone"
        return f"input sizes for {total} images: {each}{more}"


def shapes(data: Dataset, *, progress: Progress = silent) -> tuple[Size, ...]:
    """Return height and width of a set's images, or of 512 of them. Raises: DataError."""
    chosen = samples.choose(data.samples, _LOOKED_AT)
    read = (sample.read().shape for sample in progress(chosen, "images", len(chosen)))
    return tuple((shape[0], shape[1]) for shape in read)


def fitted(own: Preprocess, images: Sequence[Size], multiple: int) -> Fitted:
    """Return the input sizes that images (H, W each) need, at most MOST.

    An image is scaled by its limits and takes the least multiple of `multiple` that holds it, as
    in the family's own pipeline for one image. Where that are more sizes than MOST, the rarest
    share one as large as all of them.

    Raises: OptionError where images are prepared for one size; DataError without images.
    """
    if own.resize != "corner" or own.limits is None:
        raise OptionError(
            "the sizes of images make no difference: all are prepared for "
            + " or ".join(f"{height}x{width}" for height, width in own.sizes),
            expected="a detector whose images have a short and a long side, such as Mask R-CNN",
            fix="state the input size itself with --input-size",
        )
    if not images:
        raise DataError("the set has no images")
    alone = [_padded(own.scaled(*image)[1], multiple) for image in images]
    frequent = [size for size, _ in Counter(alone).most_common()]
    kept = frequent if len(frequent) <= MOST else frequent[: MOST - 1]
    rare = [size for size in frequent if size not in kept]
    if rare:
        kept.append((max(size[0] for size in rare), max(size[1] for size in rare)))
    made = replace(own, size=kept[0], canvases=tuple(kept[1:]))
    taken = [made.fit(*image).canvas for image in images]
    exact = sum(map(operator.eq, taken, alone))
    return Fitted(made, {size: taken.count(size) for size in kept}, exact)


def _padded(sides: Size, multiple: int) -> Size:
    height, width = (-(-side // multiple) * multiple for side in sides)
    return height, width
