"""What stands for the objects of a pickle: names and records, never the objects themselves."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass
from typing import Any

from deploykit.networks.checkpoint import _bounds
from deploykit.networks.checkpoint._names import is_harmful

_KEYS = (str, float, bool, bytes, type(None))
_MAX_KEY, _FEW = 1 << 60, 1000
"""Integers beyond the first can be chosen to share one hash, which makes a dictionary as slow as a
list: only so many are taken."""


class CodeError(Exception):
    """The pickle wants to run something."""

    def __init__(self, name: str) -> None:
        """Keep the name of what it wants to run."""
        super().__init__(name)
        self.name = name


class FormatError(Exception):
    """The pickle breaks the rules of its own format, or a bound."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or a function that the pickle refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object that is not made, only what it would be made of."""

    of: Name
    """Its class, or the function that would return it."""
    arguments: tuple[Any, ...] = ()
    state: Any = None
    """What would be its attributes: mostly a dictionary."""
    items: list[Any] | dict[Any, Any] | None = None
    """Of a list's or a dictionary's subclass."""

    @property
    def attributes(self) -> dict[Any, Any]:
        """Return the attributes by name; of an object with slots, those in its dictionary."""
        state = self.state
        if isinstance(state, tuple) and len(state) == 2:
            state = state[0] if isinstance(state[0], dict) and state[0] else state[1]
        return state if isinstance(state, dict) else {}


def name(module: str, name: str) -> Name:
    """Return the reference, unless nothing good can come of it. Raises: CodeError, FormatError."""
    if len(module) + len(name) > _bounds.NAME or not (module + name).isprintable():
        raise FormatError("a class has a name that no class has")
    module, name = NAME_MAPPING.get((module, name), (module, name))
    module = IMPORT_MAPPING.get(module, module)  # protocol 2 writes the names of Python 2
    if is_harmful(module, name):
        raise CodeError(f"{module}.{name}")
    return Name(module, name)


def describe(value: object) -> str:
    """Return what `value` is, in a few words."""
    if isinstance(value, Record):
        return f"an object of {value.of}"
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__}"


def build(target: object, state: object) -> None:
    """Give `target` its state: as it is, since copies could fill the memory.

    Raises: CodeError where the target is no object.
    """
    if isinstance(target, Record):
        target.state = state
    elif isinstance(target, (Name, str, bytes, int, float, type(None))):
        raise CodeError(f"the state of {describe(target)}")


def extend(target: object, items: list[Any]) -> None:
    """Add items to a list, or to a record of a list's subclass. Raises: FormatError."""
    if isinstance(target, Record):
        if not isinstance(target.items, list):
            target.items = []
        target = target.items
    if not isinstance(target, list):
        raise FormatError(f"items are added to {describe(target)}")
    target.extend(items)


def fill(target: object, items: list[Any]) -> None:
    """Add keys and values to a dictionary, or to a record of one. Raises: FormatError."""
    if isinstance(target, Record):
        if not isinstance(target.items, dict):
            target.items = {}
        target = target.items
    if not isinstance(target, dict):
        raise FormatError(f"entries are added to {describe(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        enter(target, key, value)


def enter(target: dict[Any, Any], key: object, value: object) -> None:
    """Add an entry; a key that is not plain is dropped: hashing a deep one takes for ever."""
    number = isinstance(key, int) and (abs(key) < _MAX_KEY or len(target) < _FEW)
    if number or isinstance(key, _KEYS):
        target[key] = value
