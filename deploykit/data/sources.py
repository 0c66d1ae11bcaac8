"""What the files in calib/ define: a source of images, and the truth about them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from deploykit.errors import DataError, OptionError
from deploykit.files import extensions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from deploykit.data.preprocess import Floats, Pixels


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
    proposals: Callable[[Pixels], Floats] | None = None
    """Returns regions of the image where objects may be, float32[n, 4], x1, y1, x2, y2 in its
    pixels, for models that take such; None: there are none."""


class Benchmark(Protocol):
    """How the makers of a data set score results, and in which files they take them."""

    def metric(self, known: Mapping[int, str], classes: Sequence[str], /) -> Any:  # noqa: ANN401 - of a room above
        """Return a fresh metric, as the member of a task does; its truth is the data set's.

        Raises: DataError where the classes do not fit.
        """
        ...

    def write(
        self,
        folder: Path,
        name: str,
        result: object,
        size: tuple[int, int],
        classes: Sequence[str],
        /,
    ) -> None:
        """Write what was found in the image `name`, of H and W pixels, as the makers take it.

        Raises: DataError where results are of another form; OutputError.
        """
        ...


@dataclass(frozen=True)
class Dataset:
    """Images, and what the truth about them tells apart."""

    name: str
    samples: Sequence[Sample]
    categories: Mapping[int, str] = field(default_factory=dict)
    """Id -> name of what the truth tells apart."""
    by_index: bool = False
    """Whether the ids are the indices of the model's classes, whatever their names."""
    used: frozenset[int] | None = None
    """The ids that the truth has anywhere; None: nobody has looked."""
    benchmark: Benchmark | None = None
    """How the makers of the set score results; None: as the model's task does."""

    def known(self, classes: Sequence[str]) -> Mapping[int, str]:
        """Return the categories as a model with these classes is judged by.

        Those that the model has no name for, and the truth no example of, are left out: some tools
        list one above all others. Raises: DataError for an index that the model has no class for.
        """
        if not self.by_index:
            foreign = {number for number, name in self.categories.items() if name not in classes}
            if self.used is None or foreign & self.used or len(foreign) == len(self.categories):
                return self.categories
            return {n: name for n, name in self.categories.items() if n not in foreign}
        beyond = sorted(number for number in self.categories if number >= len(classes))
        if beyond:
            name = self.categories[beyond[0]]
            raise DataError(
                f"{self.name}: {name!r} is class {beyond[0]}, and the model has {len(classes)}",
                expected=f"indices from 0 to {len(classes) - 1}",
                fix="give the class map of the data set that the model was trained on",
            )
        return dict(enumerate(classes))


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
