"""The classes of a model among the categories of the truth."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


@dataclass(frozen=True)
class Match:
    """Which class of the model each category of the truth is."""

    indices: Mapping[int, int]
    """Id of a category -> index of the class; each class at most once."""
    classes: tuple[str, ...]
    """The model's, as they are told apart: a name that stands twice has its index behind it."""
    renamed: tuple[str, ...] = ()
    """Pairs, in words, of a class and the category at its place that is called otherwise."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is said where classes are matched by place, or are not all in the truth."""
        if self.renamed:
            count = f"{len(self.renamed)} of {len(self.classes)}"
            said = "classes are called otherwise in the truth, and taken in its order"
            return (f"{count} {said}: {_shortened(self.renamed)}",)
        if len(self.indices) == len(self.classes):
            return ()
        text = (
            f"the truth has {len(self.indices)} of the model's {len(self.classes)} classes, and "
            "only these are scored: "
            + _shortened([self.classes[i] for i in sorted(self.indices.values())])
        )
        return (text,)


def match(categories: Mapping[int, str], classes: Sequence[str]) -> Match:
    """Return the class of a model for each category of the truth.

    By name where the names are the same set; else by position among the sorted ids, provided that
    the counts agree and no shared name changes its place; else by name, where the truth has a part
    of the model's classes.

    Raises: DataError naming the differences.
    """
    known = sorted(categories.items())
    names = [name for _, name in known]
    distinct = tuple(unique(classes))
    places = {name: i for i, name in enumerate(classes)}
    is_named = len(set(names)) == len(names) and all(classes.count(name) == 1 for name in names)
    if is_named and len(names) == len(classes):
        return Match({number: places[name] for number, name in known}, distinct)
    moved = [name for i, name in enumerate(classes) if name in names and names[i : i + 1] != [name]]
    if len(names) == len(classes) and not moved:
        renamed = _renamed(classes, names)
        return Match({number: i for i, (number, _) in enumerate(known)}, distinct, renamed)
    if is_named and names:
        return Match({number: places[name] for number, name in known}, distinct)
    if not classes:
        raise DataError(
            f"the model names no class, and its outputs do not show how many there are; the truth "
            f"has {len(names)}: {_shortened(names)}",
            expected="a model whose classes are known",
            fix="--class-names says them, where the outputs are those of its --task",
        )
    raise DataError(
        f"the truth has {len(names)} categories, the model {len(classes)} classes; "
        + _differences(names, classes, moved),
        expected="the same class names, a part of them, or as many in the same order",
        fix="evaluate on the data set the model was trained for, or say which class each is: "
        "imagefolder:DIR,classes=FILE, imagenet:DIR,synsets=FILE",
    )


def unique(names: Sequence[str]) -> list[str]:
    """Return the names, with its index behind each that stands more than once."""
    times = Counter(names)
    return [f"{name} ({i})" if times[name] > 1 else name for i, name in enumerate(names)]


def named(names: Sequence[str], indices: Iterable[int]) -> dict[int, str]:
    """Return what each class is called: its name, told apart, or its number where it has none."""
    distinct = unique(names)
    return {i: distinct[i] if i < len(distinct) else f"class {i}" for i in indices}


def _differences(names: Sequence[str], classes: Sequence[str], moved: Sequence[str]) -> str:
    groups = {
        "only in the truth": sorted(set(names) - set(classes)),
        "only in the model": sorted(set(classes) - set(names)),
        "in another place": moved,
    }
    return "; ".join(f"{label}: {_shortened(group)}" for label, group in groups.items() if group)


def _renamed(classes: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the classes with another name in the truth, but for those that only have a number."""
    pairs = zip(classes, names, strict=True)
    return tuple(
        f"{given} is {name}"
        for i, (given, name) in enumerate(pairs)
        if given.casefold() not in (name.casefold(), f"class{i}")
    )


def _shortened(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names, and how many more there are."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])
