"""Reads a pickle without running it: classes become names, calls and objects become records.

Python's own unpickler imports whatever a pickle names and calls it. This reader goes through the
same instructions, yet its stack only ever holds numbers, strings, lists, dictionaries and the
records of `_records.py`. Nothing is imported, called, hashed beyond plain keys, or assigned to;
so there is nothing that a hostile pickle could reach.
"""

from __future__ import annotations

import codecs
import pickletools
import warnings
from typing import IO, TYPE_CHECKING, Any, NoReturn

from deploykit.networks.checkpoint import _bounds, _calls
from deploykit.networks.checkpoint import _records as records
from deploykit.networks.checkpoint._arrays import StoredArray
from deploykit.networks.checkpoint._records import CodeError, FormatError, Name, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Stack = list[Any]  # what a pickle holds has no type until it is looked at
    Persistent = Callable[[Any], Any]
    Call = Callable[[tuple[Any, ...]], Any]

_MAX_INT = 1024  # bytes; numpy's generators hold numbers of 16
_MAX_MEMO = 1 << 32


def nothing_outside(_: object) -> NoReturn:
    """Refuse what a pickle refers to outside of itself. Raises: FormatError."""
    raise FormatError("it refers to data outside of the file")


def read(
    content: IO[bytes],
    size: int,
    *,
    persistent: Persistent = nothing_outside,
    calls: Mapping[str, Call] = _calls.CALLS,
) -> Any:  # noqa: ANN401 - any object
    """Return what the next pickle in `content` describes: plain values and records.

    size: the bytes of `content`. persistent: returns what the data is that the pickle refers to
    outside of itself. calls: what stands for the results of calls, by name. Raises: CodeError with
    the name of what it wants to run; FormatError; CheckpointError for a tensor outside of its data.
    """
    machine = _Machine(persistent, _calls.Caller(calls, size))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in texts of Python 2
            return machine.run(content)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _text(content: IO[bytes]) -> str:
    """Return the text of a STRING instruction, whose bytes are Latin-1 as Python 2 wrote them."""
    line = content.readline().rstrip(b"\r\n").strip()
    if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
        raise ValueError("a text without quotes")
    return codecs.escape_decode(line[1:-1])[0].decode("latin-1")


_READERS = {"STRING": _text}
# One byte -> name of the instruction, what reads its argument.
_INSTRUCTIONS: dict[bytes, tuple[str, Callable[[IO[bytes]], Any] | None]] = {
    opcode.code.encode("latin-1"): (
        opcode.name,
        _READERS.get(opcode.name, opcode.arg.reader) if opcode.arg else None,
    )
    for opcode in pickletools.opcodes
}


class _Machine:
    """The stack, the stacks below it, and the memo of a pickle."""

    def __init__(self, persistent: Persistent, call: _calls.Caller) -> None:
        self._persistent, self._call = persistent, call
        self._stack: Stack = []
        self._below: list[Stack] = []
        self._memo: dict[int, Any] = {}

    def run(self, content: IO[bytes]) -> object:
        """Return the object that is left when the pickle stops."""
        steps: dict[str, Callable[[Any], None]] = {}
        for _ in range(_bounds.INSTRUCTIONS):
            code = content.read(1)
            if code not in _INSTRUCTIONS:
                raise FormatError("it ends before its end" if not code else "it is no pickle")
            name, reader = _INSTRUCTIONS[code]
            argument = reader(content) if reader else None
            if name == "STOP":
                return self._stack.pop()
            if name in _LITERALS:
                self._stack.append(_LITERALS[name](argument))
                continue
            step = steps.get(name) or getattr(self, f"_do_{name.lower()}", None)
            if step is None:
                raise FormatError(f"instruction {name} has no place in a checkpoint")
            steps[name] = step
            step(argument)
        raise FormatError(f"it has more than {_bounds.INSTRUCTIONS} instructions")

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
        if not 0 <= index < _MAX_MEMO:
            raise FormatError("a place in the memo that no pickle uses")
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
        self._stack.append(self._call(callee, arguments))

    def _do_newobj(self, _: None) -> None:
        arguments, callee = self._stack.pop(), self._stack.pop()
        self._stack.append(_calls.instance(callee, arguments))

    def _do_newobj_ex(self, _: None) -> None:
        self._stack.pop()
        self._do_newobj(None)

    def _do_obj(self, _: None) -> None:
        callee, *arguments = self._marked()
        self._stack.append(self._call(callee, tuple(arguments)))

    def _do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        callee = records.name(module, name)
        self._stack.append(self._call(callee, tuple(self._marked())))

    def _do_build(self, _: None) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, StoredArray):
            target.state = state
        else:
            records.build(target, state)

    def _do_binpersid(self, _: None) -> None:
        self._stack.append(self._persistent(self._stack.pop()))

    def _do_persid(self, identity: str) -> None:
        self._stack.append(self._persistent(identity))

    def _do_ext1(self, code: int) -> NoReturn:
        raise CodeError(f"extension {code}")

    _do_ext2 = _do_ext4 = _do_ext1


def _short(number: int) -> int | Record:
    """Return the number; one of thousands of digits could not even be printed."""
    if number.bit_length() > 8 * _MAX_INT:
        return Record(Name("builtins", "int"))
    return number


_LITERALS: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_TUPLE": lambda _: (),
    "LONG4": _short,
    "LONG": _short,
    **dict.fromkeys(
        (
            *("INT", "BININT", "BININT1", "BININT2", "LONG1", "FLOAT", "BINFLOAT"),
            *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "BINUNICODE8"),
            *("SHORT_BINUNICODE", "BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
        ),
        lambda argument: argument,
    ),
}
