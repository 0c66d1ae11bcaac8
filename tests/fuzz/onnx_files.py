"""Hostile ONNX files: bytes that are no model, and graphs that are odd."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from . import mutants, sound
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx

    Graph = Callable[[], onnx.ModelProto]

_SOURCE = f"shapes:count={sound.COUNT},size=96"
_VERBS: dict[str, list[str]] = {
    "inspect": ["inspect", "x.onnx"],
    "fuse": ["fuse", "x.onnx", "-o", "out.onnx"],
    "cast": ["cast", "x.onnx", "-o", "out.onnx"],
    "quantize": ["quantize", "x.onnx", "--calib-source", _SOURCE, "-o", "out.onnx"],
    "build": ["build", "x.onnx", "--backend", "onnxruntime", "-o", "out.engine"],
    "bench": ["bench", "x.onnx", "--duration", "0.05", "--warmup", "0", "--iterations", "2"],
    "verify": ["verify", "x.onnx", "--against", "x.onnx", "--count", "1"],
    "eval": ["eval", "x.onnx", "--source", _SOURCE],
}
_HUGE = 1 << 40


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case, made from the sound model in `base`."""
    content = (base / sound.MODEL).read_bytes()
    names = list(_VERBS)
    for i, (what, data) in enumerate(_damaged(content, seed)):
        yield _case(what, partial(_write, data), names[i % len(names)])
    for name, graph in _GRAPHS.items():
        for verb in names:
            yield _case(name.replace("_", " "), partial(_save, graph), verb)


def _case(what: str, write: Any, verb: str) -> Case:
    return Case(f"onnx: {what}, {verb}", partial(_made, write=write, verb=verb))


def _made(folder: Path, _: Path, *, write: Any, verb: str) -> list[str]:
    write(folder)
    return list(_VERBS[verb])


def _write(data: bytes, folder: Path) -> None:
    (folder / "x.onnx").write_bytes(data)


def _save(graph: Any, folder: Path) -> None:
    model = graph(folder)
    (folder / "x.onnx").write_bytes(model.SerializeToString())


def _damaged(content: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    import random

    rng = random.Random(seed)
    yield from mutants.TEXTS.items()
    for share in (0.01, 0.3, 0.9, 0.999):
        yield f"cut at {share:.1%}", content[: int(len(content) * share)]
    for number in range(24):
        damaged = bytearray(content)
        for _ in range(1 + number):
            # names and sizes stand in the first part of a file, weights in the last
            damaged[rng.randrange(min(len(damaged), 20_000))] = rng.randrange(256)
        yield f"{number + 1} bytes changed", bytes(damaged)


def _model(
    nodes: Any, *, inputs: Any = None, outputs: Any = None, weights: Any = (), **more: Any
) -> Any:
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, 32, 32])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        list(nodes), more.pop("name", "g"), inputs or [images], outputs or [y], list(weights)
    )
    versions = more.pop("opset_imports", [helper.make_opsetid("", 19)])
    return helper.make_model(graph, opset_imports=versions, ir_version=9, **more)


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    from onnx import helper

    attributes.setdefault("name", f"{op}_{outputs[0]}")
    return helper.make_node(op, inputs, outputs, **attributes)


def _int64(name: str, values: Any) -> Any:
    import numpy as np
    from onnx import numpy_helper

    return numpy_helper.from_array(np.asarray(values, np.int64), name)


def _one_conv(name: str = "conv", weight: str = "w") -> Any:
    import numpy as np
    from onnx import numpy_helper

    w = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32) / 27, weight)
    return _model([_node("Conv", ["images", weight], ["y"], name=name)], weights=[w])


def _same_name_twice(_: Path) -> Any:
    return _model(
        [_node("Relu", ["images"], ["a"], name="x"), _node("Relu", ["a"], ["y"], name="x")]
    )


def _same_output_twice(_: Path) -> Any:
    return _model([_node("Relu", ["images"], ["y"]), _node("Sigmoid", ["images"], ["y"], name="b")])


def _a_circle(_: Path) -> Any:
    return _model(
        [
            _node("Add", ["images", "b"], ["a"]),
            _node("Relu", ["a"], ["b"]),
            _node("Relu", ["b"], ["y"]),
        ]
    )


def _a_node_of_itself(_: Path) -> Any:
    return _model([_node("Add", ["images", "y"], ["y"])])


def _wrong_order(_: Path) -> Any:
    return _model([_node("Relu", ["a"], ["y"]), _node("Relu", ["images"], ["a"])])


def _an_input_made_again(_: Path) -> Any:
    return _model(
        [_node("Relu", ["images"], ["images"], name="r"), _node("Relu", ["images"], ["y"])]
    )


def _huge_constant_of_shape(_: Path) -> Any:
    return _model(
        [
            _node("ConstantOfShape", ["s"], ["c"]),
            _node("ReduceSum", ["c"], ["d"], keepdims=0),
            _node("Add", ["images", "d"], ["y"]),
        ],
        weights=[_int64("s", [_HUGE])],
    )


def _huge_expand(_: Path) -> Any:
    return _model(
        [_node("Expand", ["images", "s"], ["y"])], weights=[_int64("s", [1 << 20, 3, 32, 32])]
    )


def _huge_range(_: Path) -> Any:
    from onnx import TensorProto

    return _model(
        [
            _node("Range", ["a", "b", "c"], ["r"]),
            _node("Cast", ["r"], ["f"], to=TensorProto.FLOAT),
            _node("ReduceSum", ["f"], ["d"], keepdims=0),
            _node("Add", ["images", "d"], ["y"]),
        ],
        weights=[_int64("a", 0), _int64("b", 1 << 50), _int64("c", 1)],
    )


def _huge_resize(_: Path) -> Any:
    return _model(
        [_node("Resize", ["images", "", "", "s"], ["y"])],
        weights=[_int64("s", [1, 3, 1 << 20, 1 << 20])],
    )


def _huge_tile(_: Path) -> Any:
    return _model(
        [_node("Tile", ["images", "s"], ["y"])], weights=[_int64("s", [1, 1, 1 << 15, 1 << 15])]
    )


def _huge_pad(_: Path) -> Any:
    return _model(
        [_node("Pad", ["images", "s"], ["y"])],
        weights=[_int64("s", [0, 0, 0, 0, 0, 0, 1 << 30, 1 << 30])],
    )


def _tiles_that_double(_: Path) -> Any:
    nodes = [_node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=1) for i in range(60)]
    nodes.insert(0, _node("Relu", ["images"], ["v0"]))
    return _model([*nodes, _node("Relu", ["v60"], ["y"])])


def _huge_weight(_: Path) -> Any:
    from onnx import TensorProto

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[_HUGE, 3, 3, 3])
    return _model([_node("Conv", ["images", "w"], ["y"])], weights=[weight])


def _negative_weight(_: Path) -> Any:
    from onnx import TensorProto

    weight = TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[-16, 3, 3, 3], raw_data=bytes(4)
    )
    return _model([_node("Conv", ["images", "w"], ["y"])], weights=[weight])


def _weight_without_data(_: Path) -> Any:
    from onnx import TensorProto

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16, 3, 3, 3])
    return _model([_node("Conv", ["images", "w"], ["y"])], weights=[weight])


def _weight_of_unknown_type(_: Path) -> Any:
    from onnx import TensorProto

    weight = TensorProto(name="w", data_type=99, dims=[16, 3, 3, 3], raw_data=bytes(432))
    return _model([_node("Conv", ["images", "w"], ["y"])], weights=[weight])


def _weights_of_text(_: Path) -> Any:
    from onnx import TensorProto

    weight = TensorProto(
        name="w", data_type=TensorProto.STRING, dims=[2], string_data=[b"a", b"\xff"]
    )
    return _model([_node("Conv", ["images", "w"], ["y"])], weights=[weight])


def _huge_input(_: Path) -> Any:
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 1 << 20, 1 << 20])
    return _model([_node("Relu", ["images"], ["y"])], inputs=[images])


def _huge_batch(_: Path) -> Any:
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1 << 40, 3, 32, 32])
    return _model([_node("Relu", ["images"], ["y"])], inputs=[images])


def _negative_input(_: Path) -> Any:
    from onnx import TensorProto, helper

    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [-1, 3, -32, 32])
    return _model([_node("Relu", ["images"], ["y"])], inputs=[images])


def _no_input(_: Path) -> Any:

    model = _model([_node("Constant", [], ["y"], value_floats=[1.0])])
    del model.graph.input[:]
    return model


def _input_without_type(_: Path) -> Any:
    import onnx

    return _model([_node("Relu", ["images"], ["y"])], inputs=[onnx.ValueInfoProto(name="images")])


def _sequence_input(_: Path) -> Any:
    from onnx import TensorProto, helper

    images = helper.make_tensor_sequence_value_info("images", TensorProto.FLOAT, None)
    return _model(
        [_node("SequenceAt", ["images", "i"], ["y"])], inputs=[images], weights=[_int64("i", 0)]
    )


def _loop(rounds: int, *, counts: bool = False) -> Any:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [_node("Identity", ["keep"], ["more"]), _node("Relu", ["v"], ["w"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("keep", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT, None),
        ],
        [info("more", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, None)],
    )
    del counts
    return _model(
        [_node("Loop", ["rounds", "", "images"], ["y"], body=body)],
        weights=[_int64("rounds", rounds)],
    )


def _loop_of_2_62(_: Path) -> Any:
    return _loop(1 << 62)


def _loop_of_0(_: Path) -> Any:
    return _loop(0)


def _loop_of_minus_1(_: Path) -> Any:
    return _loop(-1)


def _loop_until_never(_: Path) -> Any:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [_node("Less", ["i", "limit"], ["more"]), _node("Relu", ["v"], ["w"])],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("keep", TensorProto.BOOL, []),
            info("v", TensorProto.FLOAT, None),
        ],
        [info("more", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, None)],
        [_int64("limit", 1 << 60)],
    )
    return _model([_node("Loop", ["", "", "images"], ["y"], body=body)])


def _nested(depth: int) -> Any:
    from onnx import TensorProto, helper

    info = helper.make_tensor_value_info
    inner = _node("Relu", ["images"], ["z"], name="leaf")
    for i in range(depth):
        out = info(inner.output[0], TensorProto.FLOAT, None)
        branch = helper.make_graph([inner], f"b{i}", [], [out])
        name = "y" if i == depth - 1 else f"z{i}"
        inner = _node("If", ["yes"], [name], then_branch=branch, else_branch=branch, name=f"if{i}")
    import numpy as np
    from onnx import numpy_helper

    return _model([inner], weights=[numpy_helper.from_array(np.asarray(True), "yes")])


def _ifs_nested_12_deep(_: Path) -> Any:
    return _nested(12)


def _function_tower(_: Path) -> Any:
    """Return 60 functions, each of which calls the one before it twice."""
    from onnx import helper

    opset = [helper.make_opsetid("", 19), helper.make_opsetid("f", 1)]
    functions = [
        helper.make_function("f", "f0", ["x"], ["y"], [_node("Relu", ["x"], ["y"])], opset)
    ]
    for i in range(1, 60):
        call = [
            helper.make_node(f"f{i - 1}", ["x"], ["m"], domain="f"),
            helper.make_node(f"f{i - 1}", ["m"], ["y"], domain="f"),
        ]
        functions.append(helper.make_function("f", f"f{i}", ["x"], ["y"], call, opset))
    top = helper.make_node("f59", ["images"], ["y"], domain="f", name="top")
    return _model([top], functions=functions, opset_imports=opset)


def _function_of_itself(_: Path) -> Any:
    from onnx import helper

    opset = [helper.make_opsetid("", 19), helper.make_opsetid("f", 1)]
    call = [helper.make_node("f", ["x"], ["y"], domain="f")]
    function = helper.make_function("f", "f", ["x"], ["y"], call, opset)
    top = helper.make_node("f", ["images"], ["y"], domain="f", name="top")
    return _model([top], functions=[function], opset_imports=opset)


def _unknown_op(_: Path) -> Any:
    return _model([_node("Florp", ["images"], ["y"])])


def _unknown_op_of_ours(_: Path) -> Any:
    from onnx import helper

    opset = [helper.make_opsetid("", 19), helper.make_opsetid("deploykit", 1)]
    return _model([_node("DKEvil", ["images"], ["y"], domain="deploykit")], opset_imports=opset)


def _op_of_ours_with_huge_attributes(_: Path) -> Any:
    from onnx import TensorProto, helper

    opset = [helper.make_opsetid("", 19), helper.make_opsetid("deploykit", 1)]
    info = helper.make_tensor_value_info
    inputs = [
        info("images", TensorProto.FLOAT, [1, 100, 4]),
        info("s", TensorProto.FLOAT, [1, 100, 8]),
    ]
    node = _node(
        "DKBatchedNms",
        ["images", "s"],
        ["y", "b", "c", "d"],
        domain="deploykit",
        max_detections=1 << 60,
    )
    return _model([node], inputs=inputs, opset_imports=opset)


def _external_fifo(folder: Path) -> Any:
    import os

    os.mkfifo(folder / "data.bin")
    return _external("data.bin")


def _external(location: str, **more: str) -> Any:
    from onnx import TensorProto

    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16, 3, 3, 3])
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return _model([_node("Conv", ["images", "w"], ["y"], name="conv")], weights=[weight])


def _external_outside(_: Path) -> Any:
    return _external("../../../../../../etc/passwd")


def _external_absolute(_: Path) -> Any:
    return _external("/etc/passwd")


def _external_device(folder: Path) -> Any:
    (folder / "zero").symlink_to("/dev/zero")
    return _external("zero")


def _external_negative(folder: Path) -> Any:
    (folder / "data.bin").write_bytes(bytes(1728))
    return _external("data.bin", offset="-8", length="99999999999999999999")


def _external_no_number(folder: Path) -> Any:
    (folder / "data.bin").write_bytes(bytes(1728))
    return _external("data.bin", offset="eight")


def _external_itself(_: Path) -> Any:
    return _external("x.onnx")


def _external_in_constant(folder: Path) -> Any:
    import os

    from onnx import TensorProto

    os.mkfifo(folder / "data.bin")
    value = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[16, 3, 3, 3])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="data.bin")
    return _model(
        [_node("Constant", [], ["w"], value=value), _node("Conv", ["images", "w"], ["y"])]
    )


def _names_with_escapes(_: Path) -> Any:
    return _one_conv("\x1b[31mred\x1b[0m\a\n\u202egnp", "w\x1b]0;t\a")


def _names_of_a_megabyte(_: Path) -> Any:
    return _one_conv("n" * 1_000_000)


def _empty_names(_: Path) -> Any:
    return _one_conv("")


def _conv_with_stride_0(_: Path) -> Any:
    model = _one_conv()
    from onnx import helper

    model.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 0]))
    return model


def _conv_with_odd_attributes(_: Path) -> Any:
    model = _one_conv()
    from onnx import helper

    for key, value in (("group", 0), ("dilations", [-1, 1 << 62]), ("kernel_shape", [1 << 31])):
        model.graph.node[0].attribute.append(helper.make_attribute(key, value))
    return model


def _conv_with_text_attributes(_: Path) -> Any:
    model = _one_conv()
    from onnx import helper

    for key in ("strides", "group", "pads"):
        model.graph.node[0].attribute.append(helper.make_attribute(key, "two"))
    return model


def _too_few_inputs(_: Path) -> Any:
    return _model([_node("Conv", ["images"], ["y"])])


def _no_outputs_of_a_node(_: Path) -> Any:
    from onnx import helper

    return _model(
        [helper.make_node("Relu", ["images"], [], name="r"), _node("Relu", ["images"], ["y"])]
    )


def _a_quantized_layer_with_bad_scales(_: Path) -> Any:
    import numpy as np
    from onnx import numpy_helper

    scale = numpy_helper.from_array(np.asarray([np.nan, -1, 0], np.float32), "s")
    zero = numpy_helper.from_array(np.zeros(7, np.int8), "z")
    return _model(
        [
            _node("QuantizeLinear", ["images", "s", "z"], ["q"], axis=9),
            _node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=-9),
        ],
        weights=[scale, zero],
    )


def _opset_0(_: Path) -> Any:
    from onnx import helper

    return _model([_node("Relu", ["images"], ["y"])], opset_imports=[helper.make_opsetid("", 0)])


def _opset_9999(_: Path) -> Any:
    from onnx import helper

    return _model([_node("Relu", ["images"], ["y"])], opset_imports=[helper.make_opsetid("", 9999)])


def _a_chain_of_2000(_: Path) -> Any:
    nodes = [_node("Relu", [f"v{i}" if i else "images"], [f"v{i + 1}"]) for i in range(2_000)]
    return _model([*nodes, _node("Relu", ["v2000"], ["y"])])


def _sparse_weight(_: Path) -> Any:
    from onnx import TensorProto, helper

    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("i", TensorProto.INT64, [1], [1 << 40])
    model = _model([_node("Conv", ["images", "w"], ["y"])])
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, places, [_HUGE, 3, 3, 3])
    )
    return model


_GRAPHS = {
    name.strip("_"): value
    for name, value in list(globals().items())
    if callable(value)
    and name.startswith("_")
    and name
    not in {
        "_case",
        "_made",
        "_write",
        "_save",
        "_damaged",
        "_model",
        "_node",
        "_int64",
        "_loop",
        "_nested",
        "_external",
        "_one_conv",
    }
    and not name.startswith("__")
}
