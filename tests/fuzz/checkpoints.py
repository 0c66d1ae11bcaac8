"""Hostile checkpoints: what asks for too much, what wants to run, and honest files with damage."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import zipfile
from functools import partial
from typing import TYPE_CHECKING, Any

from . import hdf5_files
from . import pickle_bombs as bombs
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_FLOATS = struct.pack("<6f", *range(6))
_MAGIC = 0x1950A86A20F9469CFC6C
_CANARY = "touch canary"
_SMALL = 1_000_000
MUTANTS = 12
"""Of each honest file."""


def cases(_: Path, seed: int = 0) -> Iterator[Case]:
    """Yield a command line over each hostile file; a longer run takes all of `checkpoints`."""
    for name, content in checkpoints(seed, mutants=3, thorough=seed > 0):
        write = partial(_command, content=content)
        yield Case(f"checkpoint: {name}", write, small=len(content) < _SMALL)


def _command(folder: Path, _: Path, *, content: bytes) -> list[str]:
    (folder / "last.ckpt").write_bytes(content)
    return ["export", "last.ckpt", "-o", "out.onnx"]


def checkpoints(
    seed: int = 0, *, mutants: int = MUTANTS, thorough: bool = True
) -> Iterator[tuple[str, bytes]]:
    """Yield name, content of each hostile file; nearly all are below 1 MB, the same for one seed.

    None may run anything ("canary" would appear in the working folder), hang, take 2 GB, or end in
    anything but one message or, where it is harmless, weights.
    """
    for i, (name, body) in enumerate([*bombs.bodies(), *_attacks()]):
        every = thorough and len(body) < 4_000
        for j, (container, wrap) in enumerate(_CONTAINERS.items()):
            if every or j == i % len(_CONTAINERS) or (thorough and container == "zip"):
                yield f"{container}: {name}", wrap(body)
    yield from _zips()
    yield from _safetensors()
    yield from _hdf5()
    yield from _tars()
    yield from _streams()
    rng = random.Random(seed)
    for name, content in honest().items():
        for number in range(mutants):
            yield f"{name}, mutant {number}", mutated(content, rng)


# containers


def zipped(body: bytes, **storages: bytes) -> bytes:
    """Return an archive as torch.save writes it, around a pickle."""
    return _zip(
        {"data.pkl": body, **{f"data/{k[1:]}": v for k, v in (storages or {"_0": _FLOATS}).items()}}
    )


def _zip(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/byteorder", "little")
    return buffer.getvalue()


def stream(body: bytes, *, keys: list[str] | None = None, numbers: bytes | None = None) -> bytes:
    """Return a file in the format before torch 1.6 around a pickle."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(part, 2) for part in (_MAGIC, 1001, machine)]
    listed = pickle.dumps(["0"] if keys is None else keys, 2)
    behind = struct.pack("<q", 6) + _FLOATS if numbers is None else numbers
    return b"".join((*parts, body, listed, behind))


def tarred(body: bytes, **members: bytes) -> bytes:
    """Return a tar archive as torch wrote it until 0.1.9, around a pickle."""
    storages = pickle.dumps(1, 2) + b"\x80\x02(K\x07X\x03\0\0\0cpuctorch\nFloatStorage\nt."
    storages += struct.pack("<q", 6) + _FLOATS + pickle.dumps([], 2)
    tensors = pickle.dumps(1, 2) + b"\x80\x02(K\x08K\x07ctorch\nFloatTensor\nt."
    tensors += struct.pack("<i4xqqq", 1, 6, 1, 0)
    files = {"sys_info": pickle.dumps({}, 2), "pickle": body, "storages": storages}
    return _tar({**files, "tensors": tensors, **members})


def _tar(files: dict[str, bytes]) -> bytes:
    found = b""
    for name, content in files.items():
        head = bytearray(512)
        head[: len(name)] = name.encode()
        head[124:135] = b"%011o" % len(content)
        head[156:157] = b"0"
        head[257:265] = b"ustar\x0000"
        head[148:156] = b" " * 8
        head[148:155] = b"%06o\0" % sum(head)
        found += bytes(head) + content + bytes(-len(content) % 512)
    return found + bytes(1024)


_CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "zip": zipped,
    "pickle": bytes,
    "old": stream,
    "tar": tarred,
    "deflated": lambda body: _zip({"data.pkl": body, "data/0": _FLOATS}, zipfile.ZIP_DEFLATED),
}


# what wants to run


def _attacks() -> Iterator[tuple[str, bytes]]:
    command = bombs.text(_CANARY) + b"\x85"
    for function in (
        *("posix.system", "os.system", "nt.system", "subprocess.Popen", "subprocess.check_output"),
        *(
            "builtins.eval",
            "builtins.exec",
            "__builtin__.eval",
            "builtins.__import__",
            "builtins.open",
        ),
        *("builtins.compile", "runpy.run_path", "importlib.import_module", "pty.spawn", "io.open"),
        *(
            "torch.load",
            "torch.hub.load",
            "torch.serialization.load",
            "torch.utils.cpp_extension.load",
        ),
        *("numpy.load", "numpy.f2py.compile", "pickle.loads", "_pickle.loads", "marshal.loads"),
        *("shutil.rmtree", "webbrowser.open", "ctypes.CDLL", "timeit.timeit", "code.interact"),
        *("pip.main", "socket.create_connection", "urllib.request.urlopen", "types.CodeType"),
        *("torch.os.system", "numpy.os.system", "functools.reduce", "operator.methodcaller"),
        *(
            "torch.jit.load",
            "torch.classes.load_library",
            "torch.ops.load_library",
            "cloudpickle.loads",
        ),
        *(
            "my.package.run",
            "functools.partial",
            "enum.Enum",
            "pathlib.PosixPath",
            "logging.getLogger",
        ),
    ):
        yield f"calls {function}", bombs.state(bombs.calls(function, command))
    home = b"cposix\nsystem\n"
    word = bombs.text(_CANARY)
    for name, body in {
        "INST": b"(" + word + b"iposix\nsystem\n",
        "OBJ": b"(" + home + word + b"o",
        "NEWOBJ": home + word + b"\x85\x81",
        "NEWOBJ_EX": home + word + b"\x85}\x92",
        "STACK_GLOBAL": bombs.text("posix") + bombs.text("system") + b"\x93" + word + b"\x85R",
        "extension": b"\x82\x05",
        "BUILD on a class": b"cfar\nNet\n}" + bombs.text("__setstate__") + home + b"sb",
        "BUILD on a function": b"ctorch._utils\n_rebuild_tensor_v2\n}" + bombs.text("a") + b"Nsb",
        "a call of a result": b"ccollections\nOrderedDict\n)R)R",
        "a call of a partial": b"cfunctools\npartial\ncfar\nrun\n\x85R)R",
        "getattr of a class": b"c__builtin__\ngetattr\ncfar\nNet\n"
        + bombs.text("__init__")
        + b"\x86R)R",
        "getattr of a text": b"c__builtin__\ngetattr\n" + word + bombs.text("format") + b"\x86R)R",
        "reconstructor": b"ccopyreg\n_reconstructor\n" + home + b"c__builtin__\nobject\nN\x87R",
        "a type of a type": b"c__builtin__\ntype\n" + bombs.text("A") + b")}\x87R)R",
        "__reduce__ in a state": b"cfar\nNet\n)\x81}"
        + bombs.text("__reduce_ex__")
        + b"cfar\nrun\nsb",
        "from a type": b"ctorch._tensor\n_rebuild_from_type_v2\n("
        + home
        + b"cfar\nA\n"
        + word
        + b"\x85NtR",
    }.items():
        yield name, bombs.state(body)


# containers that lie


def _zips() -> Iterator[tuple[str, bytes]]:
    honest_body = bombs.state(b"N")
    plain = zipped(honest_body)
    zeros = bytes(1 << 20)
    yield "zip: a bomb of 900 MB", _bomb(honest_body, 900)
    yield "zip: a bomb of 200 MB", _bomb(honest_body, 200)
    yield "zip: LZMA that asks for 4 GB", _lzma(honest_body)
    yield (
        "zip: the size in the directory is a lie",
        _changed_entry(
            _zip({"data.pkl": honest_body, "data/0": zeros * 200}, zipfile.ZIP_DEFLATED), 24, 24
        ),
    )
    yield "zip: the packed size is a lie", _changed_entry(plain, 20, 0x7FFFFFFF)
    yield "zip: an offset is a lie", _changed_entry(plain, 42, 0x7FFFFFF0)
    yield "zip: encrypted", _changed_entry(plain, 8, 1)
    yield "zip: an unknown method", _changed_entry(plain, 10, 77)
    yield "zip: no pickle", _zip({"other": b""})
    yield "zip: two pickles", _zip({"a/data.pkl": honest_body, "b/data.pkl": honest_body})
    yield "zip: TorchScript", _zip({"data.pkl": honest_body, "constants.pkl": honest_body})
    yield "zip: big-endian", plain.replace(b"little", b"biglie")
    yield (
        "zip: 8,000 entries",
        _zip({f"data/{i}": b"" for i in range(6_000)} | {"data.pkl": honest_body}),
    )
    yield "zip: names that climb", _zip({"../../data.pkl": honest_body})
    yield "zip: within a zip", _zip({"data.pkl": plain})
    yield "zip: nothing", b"PK\x05\x06" + bytes(18)
    two = (
        b"\x80\x02}("
        + b"".join(
            bombs.text(f"{i}")
            + bombs.tensor((1,), (1,))
            .replace(b"X\x01\0\0\x000", bombs.text(str(i % 2)))
            .replace(b"K\x06", bombs.number(25 << 20))
            for i in range(3_000)
        )
        + b"u."
    )
    big = bytes(100 << 20)
    files = {"data.pkl": two, "data/0": big, "data/1": big}
    yield (
        "zip: tensors that alternate between two large storages",
        _zip(files, zipfile.ZIP_DEFLATED),
    )


def _bomb(body: bytes, megabytes: int) -> bytes:
    return _zip({"data.pkl": body, "data/0": bytes(megabytes << 20)}, zipfile.ZIP_DEFLATED)


def _lzma(body: bytes) -> bytes:
    packed = bytearray(_zip({"data.pkl": body}, zipfile.ZIP_LZMA))
    start = packed.index(b"archive/data.pkl") + len(b"archive/data.pkl")
    packed[start + 5 : start + 9] = b"\xff\xff\xff\xff"  # the dictionary's size
    return bytes(packed)


def _changed_entry(content: bytes, at: int, value: int) -> bytes:
    """Return an archive with a field of its second entry, data/0, in the directory changed."""
    changed = bytearray(content)
    entry = changed.index(b"PK\x01\x02", changed.index(b"PK\x01\x02") + 4)
    width = 4 if at >= 16 else 2
    changed[entry + at : entry + at + width] = value.to_bytes(width, "little")
    return bytes(changed)


def _hdf5() -> Iterator[tuple[str, bytes]]:
    from numpy import ones, zeros

    deep = hdf5_files.Writer()
    at = deep.array(zeros(3, "float32"))
    for _ in range(60):
        at = deep.group({"a": at, "b": at})
    yield "hdf5: 2^60 paths", deep.finish(at)
    many = hdf5_files.Writer()
    one = many.array(ones(1 << 18, "float32"))
    yield "hdf5: 900 names of 1 MB", many.finish(many.group({f"w{i}": one for i in range(900)}))
    whole = hdf5_files.content({"conv1/conv1/kernel:0": ones((3, 3, 3, 8), "float32")})
    for mark in (b"TREE", b"HEAP", b"SNOD"):
        changed = bytearray(whole)
        start = changed.index(mark)
        changed[start + 4 : start + 32] = b"\xff" * 28
        yield f"hdf5: a {mark.decode()} of ones", bytes(changed)
    yield "hdf5: a signature alone", whole[:8]


def _safetensors() -> Iterator[tuple[str, bytes]]:
    def file(header: object, numbers: bytes = _FLOATS, length: int | None = None) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + numbers

    one: dict[str, Any] = {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}
    yield "safetensors: a header of 2^40", file({"w": one}, length=1 << 40)
    yield "safetensors: a header of 2^63", file({"w": one}, length=1 << 63)
    yield "safetensors: 450,000 brackets", file(b'{"w":' + b"[" * 450_000 + b"]" * 450_000 + b"}")
    yield (
        "safetensors: 100,000 objects",
        file(b'{"w":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001),
    )
    yield "safetensors: 900,000 digits", file(b'{"w":{"shape":[' + b"9" * 900_000 + b"]}}")
    yield "safetensors: 300,000 lists", file(b'{"w":[' + b"[]," * 300_000 + b"[]]}")
    yield "safetensors: no JSON", file(b"{nonsense")
    yield (
        "safetensors: NaN",
        file(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,Infinity]}}'),
    )
    yield "safetensors: a name twice", file(b'{"w":1,"w":2}')
    changes: dict[str, dict[str, Any]] = {
        "a huge shape": {"shape": [1 << 62, 1 << 62]},
        "an empty shape of 2^62": {"shape": [0, 1 << 62]},
        "a negative shape": {"shape": [-6]},
        "a text for a shape": {"shape": "6"},
        "an unknown type": {"dtype": "F7"},
        "eighths": {"dtype": "F8_E4M3"},
        "offsets reversed": {"data_offsets": [24, 0]},
        "offsets outside": {"data_offsets": [0, 1 << 40]},
        "no offsets": {"data_offsets": None},
        "99 sides": {"shape": [1] * 99},
        "a list for a type": {"dtype": []},
    }
    for name, change in changes.items():
        yield f"safetensors: {name}", file({"w": {**one, **change}})
    yield "safetensors: 5,000 that overlap", file({f"w{i}": one for i in range(5_000)})
    yield "safetensors: a hole", file({"w": one}, _FLOATS + bytes(8))
    yield "safetensors: metadata of lists", file({"w": one, "__metadata__": [[[[]]]]})
    yield "safetensors: a list", struct.pack("<Q", 2) + b"{}" + b"x" * 100


def _tars() -> Iterator[tuple[str, bytes]]:
    body = b"\x80\x02}" + bombs.text("w") + bombs.text("8") + b"Qs."
    yield "tar: honest", tarred(body)
    count = pickle.dumps(1 << 60, 2)
    for member in ("storages", "tensors"):
        yield f"tar: 2^60 {member}", tarred(body, **{member: count + b"\x80\x02N." * 9})
        yield f"tar: no {member}", tarred(body, **{member: b""})
    yield "tar: another archive", _tar({"readme": b"hello"})
    yield (
        "tar: a size that is no number",
        tarred(body).replace(b"%011o" % len(body), b"zzzzzzzzzzz"),
    )
    yield "tar: a size of 8 GB", tarred(body).replace(b"%011o" % len(body), b"77777777777")
    yield "tar: a negative size", tarred(body).replace(b"%011o" % len(body), b"-0000000001")
    yield "tar: a sparse file of 8 GB", _sparse()
    yield "tar: cut off", tarred(body)[:1_300]
    yield "tar: 1,900 files", _tar({f"f{i}": b"" for i in range(1_900)})


def _sparse() -> bytes:
    head = bytearray(512)
    head[:6], head[156:157], head[257:265] = b"pickle", b"S", b"ustar  \0"
    head[124:135], head[483:494] = b"%011o" % 0, b"77777777777"
    return bytes(head) + tarred(b"N.")


def _streams() -> Iterator[tuple[str, bytes]]:
    body = bombs.state(b"N")
    for name, count in (("negative", -1), ("of 2^62", 1 << 62), ("of 2^40", 1 << 40)):
        yield f"old: a storage {name}", stream(body, numbers=struct.pack("<q", count) + _FLOATS)
    yield "old: no storages", stream(body, keys=[])
    yield "old: a storage twice", stream(body, keys=["0", "0"])
    yield "old: an unknown storage", stream(body, keys=["0", "1"])
    yield "old: 60,000 storages", stream(body, keys=[str(i) for i in range(60_000)])
    yield "old: only numbers", stream(body)[: stream(body).index(body)]
    yield "old: the magic number often", pickle.dumps(_MAGIC, 2) * 9_000
    two = bombs.STORAGE.replace(b"FloatStorage", b"DoubleStorage")
    yield (
        "old: a storage of two types",
        stream(bombs.state(bombs.tensor((2,), (1,)).replace(bombs.STORAGE, two))),
    )
    for name, view in {"negative": (-1, -1), "far": (1 << 62, 1 << 62)}.items():
        numbers = bombs.text("v") + bombs.number(view[0]) + bombs.number(view[1]) + b"\x87tQ"
        storage = bombs.STORAGE.replace(b"tQ", numbers)
        yield (
            f"old: a {name} view",
            stream(bombs.state(bombs.tensor((2,), (1,)).replace(bombs.STORAGE, storage))),
        )


# honest files, and damage


def honest() -> dict[str, bytes]:
    """Return a whole file of each kind, small."""
    import numpy as np
    import torch
    from safetensors.torch import save
    from torch import nn

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    state = network.state_dict()
    arrays = {k: v.numpy() for k, v in state.items()}
    wrapped = {
        "model": state,
        "epoch": np.float64(3),
        "names": ["a", "b"],
        "optimizer": {"state": {0: state}},
    }
    old = {"_use_new_zipfile_serialization": False}
    return {
        "archive": _saved(wrapped),
        "whole module": _saved(network),
        "old file": _saved(wrapped, **old),
        "safetensors": save(state),
        "arrays": pickle.dumps({"model": arrays, "__author__": "x"}, 2),
        "arrays, protocol 5": pickle.dumps({"model": arrays}, 5),
        "arrays, protocol 0": pickle.dumps({"model": arrays}, 0),
        "plain pickle of tensors": pickle.dumps(state),
        "Keras file": hdf5_files.content({f"{k}/{k}/kernel:0": v for k, v in arrays.items()}),
        "tar": tarred(b"\x80\x02}" + bombs.text("w") + bombs.text("8") + b"Qs."),
        **{f"names of {family}": _saved(_named(names)) for family, names in _LAYOUTS.items()},
    }


_LAYOUTS = {
    "MPViT": (
        *("stem.0.conv", "patch_embed_stages.0.patch_embeds.0.patch_conv.pwconv", "cls_head.cls"),
        "mhca_stages.0.mhca_blks.0.cpe.proj",
        "mhca_stages.0.mhca_blks.0.MHCA_layers.0.factoratt_crpe.crpe.conv_list.0",
    ),
    "PointRend": (
        *("proposal_generator.rpn_head.conv", "proposal_generator.rpn_head.objectness_logits"),
        *("roi_heads.box_predictor.cls_score", "backbone.bottom_up.res2.0.conv2"),
        *("roi_heads.mask_coarse_head.coarse_mask_fc1", "roi_heads.mask_point_head.predictor"),
    ),
}
"""Family -> layers by which its checkpoints are known."""


def _named(layers: tuple[str, ...]) -> dict[str, Any]:
    import torch

    return {f"{layer}.weight": torch.zeros(2, 3, 1, 1) for layer in layers}


def _saved(value: object, **options: bool) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with one kind of damage."""
    changed = bytearray(content)
    place = rng.randrange(len(changed))
    match rng.randrange(6):
        case 0:
            del changed[place:]
        case 1:
            for _ in range(rng.randrange(1, 9)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        case 2:
            del changed[place : place + rng.randrange(1, 40)]
        case 3:
            other = rng.randrange(len(changed))
            changed[place:place] = changed[other : other + rng.randrange(1, 400)]
        case 4:
            changed[place:place] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 9)))
        case _:
            changed[place] = rng.choice(b"()]}tabcR\x81\x85\x86\x93\x94ho0210uesdlQPNIK")
    return bytes(changed)
