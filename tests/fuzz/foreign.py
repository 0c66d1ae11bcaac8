"""Hostile files of other exporters: lying metadata, heads that do not fit, arrays that are none."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from . import sound
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SOURCE = f"shapes:count={sound.COUNT},size=96"
_EVIL = "__import__('pathlib').Path('canary').touch()"
_NAMES: dict[str, str] = {
    "code": f"{{0: {_EVIL}}}",
    "code in a name": f"{{0: '{_EVIL}'}}",
    "a call": _EVIL,
    "nested": "{" * 100_000,
    "long": "{0: '" + "x" * 3_000_000 + "'}",
    "backslashes": "{0: '" + "\\" * 500_001 + "'}",
    "many": "{" + ", ".join(f"{i}: 'n{i}'" for i in range(200_000)) + "}",
    "escapes": "{0: '\x1b[31m', 1: '\u202e'}",
    "gaps": "{0: 'a', 999999: 'b'}",
    "negative": "{-1: 'a'}",
    "a list": "['a', 'b']",
    "nothing": "",
}
_SIZES = (
    "[99999, 99999]",
    "[32768, 32768]",
    "[0, 0]",
    "[-1, 64]",
    "640",
    "[1e9, 1]",
    _EVIL,
    "[[]]",
)
_HEADS = ("yolov5", "yolov8", "yolox", "torchvision", "none", "evil.py", "\x1b[31m", "")
_OUTPUTS: dict[str, list[int | str]] = {
    "of a classifier": ["n", 1000],
    "of one number": [],
    "of nothing": ["n", 0, 0],
    "of six sizes": [1, 2, 3, 4, 5, 6],
    "of a head": ["n", 84, 21],
    "of open sizes": ["a", "b", "c"],
}
_OPTIONS: dict[str, list[str]] = {
    "mean of NaN": ["--mean", "nan"],
    "mean of 400 digits": ["--mean", "9" * 400],
    "mean of levels": ["--mean", "123.7,116.3,103.5"],
    "std of zero": ["--std", "0"],
    "scale of zero": ["--scale", "0"],
    "scale over zero": ["--scale", "1/0"],
    "scale of code": ["--scale", _EVIL],
    "huge size": ["--input-size", "99999x99999"],
    "size of nothing": ["--input-size", "0x0"],
    "other size": ["--input-size", "8x8"],
    "names of a device": ["--class-names", "/dev/zero"],
    "names of a folder": ["--class-names", "."],
    "names of bytes": ["--class-names", "x.onnx"],
    "layout": ["--layout", "nhwc"],
    "channels": ["--channels", "grey"],
    "unknown task": ["--task", "evil.py"],
    "unknown preparation": ["--preprocess", "evil.py"],
    "no such input": ["--input", "z=1"],
    "the images as a constant": ["--input", "images=1"],
    "input of code": ["--input", f"images={_EVIL}"],
    "image of a device": ["--image", "/dev/zero"],
    "image of bytes": ["--image", "x.onnx"],
}
_VERBS: dict[str, list[str]] = {
    "describe": ["describe", "x.onnx", "-o", "out.onnx"],
    "quantize": ["quantize", "x.onnx", "--calib-source", _SOURCE, "-o", "out.onnx"],
    "eval": ["eval", "x.onnx", "--source", _SOURCE],
    "bench": [
        *["bench", "x.onnx", "--end-to-end", _SOURCE],
        *["--duration", "0.05", "--warmup", "0", "--iterations", "2"],
    ],
    "inspect": ["inspect", "x.onnx"],
}


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case."""
    del base, seed
    verbs = list(_VERBS)
    lies = [("names are " + what, {"names": text}) for what, text in _NAMES.items()]
    lies += [(f"size is {text[:20]}", {"imgsz": text}) for text in _SIZES]
    lies += [("task is code", {"task": _EVIL}), ("stride is code", {"stride": _EVIL})]
    for number, (what, lie) in enumerate(lies):
        verb = verbs[number % len(verbs)]
        write = partial(_network, metadata=lie, shape=["n", 3, "h", "w"])
        yield _case(f"metadata whose {what}, {verb}", write, _VERBS[verb])
    said = ["--task", "detection", "--preprocess", "unit", "--class-names", "a,b,c"]
    for number, (what, shape) in enumerate(_OUTPUTS.items()):
        for head in _HEADS:
            verb = ("describe", "eval")[number % 2]
            words = [*_VERBS[verb], *said, "--decode", head]
            yield _case(f"output {what} for {head}, {verb}", partial(_network, output=shape), words)
    for what, options in _OPTIONS.items():
        words = [*_VERBS["describe"], "--task", "detection", "--preprocess", "unit", *options]
        yield _case(f"option {what}", _network, words)
    for what, content in _arrays().items():
        data = partial(_with_array, content=content)
        words = ["quantize", "x.onnx", "--calib-data", "data", "-o", "out.onnx"]
        yield _case(f"calibration on {what}", data, words)
        words = [*_VERBS["describe"], "--preprocess", "unit", "--input", "images=data/images.npy"]
        yield _case(f"an input of {what}", data, words)


def _case(what: str, write: Any, words: list[str]) -> Case:
    return Case(f"foreign: {what}", partial(_made, write=write, words=words))


def _made(folder: Path, _: Path, *, write: Any, words: list[str]) -> list[str]:
    write(folder)
    return list(words)


def _network(folder: Path, *, metadata: Any = None, shape: Any = None, output: Any = None) -> None:
    """Write a small network whose metadata or output's shape says what is not so."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32) / 27, "w")
    node = helper.make_node("Conv", ["images", "w"], ["y"], name="conv", kernel_shape=[3, 3])
    shape = shape or [1, 3, 32, 32]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph([node], "g", [images], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    known = {"names": "{0: 'a'}", "stride": "32", "task": "detect", "imgsz": "[32, 32]"}
    if metadata is not None:
        helper.set_model_props(model, {**known, **metadata})
    onnx.save(model, folder / "x.onnx")


def _with_array(folder: Path, *, content: bytes) -> None:
    _network(folder)
    (folder / "data").mkdir()
    name = "images.npz" if content.startswith(b"PK") else "images.npy"
    (folder / "data" / name).write_bytes(content)


def _arrays() -> dict[str, bytes]:
    import io
    import pickle

    import numpy as np

    def saved(shape: Any, descr: str = "<f4") -> bytes:
        head = io.BytesIO()
        said = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, said)
        return head.getvalue()

    archive = io.BytesIO()
    np.savez(archive, other=np.zeros(3))
    return {
        "nothing": b"",
        "text": b"images",
        "a pickle": pickle.dumps([1, 2]),
        "objects": saved((3,), "|O") + pickle.dumps([1]),
        "a huge shape": saved((1 << 40, 3, 32, 32)),
        "an overflowing shape": saved((1 << 62, 1 << 62)),
        "a negative shape": saved((-1, 3, 32, 32)),
        "a cut array": saved((4, 3, 32, 32)) + b"\0" * 100,
        "another shape": saved((2, 2), "<f8") + b"\0" * 32,
        "words": saved((2,), "<U9") + b"\0" * 72,
        "a bad header": b"\x93NUMPY\x01\x00\x40\x00" + _EVIL.encode().ljust(64),
        "another name": archive.getvalue(),
        "a cut archive": archive.getvalue()[:60],
    }
