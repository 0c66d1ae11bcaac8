"""What the files in calib/ define: a source of images, and the truth about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import OptionError
from deploykit.files import extensions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploykit.data.preprocess import Pixels
    from deploykit.values import Json


@dataclass(frozen=True)
class Sample:
    """One image of a data set, read only when asked for."""

    name: str
    """Unique in its data set: a relative path or a generated name."""
    read: Callable[[], Pixels]
    """Returns uint8[H, W, 3] RGB, upright. Raises: DataError naming the file."""


@dataclass(frozen=True)
class Dataset:
    """Images, and the truth about them where it is known."""

    name: str
    samples: Sequence[Sample]
    truth: Callable[[], Json] | None = None
    """Returns a COCO `instances` object whose images' `file_name` are sample names."""


@dataclass(frozen=True)
class Source:
    """A kind of data set, opened from the text after the colon in `name:location`."""

    name: str
    summary: str
    open: Callable[[str], Dataset]
    """Raises: DataError or OptionError."""


SOURCES = extensions.Kind("source", "calib", Source)


def dataset(spec: str) -> Dataset:
    """Return the data set that `spec` names: `source:location`, e.g. `coco:/data/val2017`.

    Raises: OptionError, DataError.
    """
    name, colon, location = spec.partition(":")
    if not colon:
        raise OptionError(
            f"not a data source: {spec!r}",
            expected="SOURCE:LOCATION, with SOURCE one of " + ", ".join(SOURCES.shipped()),
        )
    return SOURCES.load(name).open(location)
