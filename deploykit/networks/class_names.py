"""What the classes of a checkpoint are called, and who says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import OptionError
from deploykit.tasks.cityscapes import labels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipes.identity import Found
    from deploykit.recipes.recipe import Recipe

KNOWN = ("coco", "voc", "cityscapes")
"""Words for the names of the data set that the weights of a family were published for."""
_UNUSED, _SHOWN = "N/A", 5
"""What torchvision calls labels that COCO never uses; names in a note at most."""
_BACKGROUND = frozenset(("background", "bg"))


def chosen(
    recipe: Recipe,
    found: Found,
    given: Sequence[str] | None,
    stored: Sequence[str] | None,
) -> tuple[tuple[str, ...], str]:
    """Return the names of the classes, and a note where nobody says them.

    given: by the user, or one of `KNOWN` for those of that data set. stored: in the file. A name
    for the background, first or last, is left out where the network has no class for it. Raises:
    OptionError where there are more or less names than classes.
    """
    count = found.classes
    if given is not None and len(given) == 1 and given[0] in KNOWN and count > 1:
        return _published(recipe, count, given[0]), ""
    names = given or stored
    if names is not None:
        own = _without_background(tuple(names), count, "" if given else ", as the file has them")
        twice = sorted({name for name in own if own.count(name) > 1} - {_UNUSED})
        return own, f"classes of one name: {', '.join(twice[:_SHOWN])}" if twice else ""
    if found.class_names is not None:
        return found.class_names, ""
    last = f" to class{count - 1}" if count > 1 else ""
    return numbered(count), f"classes are called class0{last}: the file has no names for them" + (
        "; if they are those of its data set, --class-names coco, voc or cityscapes"
        if recipe.class_names(count) != numbered(count)
        else "; --class-names gives them"
    )


def cityscapes(count: int) -> tuple[str, ...]:
    """Return the names of Cityscapes' classes where there are as many, else numbers."""
    names = tuple(labels.CLASSES.values())
    return names if count == len(names) else numbered(count)


def numbered(count: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(f"class{i}" for i in range(count))


def _published(recipe: Recipe, count: int, word: str) -> tuple[str, ...]:
    names = recipe.class_names(count)
    if names == numbered(count):
        raise OptionError(
            f"no {word} names for {recipe.name} with {count} classes",
            fix="give one name per class, comma-separated, in the order of training",
        )
    return names


def _without_background(names: tuple[str, ...], count: int, whose: str) -> tuple[str, ...]:
    if len(names) == count + 1:
        for i in (0, -1):
            if names[i].strip("_ ").lower() in _BACKGROUND:
                return names[1:] if i == 0 else names[:-1]
    if len(names) != count:
        raise OptionError(
            f"{len(names)} class name{'s' if len(names) > 1 else ''} for a model of {count} "
            f"class{'es' if count > 1 else ''}{whose}",
            fix="give one name per class in the order of training, comma-separated or in the lines "
            "of a file: --class-names",
        )
    return names
