"""Reads a pickle without running it: classes become names, calls are looked up in one table.

Python's own unpickler imports whatever a pickle names and calls it. This reader goes through the
same instructions, yet its stack only ever holds numbers, strings, lists, dictionaries and the
records of `_records.py`. Nothing is imported, called, hashed beyond plain keys, or assigned to;
so there is nothing that a hostile pickle could reach.
"""

from __future__ import annotations

import pickletools
from typing import IO, TYPE_CHECKING, Any, NoReturn

from deploykit.networks.checkpoint import _records as records
from deploykit.networks.checkpoint._records import CodeError, FormatError, Instance, Name, Opaque
from deploykit.networks.checkpoint._tensors import StoredTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.networks.checkpoint._archive import Archive

    Stack = list[Any]  # what a pickle holds has no type until it is looked at

_STORAGE = Name("torch", "Storage")


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
        records.fill(found, items)
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
        records.extend(self._stack[-1], [item])

    def _do_appends(self, _: None) -> None:
        items = self._marked()
        records.extend(self._stack[-1], items)

    def _do_setitem(self, _: None) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        records.fill(self._stack[-1], [key, value])

    def _do_setitems(self, _: None) -> None:
        items = self._marked()
        records.fill(self._stack[-1], items)

    _do_empty_set = _do_empty_list  # a set would hash its items
    _do_additems = _do_appends
    _do_frozenset = _do_list

    # names, objects and calls

    def _do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(records.name(module, name))

    def _do_stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise FormatError("a name that is no text")
        self._stack.append(records.name(module, name))

    def _do_reduce(self, _: None) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        self._stack.append(records.call(callee, arguments))

    def _do_newobj(self, _: None) -> None:
        _, callee = self._stack.pop(), self._stack.pop()
        self._stack.append(records.instance(callee))

    def _do_newobj_ex(self, _: None) -> None:
        self._stack.pop()
        self._do_newobj(None)

    def _do_obj(self, _: None) -> None:
        callee, *arguments = self._marked()
        self._stack.append(records.call(callee, tuple(arguments)))

    def _do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(records.call(records.name(module, name), tuple(self._marked())))

    def _do_build(self, _: None) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Instance):
            part = state[0] if isinstance(state, tuple) and state else state
            if isinstance(part, dict):  # taken as it is: copies could fill the memory
                target.state = part
        elif not isinstance(target, (dict, Opaque, StoredTensor)):
            raise CodeError(f"the state of {records.describe(target)}")

    def _do_binpersid(self, _: None) -> None:
        identity = self._stack.pop()
        if not self._archive and isinstance(identity, tuple) and identity[:1] == ("module",):
            self._stack.append(identity[1])  # a class, with its source code
            return
        stored = records.storage(identity, self._archive) if self._archive else Opaque(_STORAGE)
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
