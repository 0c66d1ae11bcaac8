"""Reads a pickle without running it: classes become names, calls are looked up in one table.

Python's own unpickler imports whatever a pickle names and calls it. This reader goes through the
same instructions, yet its stack only ever holds numbers, strings, lists, dictionaries and the
records below. Nothing is imported, called, hashed beyond plain keys, or assigned to; so there is
nothing that a hostile pickle could reach.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, NoReturn

from deploykit.checkpoint._tensors import DTYPES, StoredData, StoredTensor
from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deploykit.checkpoint._archive import Archive

    Stack = list[Any]  # what a pickle holds has no type until it is looked at

_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that protocol 2 calls by their Python 2 names."""
_KEYS = (str, int, float, bool, bytes, type(None))
_MARK = object()


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


_STORAGE = Name("torch", "Storage")
# Packages that no checkpoint has a reason to name: a reference alone is refused.
_DANGEROUS = frozenset(
    "asyncio bdb builtins cloudpickle code codeop commands ctypes dill http imp importlib marshal"
    " multiprocessing nt os pdb pickle pip pkgutil posix pty pydoc runpy shutil signal smtplib"
    " socket subprocess sys tempfile timeit urllib webbrowser winreg zipimport".split()
)
_PLAIN_BUILTINS = frozenset(
    "bool bytearray bytes complex dict float frozenset int list object range set slice str"
    " tuple type".split()
)


def _pairs(arguments: Stack) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in arguments[0] if arguments else ():
        _set(found, key, value)
    return found


def _tensor(arguments: Stack) -> StoredTensor | Opaque:
    data, offset, size, stride = arguments[:4]
    if isinstance(data, Opaque):
        return data
    whole = all(type(n) is int for n in (offset, *size, *stride))
    if not isinstance(data, StoredData) or not whole:
        raise FormatError("a tensor is described by something else than numbers")
    return StoredTensor(data, offset, tuple(size), tuple(stride))


def _first(arguments: Stack) -> object:
    return arguments[0]


# What a pickle may call, and what stands for the result: a function of the arguments given.
_CALLS: Mapping[str, Callable[[Stack], Any]] = {
    "collections.OrderedDict": _pairs,
    "collections.Counter": lambda arguments: dict(arguments[0]) if arguments else {},
    "collections.defaultdict": lambda _: {},
    "builtins.dict": _pairs,
    "builtins.set": lambda arguments: list(arguments[0]) if arguments else [],
    "builtins.frozenset": lambda arguments: list(arguments[0]) if arguments else [],
    "builtins.list": lambda arguments: list(arguments[0]) if arguments else [],
    "builtins.tuple": lambda arguments: tuple(arguments[0]) if arguments else (),
    "torch.Size": lambda arguments: tuple(arguments[0]),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": lambda arguments: _call(arguments[0], arguments[2]),
    "copyreg._reconstructor": lambda arguments: _instance(arguments[0]),
}
# Calls whose results are of no use here, and which therefore leave only their name.
_UNUSED = frozenset(
    "torch.device torch.dtype torch.Generator torch.serialization._get_layout"
    " numpy.dtype numpy.ndarray numpy.core.multiarray.scalar numpy._core.multiarray.scalar"
    " numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct _codecs.encode"
    " builtins.bytearray builtins.complex builtins.slice builtins.range builtins.object"
    " pathlib.PosixPath pathlib.WindowsPath pathlib.PurePosixPath pathlib.PureWindowsPath"
    " pathlib.Path pathlib._local.PosixPath pathlib._local.WindowsPath datetime.datetime"
    " datetime.date datetime.timedelta datetime.timezone".split()
)


def read(content: IO[bytes], archive: Archive | None = None) -> Any:  # noqa: ANN401 - any object
    """Return what the next pickle in `content` describes: plain values and the records above.

    archive: where its tensors lie; without it they are Opaque. Raises: CodeError with the name of
    what it wants to run; FormatError; CheckpointError for a tensor outside of its data.
    """
    machine = _Machine(archive)
    try:
        return machine.run(content)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{type(error).__name__}: {error}") from error


class _Machine:
    """The stack, the stacks below it, and the memo of a pickle."""

    def __init__(self, archive: Archive | None) -> None:
        self._archive = archive
        self._stack: Stack = []
        self._below: list[Stack] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: IO[bytes]) -> object:
        """Return the object that is left when the pickle stops."""
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name in _LITERALS:
                self._stack.append(_LITERALS[opcode.name](argument))
                continue
            step = getattr(self, f"_do_{opcode.name.lower()}", None)
            if step is None:
                raise FormatError(f"instruction {opcode.name} has no place in a checkpoint")
            step(argument)
        raise FormatError("it ends before its end")

    def _marked(self) -> Stack:
        """Return all items since the last mark."""
        items, self._stack = self._stack, self._below.pop()
        return items

    # marks, memo and stack

    def _do_proto(self, _: int) -> None: ...

    def _do_frame(self, _: int) -> None: ...

    def _do_mark(self, _: None) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _do_pop(self, _: None) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def _do_pop_mark(self, _: None) -> None:
        self._marked()

    def _do_dup(self, _: None) -> None:
        self._stack.append(self._stack[-1])

    def _do_put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _do_memoize(self, _: None) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _do_get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _do_binput = _do_long_binput = _do_put
    _do_binget = _do_long_binget = _do_get

    # containers

    def _do_empty_list(self, _: None) -> None:
        self._stack.append([])

    def _do_empty_dict(self, _: None) -> None:
        self._stack.append({})

    def _do_list(self, _: None) -> None:
        items = self._marked()
        self._stack.append(items)

    def _do_tuple(self, _: None) -> None:
        items = self._marked()
        self._stack.append(tuple(items))

    def _do_dict(self, _: None) -> None:
        items, found = self._marked(), dict[Any, Any]()
        _fill(found, items)
        self._stack.append(found)

    def _do_tuple1(self, _: None) -> None:
        self._last_as_tuple(1)

    def _do_tuple2(self, _: None) -> None:
        self._last_as_tuple(2)

    def _do_tuple3(self, _: None) -> None:
        self._last_as_tuple(3)

    def _last_as_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise FormatError("a tuple lacks items")
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def _do_append(self, _: None) -> None:
        item = self._stack.pop()
        _extend(self._stack[-1], [item])

    def _do_appends(self, _: None) -> None:
        items = self._marked()
        _extend(self._stack[-1], items)

    def _do_setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        _fill(self._stack[-1], [key, value])

    def _do_setitems(self, _: None) -> None:
        items = self._marked()
        _fill(self._stack[-1], items)

    _do_empty_set = _do_empty_list  # a set would hash its items
    _do_additems = _do_appends
    _do_frozenset = _do_list

    # names, objects and calls

    def _do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_name(module, name))

    def _do_stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FormatError("a name that is no text")
        self._stack.append(_name(module, name))

    def _do_reduce(self, _: None) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        self._stack.append(_call(callee, arguments))

    def _do_newobj(self, _: None) -> None:
        _, callee = self._stack.pop(), self._stack.pop()
        self._stack.append(_instance(callee))

    def _do_newobj_ex(self, _: None) -> None:
        self._stack.pop()
        self._do_newobj(None)

    def _do_obj(self, _: None) -> None:
        callee, *arguments = self._marked()
        self._stack.append(_call(callee, tuple(arguments)))

    def _do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_call(_name(module, name), tuple(self._marked())))

    def _do_build(self, _: None) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Instance):
            for part in state if isinstance(state, tuple) else (state,):
                if isinstance(part, dict):
                    target.state.update({k: v for k, v in part.items() if isinstance(k, str)})
        elif not isinstance(target, (dict, Opaque, StoredTensor)):
            raise CodeError(f"the state of {_describe(target)}")

    def _do_binpersid(self, _: None) -> None:
        identity = self._stack.pop()
        stored = _storage(identity, self._archive) if self._archive else Opaque(_STORAGE)
        self._stack.append(stored)

    def _do_ext1(self, code: int) -> NoReturn:
        raise CodeError(f"extension {code}")

    _do_ext2 = _do_ext4 = _do_ext1


_LITERALS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8"),
            *("SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
        ),
        lambda argument: argument,
    ),
}


def _name(module: str, name: str) -> Name:
    """Return the reference, unless nothing good can come of it. Raises: CodeError."""
    module = _RENAMED.get(module, module)
    package = module.partition(".")[0]
    harmless = module == "builtins" and name in _PLAIN_BUILTINS
    if package in _DANGEROUS and not harmless:
        raise CodeError(f"{module}.{name}")
    return Name(module, name)


def _call(callee: object, arguments: object) -> object:
    if not isinstance(callee, Name):
        raise CodeError(_describe(callee))
    if not isinstance(arguments, tuple):
        raise FormatError(f"{callee} is called with something else than arguments")
    if str(callee) in _UNUSED:
        return Opaque(callee)
    if str(callee) not in _CALLS:
        raise CodeError(str(callee))
    return _CALLS[str(callee)](list(arguments))


def _instance(callee: object) -> Any:  # noqa: ANN401 - a record or a container
    """Return an object of the class `callee`, made without running its constructor."""
    if not isinstance(callee, Name):
        raise CodeError(_describe(callee))
    return {} if str(callee) == "collections.OrderedDict" else Instance(callee)


def _describe(value: object) -> str:
    if isinstance(value, (Instance, Opaque)):
        return f"an object of {value.of}"
    return str(value) if isinstance(value, Name) else f"a {type(value).__name__}"


def _storage(identity: object, archive: Archive) -> StoredData:
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


def _extend(target: object, items: Stack) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, (Opaque, Instance)):  # a list's subclass keeps no items
        raise FormatError(f"items are added to {_describe(target)}")


def _fill(target: object, items: Stack) -> None:
    if not isinstance(target, dict):
        if isinstance(target, (Opaque, Instance)):  # a dictionary's subclass keeps no entries
            return
        raise FormatError(f"entries are added to {_describe(target)}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        _set(target, key, value)


def _set(target: dict[Any, Any], key: object, value: object) -> None:
    """Add an entry; a key that is not plain is dropped: hashing a deep one takes for ever."""
    if isinstance(key, _KEYS):
        target[key] = value
