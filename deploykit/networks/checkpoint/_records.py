"""What stands for the objects of a pickle, and the table of calls it may make."""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploykit.errors import CheckpointError
from deploykit.networks.checkpoint._names import DANGEROUS, PLAIN_BUILTINS, UNUSED
from deploykit.networks.checkpoint._tensors import DTYPES, StoredData, StoredTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.networks.checkpoint._archive import Archive

    Arguments = tuple[Any, ...]
    Stack = list[Any]  # what a pickle holds has no type until it is looked at

_KEYS = (str, int, float, bool, bytes, type(None))
_MAX_DIMENSIONS = 64  # what torch allows


@dataclass(frozen=True)
class Name:
    """A class or a function that the pickle refers to; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class Instance:
    """An object of a class that is not here: only its attributes."""

    of: Name
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opaque:
    """A value of no interest, such as a numpy scalar among the training results."""

    of: Name


class CodeError(Exception):
    """The pickle wants to run something."""

    def __init__(self, name: str) -> None:
        """Keep the name of what it wants to run."""
        super().__init__(name)
        self.name = name


class FormatError(Exception):
    """The pickle breaks the rules of its own format."""


def _pairs(arguments: Arguments) -> dict[Any, Any]:
    given = arguments[0] if arguments else ()
    found: dict[Any, Any] = {}
    for key, value in given.items() if isinstance(given, dict) else given:
        _set(found, key, value)
    return found


def _tensor(arguments: Arguments) -> StoredTensor | Opaque:
    data, offset, size, stride = arguments[:4]
    if isinstance(data, Opaque):
        return data
    shapes = all(isinstance(n, tuple) and len(n) <= _MAX_DIMENSIONS for n in (size, stride))
    whole = shapes and all(type(n) is int for n in (offset, *size, *stride))
    if not isinstance(data, StoredData) or not whole:
        raise FormatError("a tensor is described by something else than numbers")
    return StoredTensor(data, offset, size, stride)


def _first(arguments: Arguments) -> object:
    """Return the first argument itself: a copy for every call could fill the memory."""
    return arguments[0] if arguments else ()


def name(module: str, name: str) -> Name:
    """Return the reference, unless nothing good can come of it. Raises: CodeError."""
    module, name = NAME_MAPPING.get((module, name), (module, name))
    module = IMPORT_MAPPING.get(module, module)  # protocol 2 writes the names of Python 2
    package = module.partition(".")[0]
    harmless = module == "builtins" and name in PLAIN_BUILTINS
    if package in DANGEROUS and not harmless:
        raise CodeError(f"{module}.{name}")
    return Name(module, name)


def call(callee: object, arguments: object) -> object:
    if not isinstance(callee, Name):
        raise CodeError(describe(callee))
    if not isinstance(arguments, tuple):
        raise FormatError(f"{callee} is called with something else than arguments")
    if str(callee) in UNUSED:
        return Opaque(callee)
    if str(callee) not in _CALLS:
        raise CodeError(str(callee))
    return _CALLS[str(callee)](arguments)


def instance(callee: object) -> Any:  # noqa: ANN401 - a record or a container
    """Return an object of the class `callee`, made without running its constructor."""
    if not isinstance(callee, Name):
        raise CodeError(describe(callee))
    return {} if str(callee) == "collections.OrderedDict" else Instance(callee)


def describe(value: object) -> str:
    if isinstance(value, (Instance, Opaque)):
        return f"an object of {value.of}"
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__}"


def storage(identity: object, archive: Archive) -> StoredData:
    """Return the data that a tensor refers to as ('storage', class, key, device, count)."""
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        raise FormatError("a tensor without storage")
    kind, key, count = identity[1], identity[2], identity[4]
    if not isinstance(kind, Name) or not isinstance(key, str) or type(count) is not int:
        raise FormatError("a tensor with a strange storage")
    if kind.module not in ("torch", "torch.cuda") or kind.name not in DTYPES:
        raise CheckpointError(
            f"a tensor is stored as {kind}",
            expected="one of " + ", ".join(sorted(DTYPES)),
            fix="save the weights in half or single precision",
        )
    return StoredData(archive, key, DTYPES[kind.name], count)


def extend(target: object, items: Stack) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, (Opaque, Instance)):  # a list's subclass keeps no items
        raise FormatError(f"items are added to {describe(target)}")


def fill(target: object, items: Stack) -> None:
    if not isinstance(target, dict):
        if isinstance(target, (Opaque, Instance)):  # a dictionary's subclass keeps no entries
            return
        raise FormatError(f"entries are added to {describe(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        _set(target, key, value)


def _set(target: dict[Any, Any], key: object, value: object) -> None:
    """Add an entry; a key that is not plain is dropped: hashing a deep one takes for ever."""
    if isinstance(key, _KEYS):
        target[key] = value


# What a pickle may call, and what stands for the result: a function of the arguments given.
_CALLS: Mapping[str, Callable[[Arguments], Any]] = {
    "collections.OrderedDict": _pairs,
    "collections.Counter": _pairs,
    "collections.defaultdict": lambda _: {},
    "builtins.dict": _pairs,
    "builtins.set": _first,
    "builtins.frozenset": _first,
    "builtins.list": _first,
    "builtins.tuple": _first,
    "torch.Size": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": lambda arguments: call(arguments[0], arguments[2]),
    "copyreg._reconstructor": lambda arguments: instance(arguments[0]),
}
