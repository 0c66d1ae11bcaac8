"""What the files in calib/ define: a source of images, and the truth about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.errors import OptionError
from deploykit.files import extensions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.data.preprocess import Pixels


@dataclass(frozen=True)
class Sample:
    """One image of a data set, read only when asked for."""

    name: str
    """Unique in its data set: a relative path or a generated name."""
    read: Callable[[], Pixels]
    """Returns uint8[H, W, 3] RGB, upright. Raises: DataError naming the file."""
    truth: Callable[[], object] | None = None
    """Returns what is known about it, in the form that the task takes, such as the COCO
    annotations of this image, the id of a category or a map of ids; read only when asked for.
    None: nothing is known."""


@dataclass(frozen=True)
class Dataset:
    """Images, and what the truth about them tells apart."""

    name: str
    samples: Sequence[Sample]
    categories: Mapping[int, str] = field(default_factory=dict)
    """Id -> name of what the truth tells apart."""


@dataclass(frozen=True)
class Source:
    """A kind of data set, opened from the text after the colon in `name:location`."""

    name: str
    summary: str
    open: Callable[[str], Dataset]
    """Raises: DataError or OptionError."""


SOURCES = extensions.Kind("source", "calib", Source)


def dataset(spec: str | Dataset) -> Dataset:
    """Return the data set that `spec` is, or names: `source:location`, e.g. `coco:/data/val2017`.

    Raises: OptionError, DataError.
    """
    if isinstance(spec, Dataset):
        return spec
    name, colon, location = spec.partition(":")
    if not colon:
        raise OptionError(
            f"not a data source: {spec!r}",
            expected="SOURCE:LOCATION, with SOURCE one of " + ", ".join(SOURCES.shipped()),
        )
    return SOURCES.load(name).open(location)
