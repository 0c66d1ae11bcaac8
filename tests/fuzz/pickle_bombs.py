"""Pickles that are small and ask for much: each is the body of a checkpoint in some container.

All are below 1 MB; none was ever a real file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_MANY = 40_000
_PRIME = (1 << 61) - 1  # integers that are multiples of it share one hash in CPython
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
"""Refers to six float32 numbers called "0"."""


def text(word: str) -> bytes:
    """Return the instruction that puts a text on the stack."""
    data = word.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    """Return the instruction that puts an integer on the stack."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def tensor(size: tuple[int, ...], stride: tuple[int, ...], *, offset: int = 0) -> bytes:
    """Return a tensor that looks into `STORAGE`."""
    sides = b"".join(b"(" + b"".join(map(number, each)) + b"t" for each in (size, stride))
    call = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return call + b"(" + STORAGE + number(offset) + sides + b"\x89}tR"


def state(body: bytes) -> bytes:
    """Return the pickle of {"model": {"w": a tensor}, "extra": what `body` leaves}."""
    weights = b"}" + text("w") + tensor((2,), (1,)) + b"s"
    return b"\x80\x02}(" + text("model") + weights + text("extra") + body + b"u."


def module(name: str, attributes: bytes) -> bytes:
    """Return an object of a class whose attributes are what `attributes` leaves."""
    return b"cfar.away\n" + name.encode() + b"\n)\x81" + attributes + b"b"


def calls(function: str, arguments: bytes) -> bytes:
    """Return a call of `package.function` with the tuple that `arguments` leaves."""
    home, _, name = function.rpartition(".")
    return b"c" + home.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R"


def bodies() -> Iterator[tuple[str, bytes]]:
    """Yield name, whole pickle."""
    yield from ((name, state(body)) for name, body in _extras())
    yield from _raw()
    yield from _weights()
    yield from _modules()


def _extras() -> Iterator[tuple[str, bytes]]:
    """Yield what lies beside honest weights."""
    huge = number(8_500_000_000)
    yield "bytearray of 8.5 GB", calls("builtins.bytearray", huge + b"\x85")
    yield "bytes of 8.5 GB", calls("__builtin__.bytes", huge + b"\x85")
    yield (
        "range as a list",
        calls("builtins.list", calls("builtins.range", huge + b"\x85") + b"\x85"),
    )
    yield "text times a number", calls("operator.mul", text("a") + huge + b"\x86")
    yield "list times a number", calls("_operator.imul", b"]" + huge + b"\x86")
    yield "zeros of numpy", calls("numpy.zeros", huge + b"\x85")
    yield "zeros of torch", calls("torch.zeros", huge + b"\x85")
    yield "power", calls("builtins.int.__pow__", number(9) + huge + b"\x86")
    yield "tuples that double", b")" + b"2\x86" * 60
    yield "tuples that double, as a key", b"}" + b")" + b"2\x86" * 60 + b"Ns"
    yield "tuples 100,000 deep", b")" + b"\x85" * 100_000
    yield "lists 100,000 deep", b"]" * 100_000 + b"a" * 99_999
    yield "dictionaries 50,000 deep", (b"}" + text("a")) * 50_000 + b"N" + b"s" * 50_000
    yield (
        "lists that double",
        b"]q\0"
        + b"".join(
            b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
        ),
    )
    yield (
        "lists of ten of ten",
        b"]q\0"
        + b"".join(b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(30)),
    )
    yield "a list that contains itself", b"]q\0h\0a"
    yield "a dictionary that contains itself", b"}q\0" + text("a") + b"h\0s"
    yield "a large dictionary copied often", _copied(b"}q\0(" + _entries(_MANY // 2) + b"u")
    yield (
        "many pairs made a dictionary often",
        _copied(
            b"]q\0("
            + b"".join(b"M" + struct.pack("<H", i) + b"N\x86" for i in range(_MANY // 2))
            + b"e"
        ),
    )
    yield (
        "keys of one hash",
        b"}("
        + b"".join(
            b"\x8a\x0a" + (i * _PRIME).to_bytes(10, "little") + b"N" for i in range(1, 70_000)
        )
        + b"u",
    )
    yield (
        "places in the memo of one hash",
        b"N" + b"".join(b"p%d\n" % (i * _PRIME) for i in range(1, _MANY)),
    )
    yield "a place in the memo far away", b"Np99999999999999999999\n"
    yield "an integer of 900,000 bytes", number(1 << 7_200_000)
    yield "an integer of 4,000 digits", b"L" + b"9" * 4_000 + b"L\n"
    yield "an integer of 900,000 digits", b"L" + b"9" * 900_000 + b"L\n"
    yield "a text of escapes", b"S'" + b"\\x00" * 200_000 + b"'\n"
    yield "a text of wide letters", text("\U0001f600" + "a" * 800_000)
    yield (
        "a scalar of a long text, often",
        text("a" * 300_000)
        + b"q\0"
        + (
            b"0"
            + calls(
                "numpy.core.multiarray.scalar",
                calls("numpy.dtype", text("f8") + b"\x85") + b"h\0\x86",
            )
        )
        * 8_000,
    )
    yield (
        "an array that says 2^40",
        calls("numpy.core.multiarray._reconstruct", b")")
        + (
            b"(K\x01"
            + number(1 << 40)
            + b"\x85"
            + calls("numpy.dtype", text("f4") + b"\x85")
            + b"\x89"
            + text("abcd")
            + b"tb"
        ),
    )
    yield (
        "a storage within, 20,000 times",
        text("")
        + b"B"
        + struct.pack("<I", 300_000)
        + bytes(300_000)
        + b"q\0"
        + (b"0" + calls("torch.storage._load_from_bytes", b"h\0\x85")) * 9_000,
    )
    yield (
        "an unknown object with a million marks",
        module("A", b"}" + text("x") + b"(" * 900_000 + b"1" * 0 + b"Ns"),
    )


def _copied(container: bytes) -> bytes:
    function = b"ccollections\nOrderedDict\nq\x01"
    return container + function + b"0" + b"0h\x01h\0\x85R" * 60_000


def _entries(count: int) -> bytes:
    return b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(count))


def _raw() -> Iterator[tuple[str, bytes]]:
    """Yield pickles that are nothing but weight."""
    for name, instruction in {
        "lists": b"]",
        "dictionaries": b"}",
        "marks": b"(",
        "numbers": b"M\0\x10",
        "floats": b"G" + bytes(8),
        "dictionaries in the memo": b"}\x94",
        "sets": b"\x8f",
        "lists of one": b"]Na",
        "dictionaries of one": b"}NNs",
        "marks and numbers": b"(N",
        "names": b"ca\nb\n",
        "objects": b"ca\nb\n)\x81",
        "texts": b"U\x02ab",
        "copies": b"]2",
    }.items():
        yield f"a million {name}", b"\x80\x04" + instruction * (990_000 // len(instruction)) + b"."
    for code, name in (
        (b"\x8e", "bytes"),
        (b"\x8d", "text"),
        (b"\x96", "bytearray"),
        (b"\x95", "frame"),
    ):
        for length in (1 << 34, 1 << 62, (1 << 64) - 1):
            yield f"{name} of {length}", b"\x80\x05" + code + struct.pack("<Q", length) + b"abc."
    yield "bytes of 4 GB", b"\x80\x03B\xff\xff\xff\xffabc."
    yield "a name of 900,000 letters", b"c" + b"a" * 900_000 + b"\nb\n."
    yield "a name that paints the terminal", b"\x80\x04\x8c\x04\x1b[2J\x8c\x01a\x93)R."


def _weights() -> Iterator[tuple[str, bytes]]:
    """Yield state dicts whose tensors lie."""
    for name, described in {
        "expanded": tensor((1 << 33,), (0,)),
        "expanded in two": tensor((1 << 20, 1 << 20), (0, 0)),
        "of 2^62": tensor((1 << 62,), (1,)),
        "of 2^70": tensor((1 << 70,), (1 << 70,)),
        "empty of 2^62": tensor((0, 1 << 62), (1, 1)),
        "of 10^2000": tensor((10**2000,), (10**2000,)),
        "of 64 sides": tensor((2,) * 64, (0,) * 64),
        "of 90 sides": tensor((1,) * 90, (1,) * 90),
        "of -1": tensor((-1,), (1,)),
        "before its data": tensor((1,), (1,), offset=-1),
        "behind its data": tensor((1,), (1,), offset=1 << 62),
    }.items():
        yield f"a tensor {name}", b"\x80\x02}" + text("w") + described + b"s."
    shared = b"\x80\x02" + tensor((6,), (1,)) + b"q\x000}("
    names = b"".join(text(f"n{i}") + b"h\0" for i in range(70_000))
    yield "70,000 names of one tensor", shared + names + b"u."
    dots = b"".join(text("a." * 40 + f"{i}.w") + b"h\0" for i in range(9_000))
    yield "names of 41 parts", shared + dots + b"u."
    yield "a name of 800,000 letters", shared + text("a" * 800_000) + b"h\0u."
    yield "names that paint the terminal", shared + text("\x1b[2J\x1b]0;x\x07\u202e") + b"h\0u."
    own = b"".join(text(f"n{i}") + tensor((6,), (1,)) for i in range(4_000))
    yield "4,000 tensors of one storage", b"\x80\x02}(" + own + b"u."
    side = b"".join(text(f"k{i}") + b"}" + text("w") + b"h\0s" for i in range(25_000))
    yield "25,000 state dicts side by side", shared + side + b"u."
    copies = b"".join(text(f"{i % 16}.{i // 16}.w") + b"h\0" for i in range(30_000))
    yield "16 networks that are copies", shared + copies + b"u."
    tree = b"".join(text(".".join(f"{i:014b}")) + b"h\0" for i in range(16_000))
    yield "copies within copies", shared + tree + b"u."
    yield (
        "class names that double",
        b"\x80\x02}("
        + text("names")
        + b"]q\0"
        + b"".join(
            b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
        )
        + text("w")
        + tensor((2,), (1,))
        + b"u.",
    )


def _modules() -> Iterator[tuple[str, bytes]]:
    """Yield pickled modules that are more than they seem."""
    weights = b"}" + text("w") + tensor((2,), (1,)) + b"s"
    yield (
        "a module within itself",
        b"\x80\x02cfar\nNet\n)\x81q\0}" + text("_modules") + b"}" + text("a") + b"h\0ssb.",
    )
    layers = b"\x80\x02" + module("Net", b"}" + text("_parameters") + weights + b"s") + b"q\0"
    for i in range(60):
        pair = b"}(" + text("a") + b"h" + bytes([i]) + text("b") + b"h" + bytes([i]) + b"u"
        layers += module("Net", b"}" + text("_modules") + pair + b"s") + b"q" + bytes([i + 1])
    yield "modules that double", layers + b"."
    deep = (b"cfar\nNet\n)\x81}" + text("_modules") + b"}" + text("a")) * 14_000
    yield "modules 14,000 deep", b"\x80\x02" + deep + b"N" + b"ssb" * 14_000 + b"."
    children = b"}(" + b"".join(text(f"c{i}") + b"h\0" for i in range(20_000)) + b"u"
    shared = b"}(" + text("_modules") + b"}" + _many_settings(25_000) + b"u"
    yield (
        "20,000 children that share 25,000 settings",
        b"\x80\x02"
        + module("Leaf", shared)
        + b"q\x000"
        + module("Net", b"}" + text("_modules") + children + b"s")
        + b".",
    )
    buffers = b"}(" + b"".join(text(f"b{i}") + b"N" for i in range(30_000)) + b"u"
    passing = b"](" + b"".join(text(f"n{i}") for i in range(30_000)) + b"e"
    both = (
        b"}("
        + text("_modules")
        + b"}"
        + text("_buffers")
        + buffers
        + text("_non_persistent_buffers_set")
        + passing
        + text("_parameters")
        + weights
        + b"u"
    )
    yield "30,000 buffers of which none is kept", b"\x80\x02" + module("Net", both) + b"."
    laughs = b"]q\0" + b"".join(
        b"](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1]) for i in range(30)
    )
    settings = b"}(" + text("_modules") + b"}" + text("_parameters") + weights + text("x") + laughs
    yield "a setting of lists of ten of ten", b"\x80\x02" + module("Net", settings + b"u") + b"."


def _many_settings(count: int) -> bytes:
    return b"".join(text(f"s{i}") + b"K\x01" for i in range(count))
