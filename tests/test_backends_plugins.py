"""Our ops in a TensorRT build: plugins from Python, standard ops, and what is refused."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import host_build
import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from deploykit import ops, pipeline
from deploykit.backends import BuildOptions, _plugins, _python_plugins, onnxruntime, tensorrt_rtx
from deploykit.backends._plugins import Use
from deploykit.errors import BackendError, InputError, ModelError, OptionError
from deploykit.files import artifacts
from deploykit.ops import launching
from deploykit.ops.launching import Buffers, launcher
from deploykit.ops.plugin import OPS
from deploykit.pipeline import building
from deploykit.recipes import opened

if TYPE_CHECKING:
    from pathlib import Path

HERE = tensorrt_rtx.availability()
needs_builder = pytest.mark.skipif(not HERE.builds, reason=HERE.reason)
OP_NAMES = ("DKBatchedNms", "DKMultiscaleRoiAlign", "DKRoiPool")
ROWS, CHANNELS, KEPT = 6, 4, 5


def graph(path: Path, **nms: Any) -> Path:
    """Write a model of all three ops: NMS, then both ways of pooling."""
    info, (f32, i32) = helper.make_tensor_value_info, (TensorProto.FLOAT, TensorProto.INT32)
    inputs = [
        info("boxes", f32, ["batch", ROWS, 4]),
        info("scores", f32, ["batch", ROWS]),
        info("classes", i32, ["batch", ROWS]),
        info("fine", f32, ["batch", CHANNELS, 16, 20]),
        info("coarse", f32, ["batch", CHANNELS, 8, 10]),
    ]
    outputs = [
        info("kept", f32, ["batch", KEPT, 4]),
        info("count", i32, ["batch"]),
        info("aligned", f32, [None, CHANNELS, 3, 3]),
        info("pooled", f32, [None, CHANNELS, 2, 2]),
    ]
    tags: Any = {"domain": "deploykit", "plugin_namespace": "deploykit", "plugin_version": "1"}
    middle = ["kept", "best", "labels", "indices", "count"]
    scales: Any = {"spatial_scales": [0.25, 0.125]}
    nodes = [
        helper.make_node(
            OP_NAMES[0],
            ["boxes", "scores", "classes"],
            middle,
            name="keep",
            **{"max_detections": KEPT, **nms},
            **tags,
        ),
        helper.make_node(
            OP_NAMES[1],
            ["kept", "count", "fine", "coarse"],
            ["aligned"],
            name="align",
            output_height=3,
            output_width=3,
            **scales,
            **tags,
        ),
        helper.make_node(
            OP_NAMES[2],
            ["kept", "count", "fine"],
            ["pooled"],
            name="pool",
            output_height=2,
            output_width=2,
            spatial_scale=0.25,
            **tags,
        ),
    ]
    values = [
        info("best", f32, ["batch", KEPT]),
        info("labels", i32, ["batch", KEPT]),
        info("indices", i32, ["batch", KEPT]),
    ]
    made = helper.make_graph(nodes, "ops", inputs, outputs, value_info=values)
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("deploykit", 1)]
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), path)
    return path


SHAPES = {
    name: ((1, *rest), (1, *rest), (2, *rest))
    for name, rest in (
        ("boxes", (ROWS, 4)),
        ("scores", (ROWS,)),
        ("classes", (ROWS,)),
        ("fine", (CHANNELS, 16, 20)),
        ("coarse", (CHANNELS, 8, 10)),
    )
}


def build(path: Path, plugins: str, *sms: str) -> Any:
    options = BuildOptions(sms=sms, shapes=SHAPES, plugins=plugins)
    return tensorrt_rtx.build(opened.read(path), path.with_suffix(".engine"), options)


# --- the build --------------------------------------------------------------------------------


@needs_builder
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_an_engine_has_our_ops_as_plugins_or_as_standard_ops(choice: str, tmp_path: Path) -> None:
    built = build(graph(tmp_path / "ops.onnx"), choice, "75", "86")
    assert built.plugins["how"] == {"auto": "python", "none": "none"}[choice]
    assert built.plugins["ops"] == dict.fromkeys(OP_NAMES, 1)
    plan = (tmp_path / "ops.engine").read_bytes()
    assert all((op.encode() in plan) == (choice == "auto") for op in OP_NAMES), (
        "named in the engine"
    )


@needs_builder
@pytest.mark.parametrize(
    ("choice", "note"),
    [
        ("auto", "plugins for 1 x DKBatchedNms, .*: where it runs, it needs deploykit and nvcc .*"),
        ("none", "standard ops for 1 x DKBatchedNms, .*: it runs without plugins"),
    ],
)
def test_a_build_says_what_the_engine_needs(choice: str, note: str, tmp_path: Path) -> None:
    options = BuildOptions(sms=("86",), shapes=SHAPES, plugins=choice)
    made = pipeline.build(
        graph(tmp_path / "ops.onnx"), tmp_path / "ops.engine", "tensorrt_rtx", options
    )
    assert re.fullmatch(note, made.notes[-1])


@pytest.mark.parametrize(
    ("choice", "needed"),
    [("auto", "nvcc"), ("none", "runs without plugins"), ("lib/x.so", "this very x.so")],
)
def test_what_the_plugins_need_is_said_before_the_slow_step(
    choice: str, needed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        assert len(said) == 1
        raise BackendError("the slow step")

    monkeypatch.setattr(tensorrt_rtx, "build", refuse)
    with pytest.raises(BackendError, match="the slow step"):
        pipeline.build(
            graph(tmp_path / "ops.onnx"),
            tmp_path / "ops.engine",
            "tensorrt_rtx",
            BuildOptions(sms=("86",), plugins=choice),
            say=said.append,
        )
    assert "1 x DKBatchedNms" in said[0]
    assert needed in said[0]


def test_a_library_is_named_with_what_the_engine_needs() -> None:
    use = Use("library", {"DKRoiPool": 2}, library="/a/libdeploykit_plugins.so")
    (note,) = building._needs(_plugins.to_json(use))
    assert note == (
        "plugins for 2 x DKRoiPool: where it runs, it needs this very libdeploykit_plugins.so"
    )


@needs_builder
def test_a_plugin_that_the_registry_does_not_know_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plugins, "chosen", lambda *_: Use("none", {"DKRoiPool": 1}))
    monkeypatch.setattr(ops, "inline", lambda model, **_: ops.detach(model))
    with pytest.raises(BackendError, match="Plugin not found"):
        build(graph(tmp_path / "ops.onnx"), "auto", "86")
    assert not (tmp_path / "ops.engine").exists()


@needs_builder
def test_an_attribute_out_of_range_is_refused_before_the_build(tmp_path: Path) -> None:
    path = graph(tmp_path / "ops.onnx", iou_threshold=1.5)
    for choice in ("auto", "none"):
        with pytest.raises(ModelError, match=r"iou_threshold is 1\.5"):
            build(path, choice, "86")


def test_a_network_without_the_expected_plugin_layers_is_refused() -> None:
    layers = [SimpleNamespace(type="PLUGIN_V3"), SimpleNamespace(type="CONVOLUTION")]
    trt: Any = SimpleNamespace(LayerType=SimpleNamespace(PLUGIN_V3="PLUGIN_V3"))
    network: Any = SimpleNamespace(num_layers=2, get_layer=lambda i: layers[i])
    _plugins.check_layers(trt, network, Use("python", {"DKRoiPool": 1}))
    with pytest.raises(BackendError, match="has 1 plugin layers") as caught:
        _plugins.check_layers(trt, network, Use("python", {"DKRoiPool": 2}))
    assert "2 x DKRoiPool" in caught.value.expected


def test_a_library_that_is_absent_or_useless_is_refused(tmp_path: Path, toy: Any) -> None:
    model = toy().save(tmp_path / "toy.onnx")
    with pytest.raises(OptionError, match="no such plugin library"):
        _plugins.chosen(str(tmp_path / "absent.so"), {})
    with pytest.raises(OptionError, match="has none of our ops"):
        _plugins.chosen(str(model), {})
    with pytest.raises(OptionError, match="no use for --plugins"):
        onnxruntime.build(opened.read(model), tmp_path / "o.onnx", BuildOptions(plugins="none"))


@needs_builder
def test_a_file_that_is_no_library_is_named(tmp_path: Path) -> None:
    path = graph(tmp_path / "ops.onnx")
    with pytest.raises(BackendError, match="cannot be loaded as a plugin library"):
        build(path, str(path), "86")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin library, for one GPU; TENSORRT_INCLUDE_DIR says where the headers are."""
    headers = os.environ.get("TENSORRT_INCLUDE_DIR", "")
    if not headers:
        pytest.skip("TENSORRT_INCLUDE_DIR does not say where TensorRT's headers are")
    for tool in ("cmake", "nvcc"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine")
    folder = tmp_path_factory.mktemp("library")
    target = ["-DDEPLOYKIT_ARCHITECTURES=86-real", f"-DTENSORRT_INCLUDE_DIR={headers}"]
    source = str(OPS.folder())
    for step in (["-S", source, "-B", str(folder), *target], ["--build", str(folder)]):
        done = subprocess.run(["cmake", *step], capture_output=True, text=True, check=False)
        assert not done.returncode, done.stdout + done.stderr
    return folder / "libdeploykit_plugins.so"


@needs_builder
def test_the_library_gives_an_engine_its_plugins(library: Path, tmp_path: Path) -> None:
    built = build(graph(tmp_path / "ops.onnx"), str(library), "75", "86")
    assert built.plugins["how"] == "library"
    assert built.plugins["ops"] == dict.fromkeys(OP_NAMES, 1)
    assert built.plugins["sha256"] == artifacts.sha256(library)
    assert all(op.encode() in (tmp_path / "ops.engine").read_bytes() for op in OP_NAMES)


@needs_builder
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iou_threshold": 1.5}, "iou_threshold is 1.5; expected a number from 0 to 1"),
        ({"iou_threshold": float("nan")}, "iou_threshold is nan"),
        ({"candidates": 0}, "candidates is 0; expected an integer from 1 to 3840"),
        ({"grouping": "colour"}, "grouping is colour; expected mask or offset"),
        ({"max_detections": [1, 2]}, "max_detections is 2 values"),
    ],
)
def test_the_librarys_creators_say_what_is_wrong(
    wrong: dict[str, Any],
    message: str,
    library: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "check", lambda _: None)
    wrong = {"max_detections": KEPT, **wrong}
    path = graph(tmp_path / "ops.onnx", **wrong)
    with pytest.raises(BackendError) as caught:
        build(path, str(library), "86")
    assert message in str(caught.value)


# --- what an engine needs ---------------------------------------------------------------------


def described(engine: Path, use: Use) -> Path:
    engine.write_bytes(b"engine")
    artifacts.describe(engine, made_by={"verb": "build", "plugins": _plugins.to_json(use)})
    return engine


def test_the_sidecar_says_what_an_engine_needs(tmp_path: Path) -> None:
    use = Use("library", {"DKRoiPool": 1}, {"DKRoiPool": "1"}, "/x/lib.so", "0" * 64)
    assert _plugins.needed(described(tmp_path / "a.engine", use)) == use
    assert _plugins.needed(described(tmp_path / "b.engine", Use("none"))) is None
    (tmp_path / "c.engine").write_bytes(b"engine")
    assert _plugins.needed(tmp_path / "c.engine") is None
    sidecar = artifacts.sidecar(tmp_path / "a.engine")
    broken = json.loads(sidecar.read_text())
    for wrong in ([1], {"how": "magic"}, {"how": "library", "library": 1}, {"how": "none", "x": 1}):
        broken["made_by"]["plugins"] = wrong
        sidecar.write_text(json.dumps(broken))
        with pytest.raises(BackendError, match="does not say in a known form"):
            _plugins.needed(tmp_path / "a.engine")


def test_a_library_is_loaded_only_where_the_user_names_it_whatever_the_sidecar_says(
    tmp_path: Path,
) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"library")
    use = Use("library", {"DKRoiPool": 1}, {}, str(library), artifacts.sha256(library))
    engine = tmp_path / "a.engine"
    with pytest.raises(BackendError, match=r"needs the plugin library lib\.so") as caught:
        _plugins.check(use, engine)
    assert "--plugins lib.so" in caught.value.fix
    moved = library.rename(tmp_path / "moved.so")
    with ops.known(library=moved):
        assert _plugins.check(use, engine).library == str(moved)
        moved.write_bytes(b"another")
        with pytest.raises(BackendError, match="not the library the engine was built with"):
            _plugins.check(use, engine)
        with pytest.raises(BackendError, match="built with plugins from Python, not with"):
            _plugins.check(Use("python", sha256=_plugins.sources_sha256()), engine)
        moved.unlink()
        with pytest.raises(InputError, match="no such plugin library"):
            _plugins.check(use, engine)


def test_an_op_that_only_a_sidecar_names_is_not_looked_for(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="needs DKOwn, which is not known") as caught:
        _plugins.check(Use("python", {"DKOwn": 1}), tmp_path / "a.engine")
    assert "--op FILE" in caught.value.fix


def test_other_kernel_sources_than_at_the_build_are_an_error(tmp_path: Path) -> None:
    use = Use("python", sha256=_plugins.sources_sha256())
    assert _plugins.check(use, tmp_path / "a.engine") == use
    with pytest.raises(BackendError, match="other kernel sources"):
        _plugins.check(replace(use, sha256="1" * 64), tmp_path / "a.engine")


class Registry:
    """A registry that takes an op once, as TensorRT's does."""

    def __init__(self) -> None:
        self.all_creators: list[Any] = []

    def load_library(self, path: str) -> object:
        assert not self.all_creators, path
        self.all_creators = [
            SimpleNamespace(name=op, plugin_namespace="deploykit") for op in OP_NAMES
        ]
        return object()


def module(registry: Registry) -> Any:
    return SimpleNamespace(
        __name__="tensorrt", IPluginV3=object, get_plugin_registry=lambda: registry
    )


def test_engines_of_one_process_have_plugins_of_one_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_plugins, "_loaded", {})
    library, copy, other = (tmp_path / name for name in ("a.so", "copy.so", "other.so"))
    for path, content in ((library, b"a"), (copy, b"a"), (other, b"b")):
        path.write_bytes(content)
    trt = module(Registry())
    for path in (library, library, copy):
        _plugins.load(trt, path)
    with pytest.raises(BackendError, match="DKRoiPool came from elsewhere") as caught:
        _plugins.load(trt, other)
    assert "a process of its own" in caught.value.fix
    with pytest.raises(BackendError, match="DKRoiPool came from elsewhere"):
        _plugins.register(trt, Use("python", {"DKRoiPool": 1}), print)


def test_a_tensorrt_without_such_plugins_is_told_from_one_with(tmp_path: Path) -> None:
    old: Any = SimpleNamespace(__name__="tensorrt", __version__="8.6.1")
    library = str(tmp_path / "lib.so")
    for use in (Use("python", {"DKRoiPool": 1}), Use("library", {}, {}, library)):
        with pytest.raises(BackendError, match=r"tensorrt 8\.6\.1 has no plugins") as caught:
            _plugins.register(old, use, print)
        assert caught.value.fix == "build with --plugins none"
    _plugins.register(old, Use("none", {"DKRoiPool": 1}), print)


# --- the launchers ----------------------------------------------------------------------------


@pytest.mark.parametrize("boxes", [1, 2, 63, 64, 65, 1000, 4096, 4097, 9000])
@pytest.mark.parametrize("candidates", [1, 64, 1000, 3840])
def test_the_workspace_is_as_large_as_the_source_says(boxes: int, candidates: int) -> None:
    how = launcher(ops.shipped()["DKBatchedNms"])
    defaults = {a.name: a.default for a in OPS.load("batched_nms").attributes}
    values, shapes = {**defaults, "candidates": candidates}, [(3, boxes, 4)]
    assert how.workspace is not None
    library = host_build.compiled("batched_nms.cu")
    wanted = library.deploykit_batched_nms_workspace(ctypes.byref(how.params(values, shapes)))
    assert how.workspace(values, shapes) == wanted


def arrays(batch: int = 2) -> tuple[list[np.ndarray], dict[str, Any]]:
    rng = np.random.default_rng(0)
    corners = rng.random((batch, ROWS, 2)) * 30
    boxes = np.concatenate([corners, corners + rng.random((batch, ROWS, 2)) * 60], 2)
    scores = rng.random((batch, ROWS))
    classes = rng.integers(0, 2, (batch, ROWS))
    return [boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int32)], {}


def enqueue(op: str, inputs: list[np.ndarray], outputs: list[np.ndarray], **given_: Any) -> None:
    """Run a plugin's `enqueue` with the kernels that the host's compiler made."""
    plugin = ops.shipped()[op]
    values = ops.complete(plugin, given_, op)
    trt = pytest.importorskip("tensorrt_rtx")
    made = _python_plugins.make_plugin(trt, plugin, values)
    types = {"float16": trt.DataType.HALF, "int32": trt.DataType.INT32}
    described_ = [
        SimpleNamespace(dims=a.shape, max=a.shape, type=types.get(str(a.dtype), trt.DataType.FLOAT))
        for a in inputs
    ]
    scratch = np.empty(made.get_workspace_size(described_, []) + 16, np.uint8)
    aligned = scratch.ctypes.data + -scratch.ctypes.data % 16
    addresses = [[a.ctypes.data for a in side] for side in (inputs, outputs)]
    made.enqueue(described_, [], *addresses, aligned, 0)


def test_enqueue_gives_the_launcher_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the host: the arguments are the same on a GPU."""
    (boxes, scores, classes), _ = arrays()
    rng = np.random.default_rng(1)
    sizes = [((2, KEPT, 4), "f4"), ((2, KEPT), "f4"), *[((2, KEPT), "i4")] * 2, ((2,), "i4")]
    kept = [np.empty(shape, dtype) for shape, dtype in sizes]
    monkeypatch.setattr(
        _python_plugins, "kernels", lambda plugin: host_build.compiled(plugin.source)
    )
    enqueue("DKBatchedNms", [boxes, scores, classes], kept, max_detections=KEPT)
    wanted = ops.torch_op("batched_nms")(
        *map(torch.from_numpy, (boxes, scores, classes)), max_detections=KEPT
    )
    for ours, theirs in zip(kept, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs.numpy())

    regions, count = kept[0], kept[4]
    for dtype in (np.float32, np.float16):
        maps = [rng.standard_normal((2, CHANNELS, *s)).astype(dtype) for s in ((16, 20), (8, 10))]
        scales = {"spatial_scales": (0.25, 0.125), "first_level": 4}
        for op, features, options in (
            ("multiscale_roi_align", maps, scales),
            ("roi_pool", maps[0], {"spatial_scale": 0.25}),
        ):
            name = OPS.load(op).name
            found = np.empty((2 * KEPT, CHANNELS, 7, 7), dtype)
            several = features if isinstance(features, list) else [features]
            enqueue(name, [regions, count, *several], [found], **options)
            tensors = [torch.from_numpy(m) for m in several]
            expected = ops.torch_op(op)(
                torch.from_numpy(regions),
                torch.from_numpy(count),
                tensors if isinstance(features, list) else tensors[0],
                **options,
            ).numpy()
            np.testing.assert_allclose(found, expected, atol=2e-3 if dtype == np.float16 else 1e-5)


def test_a_cuda_error_is_told() -> None:
    plugin = ops.load("roi_pool")
    library = host_build.compiled("roi_pool.cu")
    params = launcher(plugin).params(
        {"output_height": 0, "output_width": 1, "spatial_scale": 1.0},
        [(1, 1, 4), (1,), (1, 1, 2, 2)],
    )
    with pytest.raises(BackendError, match="DKRoiPool failed: CUDA error 1"):
        launching.launch(library, plugin, params, Buffers([0, 0, 0], [0]))


def test_without_nvcc_the_kernels_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(BackendError, match="nvcc, which is not on PATH"):
        _python_plugins.kernels(ops.shipped()["DKRoiPool"])


# --- the creators -----------------------------------------------------------------------------

_VALUES = st.one_of(
    st.integers(-(2**31), 2**31 - 1).map(lambda v: ("INT32", np.array([v], np.int32))),
    st.lists(st.floats(width=32), max_size=7).map(lambda v: ("FLOAT32", np.array(v, np.float32))),
    st.binary(max_size=8).map(lambda v: ("CHAR", v)),
)


@needs_builder
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(OP_NAMES), st.data())
def test_a_creator_makes_a_plugin_or_says_why_not(op: str, data: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    plugin = ops.shipped()[op]
    names = st.sampled_from([*(a.name for a in plugin.attributes), "unheard_of"])
    chosen = data.draw(st.dictionaries(names, _VALUES, max_size=4))
    said: list[str] = []
    creator = _python_plugins.make_creator(trt, plugin, said.append)
    fields = [
        trt.PluginField(name, value, getattr(trt.PluginFieldType, kind))
        for name, (kind, value) in chosen.items()
    ]
    collection = trt.PluginFieldCollection(fields)
    made = creator.create_plugin("node", collection, trt.TensorRTPhase.BUILD)
    assert (made is None) == bool(said), said
    assert all(line.startswith(f"[E] {op}: ") for line in said)


MIRROR = """
import sys, numpy as np, tensorrt_rtx as trt
from deploykit import ops
from deploykit.backends import _plugins, _python_plugins, _trt

heard = []
log = _trt.logger(trt, heard.append)
builder = trt.Builder(log)
_plugins.load(trt, __import__("pathlib").Path(sys.argv[1]))
rng, registry = np.random.default_rng(0), trt.get_plugin_registry()
EDGES = [0, 1, 2, -1, 7, 10, 11, 16, 17, 64, 65, 3840, 3841, 2**31 - 1]
FLOATS = [0.0, 0.5, 1.0, 1.01, -0.5, 0.009, 0.02, 224.0, 3e38, np.nan, np.inf, -np.inf]

def wild(default):
    kind = type(default)
    if rng.random() < 0.1:  # another type
        kind = str if kind in (float, tuple) else float
    if kind is int:
        return np.array([rng.choice(EDGES)], np.int32), trt.PluginFieldType.INT32
    if kind is str:
        text = rng.choice(["mask", "offset", "avg", "max", "x", "maximum"])
        return str(text).encode(), trt.PluginFieldType.CHAR
    count = rng.integers(1, 8) if kind is tuple else 1
    return rng.choice(FLOATS, count).astype(np.float32), trt.PluginFieldType.FLOAT32

made = {True: 0, False: 0}
for name, plugin in ops.shipped().items():
    if not plugin.source:
        continue
    theirs = registry.get_creator(name, plugin.version, "deploykit")
    ours = _python_plugins.make_creator(trt, plugin, lambda _: None)
    defaults = {a.name: a.default for a in plugin.attributes}
    for _ in range(400):
        fields = _python_plugins._fields(trt, defaults)
        kept = []
        for place in rng.choice(len(fields), rng.integers(0, 3), replace=False):
            data, kind = wild(list(defaults.values())[place])
            kept.append(data)
            fields[place] = trt.PluginField(fields[place].name, data, kind)
        given = trt.PluginFieldCollection(fields)
        phase, said = trt.TensorRTPhase.BUILD, len(heard)
        results = [c.create_plugin("n", given, phase) is not None for c in (theirs, ours)]
        seen = [(f.name, f.data) for f in fields]
        assert results[0] == results[1], (name, results, seen, heard[said:])
        assert results[0] == (len(heard) == said), (name, seen, heard[said:])
        made[results[0]] += 1
print(made)
assert min(made.values()) > 200
"""


@needs_builder
def test_the_librarys_creators_take_what_those_in_python_take(library: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MIRROR, str(library)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
