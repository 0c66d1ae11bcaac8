"""The classes of a model among the categories of the truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def ids(categories: Mapping[int, str], classes: Sequence[str]) -> tuple[int, ...]:
    """Return the truth's category id for each class of a model.

    By name where the names are the same set; otherwise by position among the sorted ids, provided
    that the counts agree and no shared name changes its place.

    Raises: DataError naming the differences.
    """
    known = sorted(categories.items())
    names = [name for _, name in known]
    if sorted(names) == sorted(classes) and len(set(names)) == len(names):
        numbers = {name: number for number, name in known}
        return tuple(numbers[name] for name in classes)
    moved = [name for i, name in enumerate(classes) if name in names and names[i : i + 1] != [name]]
    if len(names) == len(classes) and not moved:
        return tuple(number for number, _ in known)
    raise DataError(
        f"the truth has {len(names)} categories, the model {len(classes)} classes; "
        + _differences(names, classes, moved),
        expected="the same class names, or as many in the same order",
        fix="evaluate on the data set the model was trained for",
    )


def _differences(names: Sequence[str], classes: Sequence[str], moved: Sequence[str]) -> str:
    groups = {
        "only in the truth": sorted(set(names) - set(classes)),
        "only in the model": sorted(set(classes) - set(names)),
        "in another place": moved,
    }
    return "; ".join(f"{label}: {_shortened(group)}" for label, group in groups.items() if group)


def _shortened(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
