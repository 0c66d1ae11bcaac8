"""Checkpoints of every layout, and every way in which one can be broken or hostile."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import struct
import sys
import types
import warnings
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.networks import checkpoint
from deploykit.networks.checkpoint import _bounds, _pickles, _records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("grid", torch.zeros(2), persistent=False)


@pytest.fixture
def small() -> Small:
    torch.manual_seed(0)
    return Small()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert torch.equal(found[name].double(), value.double()), name


# layouts


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 3, "optimizer": {"state": {}}},
    "state_dict": lambda s: {"state_dict": s, "best": 0.5},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "net": lambda s: {"net": s},
    "nested": lambda s: {"state_dict": {"model": s}},
    "data parallel": lambda s: {"module." + k: v for k, v in s.items()},
    "compiled": lambda s: {"_orig_mod." + k: v for k, v in s.items()},
    "both": lambda s: {"model": {"module._orig_mod." + k: v for k, v in s.items()}},
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **{"module." + k: s[k] for k in s}},
    "wrapper": lambda s: {"model." + k: v for k, v in s.items()},
    "ema object": lambda s: {"ema": {"decay": 0.9, "module": s}},
    "with others": lambda s: {**s, "epoch": 4, "name": "small"},
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_every_layout_gives_the_same_state(layout: str, small: Small, path: Path) -> None:
    torch.save(WRAPPED[layout](small.state_dict()), path)
    assert_same(checkpoint.load(path).state, small.state_dict())


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_safetensors_is_recognised_by_content(name: str, small: Small, tmp_path: Path) -> None:
    save_file(small.state_dict(), tmp_path / name)
    assert_same(checkpoint.load(tmp_path / name).state, small.state_dict())


def test_the_format_before_torch_1_6_is_read(small: Small, path: Path) -> None:
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=False)
    assert_same(checkpoint.load(path).state, small.state_dict())


def test_the_moving_average_is_preferred_and_noted(small: Small, path: Path) -> None:
    average = {k: v + 1 for k, v in small.state_dict().items()}
    torch.save({"model": small.state_dict(), "ema": average}, path)
    loaded = checkpoint.load(path)
    assert_same(loaded.state, average)
    assert "'ema', the moving average, not from 'model'" in loaded.notes[0]


def test_an_absent_moving_average_is_passed_over(small: Small, path: Path) -> None:
    torch.save({"model": small.state_dict(), "ema": None}, path)
    assert_same(checkpoint.load(path).state, small.state_dict())


def test_a_prefix_that_some_names_lack_stays(path: Path) -> None:
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(state, path)
    assert list(checkpoint.load(path).state) == ["module.a", "b"]


def test_names_that_collide_without_the_prefix_are_refused(path: Path) -> None:
    torch.save({"a._orig_mod.w": torch.ones(1), "a.w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="two weights have the same name"):
        checkpoint.load(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_single_precision_and_counters_stay(dtype: torch.dtype, path: Path) -> None:
    value = torch.randn(3, 4).to(dtype)
    torch.save({"w": value, "n": torch.tensor(3), "mask": torch.tensor([True])}, path)
    state = checkpoint.load(path).state
    assert [t.dtype for t in state.values()] == [torch.float32, torch.int64, torch.bool]
    assert torch.equal(state["w"], value.float())


def test_the_hash_is_that_of_the_file(small: Small, path: Path) -> None:
    import hashlib

    torch.save(small.state_dict(), path)
    assert checkpoint.load(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "names",
    [
        {"names": ["cat", "dog"]},
        {"names": {1: "dog", 0: "cat"}},
        {"names": {"1": "dog", "0": "cat"}},
        {"meta": {"CLASSES": ("cat", "dog")}},
        {"class_to_idx": {"dog": 1, "cat": 0}},
        {"label_map": {"dog": 2, "cat": 1}},
        {"categories": [{"id": 18, "name": "dog"}, {"id": 17, "name": "cat"}]},
    ],
)
def test_class_names_are_found(names: dict[str, Any], small: Small, path: Path) -> None:
    torch.save({"model": small.state_dict(), **names}, path)
    assert checkpoint.load(path).class_names == ("cat", "dog")


def test_without_class_names_there_are_none(small: Small, path: Path) -> None:
    others: list[Any] = [[1, 2], {"train": 300, "val": 20}, [{"id": [], "name": "cat"}], [{}], {}]
    for other in others:
        torch.save({"model": small.state_dict(), "names": other}, path)
        assert checkpoint.load(path).class_names is None


# pickled modules


@pytest.fixture
def package() -> Iterator[types.ModuleType]:
    """A package that is there while the checkpoint is saved, and gone when it is loaded."""
    names = ("yolov6", "yolov6.models", "yolov6.models.yolo")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    home = sys.modules[names[-1]]
    code = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4, eps=1e-3)
        self.register_buffer("anchors", torch.zeros(3), persistent=False)
        self.act = torch.nn.functional.relu
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(Block(), nn.Identity(), nn.ReLU())
        self.register_parameter("absent", None)
        self.proj = nn.Parameter(torch.linspace(0, 16, 17), requires_grad=False)
        self.register_buffer("stride", torch.tensor([8.0, 16.0]))
        self.tied = self.backbone[0].conv
        self.names = ["cat", "dog"]
class Average:
    def __init__(self, module):
        self.ema = module
        self.updates = 4
"""
    exec(
        code.replace("import torch\n", f"__name__ = {names[-1]!r}\nimport torch\n", 1),
        home.__dict__,
    )
    yield home
    for name in names:
        sys.modules.pop(name, None)


def forget() -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "yolov6"]:
        del sys.modules[name]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickled_module_of_an_absent_package_is_read(
    package: types.ModuleType, path: Path, protocol: int
) -> None:
    model = package.Model().half()
    expected = model.state_dict()
    results = {"model": model, "ema": None, "epoch": 3, "best": np.float64(0.3)}
    torch.save(results, path, pickle_protocol=protocol)
    forget()
    loaded = checkpoint.load(path)
    assert "yolov6" not in sys.modules
    assert_same(loaded.state, expected)
    assert loaded.state["proj"].dtype == torch.float32
    assert loaded.class_names == ("cat", "dog")
    assert "yolov6.models.yolo.Model without running it" in " ".join(loaded.notes)


def test_the_average_inside_of_an_object_is_read(package: types.ModuleType, path: Path) -> None:
    model = package.Model()
    torch.save({"model": package.Model(), "ema": package.Average(model)}, path)
    forget()
    assert_same(checkpoint.load(path).state, model.state_dict())


def test_a_bare_pickled_module_is_read(package: types.ModuleType, path: Path) -> None:
    model = package.Model().bfloat16()
    torch.save(model, path)
    forget()
    assert_same(checkpoint.load(path).state, model.state_dict())


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_pickled_module_in_the_format_before_torch_1_6_is_read(
    package: types.ModuleType, path: Path
) -> None:
    model = package.Model()
    torch.save(model, path, _use_new_zipfile_serialization=False)
    forget()
    loaded = checkpoint.load(path)
    assert_same(loaded.state, model.state_dict())
    assert loaded.kind == "yolov6.models.yolo.Model"


def test_modules_share_and_view_their_tensors(path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            data = torch.arange(24.0)
            self.register_buffer("a", data.view(4, 6).t())
            self.register_buffer("b", data[5:11])
            self.register_buffer("empty", torch.zeros(0, 3))

    module = Holder()
    Holder.__qualname__ = Holder.__name__
    globals()["Holder"] = Holder
    torch.save(module, path)
    state = checkpoint.load(path).state
    assert_same(state, module.state_dict())
    assert state["a"].is_contiguous()


# hostile pickles


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def marker(path: Path) -> Path:
    return path.with_name("it-ran")


def attacks(target: Path) -> dict[str, tuple[Any, str]]:
    """Return name -> (object, the global that must be named)."""
    import builtins
    import functools
    import operator
    import shutil
    import subprocess

    command = f"touch {target}"
    return {
        "system": (Calls(os.system, command), "posix.system"),
        "popen": (Calls(subprocess.Popen, ["touch", str(target)]), "subprocess.Popen"),
        "eval": (Calls(builtins.eval, f"open({str(target)!r}, 'w')"), "builtins.eval"),
        "exec": (Calls(builtins.exec, f"open({str(target)!r}, 'w')"), "builtins.exec"),
        "open": (Calls(io.open, str(target), "w"), "io.open"),
        "getattr": (Calls(builtins.getattr, torch, "load"), "builtins.getattr"),
        "partial": (functools.partial(os.system, command), "posix.system"),
        "import": (Calls(builtins.__import__, "antigravity"), "builtins.__import__"),
        "attrgetter": (Calls(operator.attrgetter, "a"), "operator.attrgetter"),
        "torch.load": (Calls(torch.load, str(target)), "torch.serialization.load"),
        "hub": (Calls(torch.hub.load, "a/b", "c"), "torch.hub.load"),
        "rmtree": (Calls(shutil.rmtree, str(target.parent)), "shutil.rmtree"),
        "in a tuple": ((1, [Calls(os.system, command)]), "posix.system"),
    }


@pytest.mark.parametrize("name", attacks(marker(__import__("pathlib").Path("x"))))
@pytest.mark.parametrize("archived", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_is_refused_by_name_and_does_not_run(
    name: str, path: Path, small: Small, *, archived: bool, protocol: int
) -> None:
    attack, wanted = attacks(marker(path))[name]
    if name == "getattr":
        attack = Calls(getattr, 1, "real")
    saved = {"model": small.state_dict() if archived else {}, "extra": attack}
    if archived:
        torch.save(saved, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(saved, protocol=protocol))
    renamed = {"io.open": ("io.open", "_io.open")}.get(wanted, (wanted,))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert any(f"wants to run {each}" in caught.value.found for each in renamed)
    assert not marker(path).exists()


def archive(path: Path, content: bytes, **storages: bytes) -> Path:
    """Write a checkpoint archive around a pickle."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for key, data in storages.items():
            file.writestr(f"archive/data/{key.removeprefix('k')}", data)
    return path


HANDMADE = {
    # the four ways in which a pickle calls something
    "reduce": (b"cposix\nsystem\n(S'true'\ntR.", "posix.system"),
    "inst": (b"(S'true'\niposix\nsystem\n.", "posix.system"),
    "obj": (b"(cposix\nsystem\nS'true'\no.", "posix.system"),
    "newobj": (b"\x80\x02cposix\nsystem\nU\x04true\x85\x81.", "posix.system"),
    # names that are put together on the stack, with dots, or with the names of Python 2
    "stack": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "posix.system"),
    "dotted": (
        b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93\x8c\x04true\x85R.",
        "torch.os.system",
    ),
    "python 2": (b"c__builtin__\neval\n(S'1'\ntR.", "builtins.eval"),
    "submodule": (b"cos.path\njoin\n(S'1'\ntR.", "os.path.join"),
    # a stand-in, a value, the result of another call, called as if it were a function
    "an object": (b"\x80\x02cmy.net\nNet\n)\x81)R.", "an object of my.net.Net"),
    "a string": (b"\x80\x02U\x04evil)R.", "a str"),
    "a result": (b"ccollections\nOrderedDict\n)R)R.", "a dict"),
    "reconstructor": (b"ccopyreg\n_reconstructor\n(cposix\nsystem\nNNtR.", "posix.system"),
    "rebuild from type": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cposix\nsystem\ncmy\nNet\n)NtR.",
        "posix.system",
    ),
    "bound method": (b"c__builtin__\ngetattr\n(cos\npath\nS'join'\ntR.", "os.path"),
    "method of a class": (
        b"c__builtin__\ngetattr\n(S'a'\nS'__class__'\ntR.",
        "builtins.getattr",
    ),
    # attributes put on real things
    "build on a function": (
        b"ctorch._utils\n_rebuild_tensor_v2\n}S'__defaults__'\nNsb.",
        "the state of torch._utils._rebuild_tensor_v2",
    ),
    "build on a class": (
        b"ccollections\nOrderedDict\nN}S'x'\nNs\x86b.",
        "the state of collections.OrderedDict",
    ),
    "extension": (b"\x80\x02\x82\x05.", "extension 5"),
}


@pytest.mark.parametrize("name", HANDMADE)
def test_handmade_attacks_are_refused(name: str, path: Path) -> None:
    content, wanted = HANDMADE[name]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(archive(path, content))
    assert f"wants to run {wanted}." in caught.value.found


MALFORMED = {
    "no stop": b"\x80\x02}",
    "empty": b"",
    "text": b"hello world",
    "persistent id as text": b"P1\n.",
    "empty stack": b".",
    "mark without items": b"(.",
    "short tuple": b"\x80\x02K\x01\x87.",
    "memo that was never written": b"\x80\x02h\x07.",
    "unhashable key": b"\x80\x02}(]K\x01u.",
    "odd entries": b"\x80\x02}(K\x01u.",
    "items for a number": b"\x80\x02K\x01(K\x01e.",
    "entries for a number": b"\x80\x02K\x01K\x01K\x02s.",
    "name that is a number": b"\x80\x04K\x01K\x01\x93.",
    "bytes that are not there": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0fabc.",
    "number that is too long": b"L" + b"9" * 10_000 + b"L\n.",
    "arguments that are no tuple": b"ccollections\nOrderedDict\nK\x01R.",
    "buffer": b"\x80\x05\x97.",
    "tensor of text": b"ctorch._utils\n_rebuild_tensor_v2\n(S'a'\nK\x00))tR.",
    "storage that is text": b"\x80\x02U\x01aQ.",
    "storage without a type": b"\x80\x02(U\x07storageU\x01aU\x010U\x03cpuK\x01tQ.",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_pickles_are_refused(name: str, path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"damaged|no weights found"):
        checkpoint.load(archive(path, MALFORMED[name]))


class Storage:
    """What stands for a storage while a hostile tensor is pickled."""

    def __init__(self, *identity: Any) -> None:
        self.identity = identity


def described(storage: tuple[Any, ...], offset: Any, size: Any, stride: Any) -> bytes:
    """Return a pickle of {'w': tensor, 'x': object of an unknown class}."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return value.identity if isinstance(value, Storage) else None

    unknown = types.new_class("Net")
    unknown.__module__, home = "faraway", types.ModuleType("faraway")
    home.Net = unknown  # type: ignore[attr-defined]  # a module made up for the test
    buffer = io.BytesIO()
    sys.modules["faraway"] = home
    call = Calls(
        torch._utils._rebuild_tensor_v2, Storage(*storage), offset, size, stride, False, {}
    )
    try:
        Writer(buffer, 2).dump({"w": call, "x": unknown()})
    finally:
        del sys.modules["faraway"]
    return buffer.getvalue()


FLOATS = np.arange(6, dtype=np.float32).tobytes()


def test_the_handmade_tensor_is_read_when_it_is_honest(path: Path) -> None:
    content = described(("storage", torch.FloatStorage, "0", "cuda:0", 6), 1, (2, 2), (2, 1))
    found = checkpoint.load(archive(path, content, k0=FLOATS)).state["w"]
    assert found.tolist() == [[1, 2], [3, 4]]


LIES: dict[str, tuple[tuple[Any, ...], Any, Any, Any]] = {
    "outside": (("storage", torch.FloatStorage, "0", "cpu", 6), 0, (3, 3), (3, 1)),
    "offset": (("storage", torch.FloatStorage, "0", "cpu", 6), 6, (1,), (1,)),
    "negative offset": (("storage", torch.FloatStorage, "0", "cpu", 6), -1, (1,), (1,)),
    "negative stride": (("storage", torch.FloatStorage, "0", "cpu", 6), 5, (2,), (-1,)),
    "expanded": (("storage", torch.FloatStorage, "0", "cpu", 6), 0, (1 << 40,), (0,)),
    "ranks": (("storage", torch.FloatStorage, "0", "cpu", 6), 0, (1, 1), (1,)),
    "count": (("storage", torch.FloatStorage, "0", "cpu", 1 << 40), 0, (2,), (1,)),
    "type": (("storage", torch.DoubleStorage, "0", "cpu", 6), 0, (2,), (1,)),
    "missing": (("storage", torch.FloatStorage, "7", "cpu", 6), 0, (2,), (1,)),
    "path": (("storage", torch.FloatStorage, "../../etc/passwd", "cpu", 6), 0, (2,), (1,)),
    "float size": (("storage", torch.FloatStorage, "0", "cpu", 6), 0, (2.5,), (1,)),
    "huge and empty": (
        ("storage", torch.FloatStorage, "0", "cpu", 6),
        0,
        (0, 1 << 62, 8),
        (1, 1, 1),
    ),
    "many sizes": (("storage", torch.FloatStorage, "0", "cpu", 6), 0, (1,) * 99, (1,) * 99),
    "quantised": (("storage", torch.QInt8Storage, "0", "cpu", 6), 0, (2,), (1,)),
}


@pytest.mark.parametrize("name", LIES)
def test_tensors_that_lie_about_their_data_are_refused(name: str, path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(archive(path, described(*LIES[name]), k0=FLOATS))
    assert str(path) in str(caught.value)


def test_big_endian_weights_are_refused(path: Path) -> None:
    content = described(("storage", torch.FloatStorage, "0", "cpu", 6), 0, (2,), (1,))
    archive(path, content, k0=FLOATS)
    damaged = path.read_bytes().replace(b"little", b"bigbig")
    crc = struct.pack("<I", __import__("zlib").crc32(b"little"))
    path.write_bytes(damaged.replace(crc, struct.pack("<I", __import__("zlib").crc32(b"bigbig"))))
    with pytest.raises(CheckpointError, match=r"big-endian"):
        checkpoint.load(path)


def module_pickle(body: bytes) -> bytes:
    """Return the pickle of an object far.Net whose _modules are what `body` leaves."""
    return b"\x80\x02cfar\nNet\n)\x81q\x00}U\x08_modules" + body + b"sb."


def test_a_module_that_contains_itself_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains itself"):
        checkpoint.load(archive(path, module_pickle(b"}U\x01ah\x00s")))


def test_modules_that_multiply_are_refused(path: Path) -> None:
    layer = b"cfar\nNet\n)\x81}U\x08_modules"
    # Each level holds the level below it twice: 2**60 paths through 60 objects.
    content = b"\x80\x02cfar\nNet\n)\x81q\x00"
    for i in range(60):
        content += layer + b"}(U\x01ah" + bytes([i]) + b"U\x01bh" + bytes([i]) + b"usb"
        content += b"q" + bytes([i + 1])
    with pytest.raises(CheckpointError, match="absurd size"):
        checkpoint.load(archive(path, content + b"."))


def test_a_shared_module_counts_at_the_deepest_of_its_places(path: Path) -> None:
    layer = b"cfar\nNet\n)\x81}U\x08_modules"
    content = b"\x80\x02cfar\nNet\n)\x81q\x00"
    for i in range(110):  # each holds the one before it
        content += layer + b"}U\x01ah" + bytes([i]) + b"ssb" + b"q" + bytes([i + 1])
    near, far = bytes([90]), bytes([110])  # the nearer one is looked at first, and would do alone
    root = layer + b"}(U\x01ah" + near + b"U\x01bh" + far + b"usb."
    with pytest.raises(CheckpointError, match="absurd size"):
        checkpoint.load(archive(path, content + root))


def test_dictionaries_that_multiply_are_refused_quickly(path: Path) -> None:
    content = b"\x80\x02}q\x00"
    for i in range(60):
        content += b"}(U\x05modelh" + bytes([i]) + b"U\x01bh" + bytes([i]) + b"uq" + bytes([i + 1])
    with pytest.raises(CheckpointError, match="no weights found"):
        checkpoint.load(archive(path, content + b"cfar\nf\n\x86."))
    path.unlink()
    with pytest.raises(CheckpointError, match="no weights found"):
        checkpoint.load(archive(path, content + b"."))


def test_a_dictionary_that_contains_itself_is_refused(path: Path) -> None:
    content = described(("storage", torch.FloatStorage, "0", "cpu", 6), 0, (2,), (1,))
    assert content.endswith(b"u.")
    content = content[:-1] + b"q\xf0U\x05modelh\xf0s."
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(archive(path, content, k0=FLOATS))


def test_deep_nesting_is_refused(path: Path) -> None:
    deep = b"\x80\x02" + b"}U\x05model" * 20_000 + b"N" + b"s" * 20_000 + b"."
    with pytest.raises(CheckpointError):
        checkpoint.load(archive(path, deep))
    path.unlink()
    keys = b"\x80\x02}(" + b")" + b"\x85" * 100_000 + b"K\x01u."  # hashing it would crash Python
    with pytest.raises(CheckpointError, match="no weights found"):
        checkpoint.load(archive(path, b"\x80\x02cfar\nf\n0" + keys[2:]))


KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none())
PLAIN = st.recursive(
    st.one_of(KEYS, st.floats(allow_nan=False), st.text(max_size=300)),
    lambda inner: st.one_of(
        st.lists(inner),
        st.dictionaries(KEYS, inner),
        st.tuples(inner),
        st.tuples(inner, inner),
        st.lists(inner).map(tuple),
    ),
    max_leaves=10,
)


@settings(deadline=None, max_examples=100)
@given(value=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_are_read_as_python_reads_them(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol)
    assert _pickles.read(io.BytesIO(content), len(content)) == pickle.loads(content)


@pytest.mark.parametrize(
    "content",
    [
        b"K\x01K\x020.",
        b"K\x012\x86.",
        b"K\x01(K\x021.",
        b"(K\x01K\x02l.",
        b"(K\x01K\x02d.",
        b"K\x01(0.",
    ],
)
def test_rare_instructions_do_what_they_do_in_python(content: bytes) -> None:
    assert _pickles.read(io.BytesIO(content), len(content)) == pickle.loads(content)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_changed_byte_is_an_error_of_ours_or_harmless(data: st.DataObject) -> None:
    content = described(("storage", torch.FloatStorage, "0", "cpu", 6), 1, (2, 2), (2, 1))
    index = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[index] = data.draw(st.integers(0, 255))
    with contextlib.suppress(_records.CodeError, _records.FormatError, CheckpointError):
        _pickles.read(io.BytesIO(bytes(changed)), len(changed))


# broken files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"just some text\n", "a text file"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"\xfd7zXZ\0" + bytes(40), "an xz archive"),
        (b"BZh91AY&SY" + bytes(40), "a bzip2 archive"),
        (b"\x00\x01\x02\x03" * 100, "is not a checkpoint"),
        (b"PK\x03\x04" + b"\x00" * 100, "damaged or cut-off"),
        (b"\x80\x02garbage", "damaged or cut-off"),
    ],
)
def test_foreign_files_are_named(content: bytes, message: str, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "absent.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        checkpoint.load(tmp_path)


def test_a_truncated_checkpoint_is_refused_wherever_it_is_cut(small: Small, path: Path) -> None:
    torch.save(small.state_dict(), path)
    whole = path.read_bytes()
    for part in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(CheckpointError, match="damaged or cut-off"):
            checkpoint.load(path)


def test_a_truncated_old_checkpoint_is_refused(small: Small, path: Path) -> None:
    torch.save(small.state_dict(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="damaged or cut-off"):
        checkpoint.load(path)


def test_a_damaged_storage_is_refused(path: Path) -> None:
    content = described(("storage", torch.FloatStorage, "0", "cpu", 6), 0, (2,), (1,))
    archive(path, content, k0=FLOATS)
    path.write_bytes(path.read_bytes().replace(FLOATS, FLOATS[::-1]))
    with pytest.raises(CheckpointError, match="damaged or cut-off"):
        checkpoint.load(path)


def test_an_archive_that_unpacks_to_much_more_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounds, "FREE", 1 << 20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", b"N.")
        file.writestr("archive/data/0", bytes(1 << 23))
    with pytest.raises(CheckpointError, match="would unpack from") as caught:
        checkpoint.load(path)
    assert "GiB" in caught.value.found


def test_a_declared_size_of_many_gigabytes_is_refused(small: Small, path: Path) -> None:
    torch.save(small.state_dict(), path)
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first entry of the directory
    content[entry + 24 : entry + 28] = struct.pack("<I", 0xF0000000)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="would unpack from"):
        checkpoint.load(path)


def test_a_pickle_of_too_many_instructions_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_bounds, "INSTRUCTIONS", 5)
    with pytest.raises(CheckpointError, match="more than 5 instructions"):
        checkpoint.load(archive(path, b"]" * 6 + b"."))


@pytest.mark.parametrize("names", [["readme.txt"], [], ["a/data.pkl", "b/data.pkl"]])
def test_other_archives_are_refused(names: list[str], path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, "x")
        file.writestr("other", "x")
    with pytest.raises(CheckpointError, match=r"without one data\.pkl"):
        checkpoint.load(path)


def test_a_program_of_torch_export_is_refused_with_what_to_do(path: Path) -> None:
    program = torch.export.export(nn.Conv2d(3, 4, 1), (torch.zeros(1, 3, 2, 2),))
    torch.export.save(program, path.with_suffix(".pt2"))
    with pytest.raises(CheckpointError, match=r"program of torch\.export") as caught:
        checkpoint.load(path.with_suffix(".pt2"))
    assert "torch.export.load(FILE).state_dict" in caught.value.fix
    torch.save(torch.export.load(path.with_suffix(".pt2")).state_dict, path)
    assert set(checkpoint.load(path).state) == {"weight", "bias"}


def test_an_onnx_file_is_called_one(path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(CheckpointError, match="is an ONNX model") as caught:
        checkpoint.load(path)
    assert "needs no export" in caught.value.fix


def test_torchscript_is_refused_with_its_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", "x")
        file.writestr("m/constants.pkl", "x")
    with pytest.raises(CheckpointError, match="TorchScript"):
        checkpoint.load(path)


def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    for length in (len(header), 1 << 40):
        path.write_bytes(struct.pack("<Q", length) + header + bytes(4))
        with pytest.raises(CheckpointError, match="damaged or cut-off"):
            checkpoint.load(path)


def test_weights_that_are_not_finite_are_named(path: Path) -> None:
    state = {f"w{i}": torch.tensor([float("nan") if i % 2 else 1.0]) for i in range(20)}
    torch.save({**state, "v": torch.tensor([float("inf")], dtype=torch.float16)}, path)
    with pytest.raises(CheckpointError, match=r"11 weights hold NaN or infinity: w1, w3.*6 more"):
        checkpoint.load(path)


def test_a_tensor_that_swells_is_refused(path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 33)}, path)
    with pytest.raises(CheckpointError, match="would take more than"):
        checkpoint.load(path)


def test_odd_tensors_are_refused(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch say that such tensors will go
        quantised = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    odd = {
        "complex": torch.ones(1, dtype=torch.complex64),
        "without values": torch.ones(1, device="meta"),
        "sparse": torch.ones(2).to_sparse(),
        "quantised": quantised,
    }
    for word, tensor in odd.items():
        torch.save({"w": tensor}, path)
        with pytest.raises(CheckpointError, match=word):
            checkpoint.load(path)


@pytest.mark.parametrize("saved", [[1, 2], {"epoch": 3}, {}, "text", {"model": None}])
def test_a_file_without_weights_says_what_it_holds(saved: Any, path: Path) -> None:
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match="no weights found: the file holds"):
        checkpoint.load(path)


# fitting


def test_fit_loads_every_weight(small: Small) -> None:
    other = Small()
    checkpoint.fit(other, small.state_dict(), name="small")
    assert_same(other.state_dict(), small.state_dict())


def test_fit_forgives_only_absent_and_extra_counters(small: Small) -> None:
    state = {k: v for k, v in small.state_dict().items() if not k.endswith("num_batches_tracked")}
    checkpoint.fit(Small(), {**state, "other.num_batches_tracked": torch.tensor(1)}, name="small")


def test_fit_lists_what_does_not_fit(small: Small) -> None:
    state = OrderedDict(small.state_dict())
    del state["bn.bias"]
    state["conv.weight"] = torch.zeros(4, 3, 1, 1)
    state.update({f"extra{i}": torch.zeros(1) for i in range(7)})
    with pytest.raises(CheckpointError) as caught:
        checkpoint.fit(Small(), state, name="small n")
    found = caught.value.found
    assert "does not fit small n: 1 missing (bn.bias), 7 unexpected (extra0" in found
    assert "extra4 and 2 more" in found
    assert "1 wrongly shaped (conv.weight is [4, 3, 1, 1], not [4, 3, 3, 3])" in found
    assert caught.value.expected == "the 6 weights of small n; 83% of their names are there"


def test_whole_numbers_and_variances_below_zero_are_no_weights(small: Small) -> None:
    state = small.state_dict()
    whole = {**state, "conv.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)}
    with pytest.raises(CheckpointError, match=r"stored as torch\.int8: conv\.weight"):
        checkpoint.fit(Small(), whole, name="small")
    below = {**state, "bn.running_var": state["bn.running_var"] - 2}
    with pytest.raises(CheckpointError, match=r"below zero: bn\.running_var"):
        checkpoint.fit(Small(), below, name="small")


def test_fit_changes_nothing_when_it_refuses(small: Small) -> None:
    other = Small()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    state = OrderedDict(small.state_dict())
    del state["bn.bias"]
    with pytest.raises(CheckpointError):
        checkpoint.fit(other, state, name="small")
    assert_same(other.state_dict(), before)
