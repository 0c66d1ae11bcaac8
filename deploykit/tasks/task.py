"""What a task is: how outputs become results, and how these are scored, compared and drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from deploykit.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry, Pixels
    from deploykit.values import Agreement, Json

    Array: TypeAlias = NDArray[np.generic]
    Arrays: TypeAlias = Mapping[str, Array]
    Size: TypeAlias = tuple[int, int]

R = TypeVar("R")
"""What a task finds in one image: objects, a class, a label map."""
R_contra = TypeVar("R_contra", contravariant=True)


@runtime_checkable
class Result(Protocol):
    """What the verbs ask of what a task finds in one image; a plain number or array serves too.

    Without these members it cannot be the truth for another model, and two of them are not
    compared.
    """

    def as_truth(self, number: int, size: Size, /) -> object:
        """Return it as the truth about image `number`, of H and W pixels, for the task's metric."""
        ...

    def unlike(self, other: Any, /) -> Any:  # noqa: ANN401 - of the class itself
        """Return the part of it that another model's result for the same image does not have."""
        ...

    def said(self, classes: Sequence[str], /) -> str:
        """Return it in a few words; empty where there is nothing."""
        ...

    def to_json(self, classes: Sequence[str], size: Size, /) -> Json:
        """Return it as plain JSON values; size: H and W of the image."""
        ...


@dataclass(frozen=True)
class Display:
    """How the values of a metric are written and drawn."""

    title: str
    unit: str = ""
    digits: int = 4
    """After the point."""
    scale: float = 1.0
    """A value times this is what is shown: 100 for a share in per cent."""
    higher_is_better: bool = True
    summary: bool = False
    """Whether summaries show it; the primary metric they always show."""
    drop: bool = False
    """Whether summaries also show what it lost against the model that it was made from."""

    def text(self, value: float | None) -> str:
        """Return a value as it is printed, with its unit; `-` where it is undefined."""
        if value is None:
            return "-"
        return f"{value * self.scale:.{self.digits}f}" + (f" {self.unit}" if self.unit else "")


@dataclass(frozen=True)
class Scores:
    """How well a model did its task on one set of images."""

    metrics: Mapping[str, float | None]
    """Name -> value; None where the truth leaves it undefined."""
    primary: str
    """The metric that models are ranked by, one of `metrics`."""
    display: Mapping[str, Display] = field(default_factory=dict)
    """Metric name -> how it is shown; others by their name, with the defaults."""
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    """Class name -> the primary metric of that class alone."""
    notes: tuple[str, ...] = ()
    """What the numbers leave out or assume, each in one line."""
    protocol: Mapping[str, str] = field(default_factory=dict)
    """How outputs became what was scored, where there is more than one way."""

    def __post_init__(self) -> None:
        """Check that there is a primary metric. Raises: OptionError."""
        if self.primary not in self.metrics:
            raise OptionError(
                f"the task's primary metric {self.primary!r} is not among its metrics",
                expected="one of " + (", ".join(self.metrics) or "them, and there is none"),
            )

    @property
    def value(self) -> float | None:
        """Return the primary number."""
        return self.metrics[self.primary]

    def lost(self, other: Scores) -> float:
        """Return what another model's primary number is worse by; NaN where one is undefined."""
        whole, found = self.value, other.value
        if whole is None or found is None:
            return math.nan
        shown = self.display.get(self.primary)
        return whole - found if shown is None or shown.higher_is_better else found - whole


class Metric(Protocol[R_contra]):
    """Takes results in, one image after the other."""

    def add(self, name: str, result: R_contra, truth: Any, size: Size, /) -> None:  # noqa: ANN401 - each task has its own form of truth
        """Take the result for the image `name`, of H and W pixels, and the truth about it."""
        ...

    def scores(self) -> Scores:
        """Return the scores of all images taken in."""
        ...


class Pair(NamedTuple):
    """Numbers of two models that must be alike: same shape, element by element."""

    found: Array
    expected: Array
    factor: float = 1.0
    """Of the tolerance: above 1 for what is computed from other outputs that differ already."""
    columns: bool = True
    """Whether the last axis may hold different quantities, which are then judged one by one."""


class Pairing(Protocol):
    """Brings the outputs of two models into one order, run after run."""

    def pairs(self, found: Arrays, expected: Arrays, atol: float, rtol: float) -> dict[str, Pair]:
        """Return what is compared of one run; scores may differ by `atol + rtol * their span`."""
        ...

    def findings(self) -> tuple[Agreement, ...]:
        """Return what pairs cannot say of all runs, such as rows without a partner."""
        ...


class Task(Protocol[R]):
    """What a model is for. R: what it finds in one image."""

    def decode(
        self, outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /
    ) -> Sequence[R]:
        """Return one result per geometry, in pixels of the original image."""
        ...

    def metric(self, categories: Mapping[int, str], classes: Sequence[str], /) -> Metric[R]:
        """Return a fresh metric. categories: id -> name in the truth; classes: the model's.

        Raises: DataError where the two do not fit.
        """
        ...

    def agreement(self) -> Pairing:
        """Return a fresh pairing of the outputs of two models for this task."""
        ...

    def draw(self, image: Pixels, result: R, classes: Sequence[str], /) -> Pixels:
        """Return a picture, uint8[h, w, 3]: the image with the result drawn on it or below it."""
        ...
