"""The labels of Cityscapes: ids, categories, and what its benchmarks leave out.

Source: Cordts et al. 2016, section 2.3, and the table of labels that the set publishes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

GROUPED = 1000
"""A map of instances has, for an object that is told apart, the id of its label * GROUPED + its
number; all else, groups of objects too, has the id of the label alone."""
PLATE = "license plate"
"""The one label that is never drawn: its official id is -1."""
IGNORED = 255
"""Train id of pixels that do not count."""


class Label(NamedTuple):
    """What one label is."""

    name: str
    number: int
    """Its official id."""
    category: str
    counted: bool
    """Whether the benchmarks score it."""
    instances: bool
    """Whether its objects are told apart."""


_CATEGORIES: Mapping[str, tuple[str, ...]] = {
    "void": (
        *("-unlabeled", "-ego vehicle", "-rectification border", "-out of roi"),
        *("-static", "-dynamic", "-ground"),
    ),
    "flat": ("road", "sidewalk", "-parking", "-rail track"),
    "construction": ("building", "wall", "fence", "-guard rail", "-bridge", "-tunnel"),
    "object": ("pole", "-polegroup", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": (
        *("car", "truck", "bus", "-caravan", "-trailer"),
        *("train", "motorcycle", "bicycle"),
    ),
}
"""Category -> its labels in the order of their ids, from 0 on; behind `-` those not scored."""
_TOLD_APART = ("human", "vehicle")
_PAIRS = [(category, name) for category, names in _CATEGORIES.items() for name in names]
LABELS: tuple[Label, ...] = tuple(
    Label(name.lstrip("-"), number, category, name[0] != "-", category in _TOLD_APART)
    for number, (category, name) in enumerate(_PAIRS)
)
"""Those that are drawn; the place of each is its id."""
BY_NAME: Mapping[str, Label] = {label.name: label for label in LABELS}
CLASSES: Mapping[int, str] = {label.number: label.name for label in LABELS if label.counted}
"""Id -> name of the 19 classes; the place of each is its train id."""
THINGS: Mapping[int, str] = {n: name for n, name in CLASSES.items() if LABELS[n].instances}
"""Id -> name of the 8 classes whose objects are told apart."""
CATEGORIES: Mapping[str, tuple[int, ...]] = {
    category: tuple(label.number for label in LABELS if label.category == category)
    for category in _CATEGORIES
}
"""Category -> the ids of its labels, also of those that are not scored."""


def to_train() -> NDArray[np.uint8]:
    """Return uint8[34]: the train id of each label, IGNORED where it is not scored."""
    table = np.full(len(LABELS), IGNORED, np.uint8)
    table[list(CLASSES)] = np.arange(len(CLASSES))
    return table


def from_train() -> NDArray[np.uint8]:
    """Return uint8[256]: the id of the label of each train id, 0 where there is none."""
    table = np.zeros(IGNORED + 1, np.uint8)
    table[: len(CLASSES)] = list(CLASSES)
    return table


def of_instances(instances: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Return the ids of the labels, uint8[H, W], in a map of instances, int32[H, W]."""
    return np.where(instances < GROUPED, instances, instances // GROUPED).astype(np.uint8)
