"""What is known of a checkpoint beside its weights, and what a family makes of it.

A setting is what a network is set up with and its weights do not hold: thresholds, anchors, the
mean of its images. It comes from the user, else from the weights' shapes or what else the file
holds, else it is assumed; where it came from is kept, printed and recorded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, get_args

from deploykit.errors import CheckpointError, OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from deploykit.data.preprocess import Preprocess

Plain: TypeAlias = "bool | int | float | str | tuple[Plain, ...] | Mapping[str, Plain] | None"
"""What a setting may be, and what is read of a pickled module's attributes."""
Origin: TypeAlias = Literal["given", "weights", "file", "assumed"]


class Layer(Protocol):
    """A module as a pickle describes it, without its weights."""

    @property
    def kind(self) -> str:
        """Return its class, with the package: `torch.nn.modules.conv.Conv2d`."""
        ...

    @property
    def values(self) -> Mapping[str, Any]:
        """Return its attributes that are plain values: numbers, words, lists and dicts of such."""
        ...


@dataclass(frozen=True)
class Facts:
    """What is known of a checkpoint beside its weights."""

    layers: Mapping[str, Layer] = field(default_factory=dict)
    """Path -> module, or an object that one holds; `""` is the network, nothing a state dict."""
    sha256: str = ""
    """Of the file."""
    variant: str | None = None
    """As the user said."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Settings that the user stated: name -> text."""
    beside: Mapping[str, Any] = field(default_factory=dict)
    """What the file holds beside the weights: plain values by name."""


@dataclass(frozen=True)
class Setting:
    """One thing that a network is set up with."""

    value: Plain
    origin: Origin


Settings: TypeAlias = "Mapping[str, Setting]"


@dataclass(frozen=True)
class Found:
    """What a family says of a checkpoint that is its own."""

    variant: str
    classes: int
    settings: Settings = field(default_factory=dict)
    like: str = ""
    """The variant of the recipe whose contract it has; "": the one it is called."""
    build: Callable[[], nn.Module] | None = None
    """Makes the network exactly as the checkpoint says; None: the variant as the recipe has it."""
    preprocess: Callable[[tuple[int, int] | None], Preprocess] | None = None
    """Likewise for the input: size H, W or None -> how it is made."""
    class_names: tuple[str, ...] | None = None
    """Where the networks of a family tell them apart; None: the file's, or numbers."""
    assumed: str = ""
    """One line about the settings that nobody states."""


def found(answer: Found | tuple[str, int] | None) -> Found | None:
    """Return what a family said, in the longer of its two forms."""
    return Found(*answer) if isinstance(answer, tuple) else answer


@dataclass(frozen=True)
class Choice:
    """A setting that a family knows."""

    assumed: Plain
    """Its value where nobody says."""
    says: str
    """What it is, in words that follow its value."""
    check: Callable[[Plain], Plain]
    """Returns the value in its own type. Raises: ValueError with what was expected."""
    place: tuple[str, ...] = ()
    """Path of the module in a pickle, the attribute, and keys inside that."""


def resolve(
    choices: Mapping[str, Choice], facts: Facts, weights: Mapping[str, Plain] | None = None
) -> dict[str, Setting]:
    """Return every setting of `choices`, and where it came from.

    weights: what the weights or other entries of the file say. Raises: OptionError for a setting
    that the user gave and that is unknown or unusable, CheckpointError for one of the file.
    """
    for name in facts.given:
        if name not in choices:
            raise unknown_name("setting", name, choices)
    found = {}
    for name, choice in choices.items():
        pickled = _pickled(facts, choice.place)
        if name in facts.given:
            value = _checked(name, choice, parsed(facts.given[name]), OptionError)
            found[name] = Setting(value, "given")
        elif weights and name in weights:
            found[name] = Setting(_checked(name, choice, weights[name], CheckpointError), "file")
        elif pickled is not None:
            found[name] = Setting(_checked(name, choice, pickled, CheckpointError), "file")
        else:
            found[name] = Setting(choice.assumed, "assumed")
    return found


def _checked(
    name: str, choice: Choice, value: Plain, error: type[OptionError | CheckpointError]
) -> Plain:
    try:
        return choice.check(value)
    except ValueError as reason:
        raise error(f"setting {name} is {value!r}", expected=str(reason)) from reason


def _pickled(facts: Facts, place: tuple[str, ...]) -> Plain:
    """Return the value at a place of the pickled module, None where there is none."""
    layer = facts.layers.get(place[0]) if place else None
    value: Any = None if layer is None else layer.values
    for key in place[1:]:
        value = value.get(key) if isinstance(value, Mapping) else None
    return frozen(value)


def parsed(text: str) -> Plain:
    """Return a value as JSON writes it; what is no JSON is a word."""
    try:
        return frozen(json.loads(text))
    except (ValueError, RecursionError):
        return text


def frozen(value: object) -> Plain:
    """Return a plain value with tuples for its lists. Raises: ValueError."""
    if isinstance(value, (list, tuple)):
        return tuple(frozen(item) for item in value)
    if isinstance(value, Mapping):
        return {str(key): frozen(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"a {type(value).__name__} is no plain value")


def recorded(value: object, origin: str) -> Setting:
    """Return a setting as a card has it. Raises: ValueError."""
    if origin not in get_args(Origin):
        raise ValueError(f"a setting from {origin!r}")
    return Setting(frozen(value), cast(Origin, origin))


def stated(facts: Facts, found: str, known: Iterable[str]) -> str:
    """Return the variant that the user stated, else the one found. Raises: OptionError."""
    if facts.variant is not None and facts.variant not in (names := tuple(known)):
        raise unknown_name("variant", facts.variant, names)
    return facts.variant or found


def assumptions(choices: Mapping[str, Choice], settings: Settings) -> str:
    """Return one line about what was assumed, empty where nothing was."""
    parts = [
        f"{choices[name].says} {_shown(setting.value)} ({name})"
        for name, setting in settings.items()
        if setting.origin == "assumed" and name in choices
    ]
    return "assumed, since the file does not say: " + ", ".join(parts) if parts else ""


def _shown(value: Plain) -> str:
    if isinstance(value, tuple):
        return "/".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


# What a value may be.


def count(value: Plain) -> int:
    """Return a whole number of at least 1. Raises: ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ValueError("a whole number of at least 1")


def share(value: Plain) -> float:
    """Return a number from 0 to 1. Raises: ValueError."""
    if _is_number(value) and 0 <= float(value) <= 1:  # type: ignore[arg-type]  # a number
        return float(value)  # type: ignore[arg-type]  # a number
    raise ValueError("a number from 0 to 1")


def three(value: Plain) -> tuple[float, ...]:
    """Return three finite numbers. Raises: ValueError."""
    return _several(value, _is_number, 3, "three numbers, such as [0.485, 0.456, 0.406]")


def spread(value: Plain) -> tuple[float, ...]:
    """Return three positive numbers, which pixels are divided by. Raises: ValueError."""
    return _several(value, _is_positive, 3, "three numbers above 0, such as [0.229, 0.224, 0.225]")


def four(value: Plain) -> tuple[float, ...]:
    """Return four positive numbers. Raises: ValueError."""
    return _several(value, _is_positive, 4, "four numbers above 0, such as [10, 10, 5, 5]")


def _several(
    value: Plain, allowed: Callable[[Plain], bool], count: int, expected: str
) -> tuple[float, ...]:
    """Return so many numbers, all allowed. Raises: ValueError that says what is expected."""
    if isinstance(value, tuple) and len(value) == count and all(map(allowed, value)):
        return tuple(float(v) for v in value)  # type: ignore[arg-type]  # numbers
    raise ValueError(expected)


def truth(value: Plain) -> bool:
    """Return a truth value. Raises: ValueError."""
    if isinstance(value, bool):
        return value
    raise ValueError("true or false")


def colours(value: Plain) -> str:
    """Return the order of an image's channels. Raises: ValueError."""
    if value in ("BGR", "RGB"):
        return str(value)
    raise ValueError("BGR or RGB")


def side(value: Plain) -> int:
    """Return a number of pixels, of several the last. Raises: ValueError."""
    return count(value[-1] if isinstance(value, tuple) and value else value)


def levels(value: Plain) -> tuple[tuple[float, ...], ...]:
    """Return positive numbers for each level, [[32], [64]]. Raises: ValueError."""
    rows = value if isinstance(value, tuple) else ()
    good = all(isinstance(r, tuple) and r and all(_is_positive(v) for v in r) for r in rows)
    if rows and good:
        return tuple(tuple(float(v) for v in row) for row in rows)  # type: ignore[arg-type,union-attr]  # numbers
    raise ValueError("positive numbers for each level, such as [[32], [64], [128]]")


def _is_number(value: Plain) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]  # a number


def _is_positive(value: Plain) -> bool:
    return _is_number(value) and float(value) > 0  # type: ignore[arg-type]  # a number
