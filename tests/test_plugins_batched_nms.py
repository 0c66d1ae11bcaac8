"""DKBatchedNms against torchvision: the torch reference, both ONNX bodies, the CUDA source."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import host_build
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import boxes as vision

from deploykit import ops
from deploykit.backends import BuildOptions, tensorrt_rtx
from deploykit.errors import ModelError, OptionError
from deploykit.ops.plugin import OPS
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from host_build import Order
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Batch = tuple[Array, Array, Array]
    Images = tuple[Array, Array, Array]
    Run = Callable[..., list[Array]]

PLUGIN = OPS.load("batched_nms")
DEFAULTS = {a.name: a.default for a in PLUGIN.attributes}
INPUTS = ("boxes", "scores", "classes")
OUTPUTS = ("boxes", "scores", "classes", "indices", "count")
SPECIAL = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 0.0, -0.0, 1e-40, 5.0], np.float32)
EVERYTHING = {"score_threshold": -1e30, "candidates": 3840}
BUILDER = tensorrt_rtx.availability()
LIMIT = PLUGIN.reference.__globals__["limit"]

# --- cases: one image each ---------------------------------------------------------------------


def scattered(rng: np.random.Generator, n: int, spread: float = 300.0) -> Batch:
    corner, size = rng.random((n, 2)) * spread, rng.random((n, 2)) * 100 + 1
    boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
    return boxes, rng.random(n, np.float32), rng.integers(0, 5, n).astype(np.int32)


def crowded(rng: np.random.Generator, n: int) -> Batch:
    return scattered(rng, n, 25.0)


def far_away(rng: np.random.Generator, n: int) -> Batch:
    boxes, scores, classes = scattered(rng, n, 30.0)
    return boxes + np.float32(rng.choice([1e5, -1e4, -60.0])), scores, classes


def on_a_grid(rng: np.random.Generator, n: int) -> Batch:
    """IoUs are fractions of small numbers, so many are exactly a threshold; scores are few."""
    boxes, _, classes = scattered(rng, n)
    boxes = (boxes // 32).astype(np.float32)
    return boxes, rng.choice([0.05, 0.25, 0.3, 1.0], n).astype(np.float32), classes


def all_equal(rng: np.random.Generator, n: int) -> Batch:
    boxes, scores, classes = scattered(rng, n)
    return boxes, np.full_like(scores, rng.choice([0.0, 0.05, 0.9])), classes


def one_place(rng: np.random.Generator, n: int) -> Batch:
    boxes, scores, classes = scattered(rng, n)
    return np.tile(boxes[:1], (n, 1)), scores, classes


def chain(rng: np.random.Generator, n: int) -> Batch:
    """Each box overlaps the next too much, and only that: every other one stays."""
    step = np.arange(n, dtype=np.float32)[:, None] * 3
    boxes = np.concatenate([step, 0 * step, step + 10, 0 * step + 10], 1)
    return boxes, np.linspace(1, 0.1, n, dtype=np.float32), rng.integers(0, 2, n).astype(np.int32)


def hostile(rng: np.random.Generator, n: int) -> Batch:
    """NaN, infinite, inverted and empty boxes; odd scores and class numbers."""
    boxes, scores, classes = scattered(rng, n, 30.0)
    boxes = np.where(rng.random((n, 4)) < 0.15, rng.choice(SPECIAL, (n, 4)), boxes)
    boxes = np.where(rng.random((n, 1)) < 0.2, boxes[:, [2, 1, 0, 3]], boxes)
    boxes[rng.random(n) < 0.1, 2:] = 0
    scores = np.where(rng.random(n) < 0.3, rng.choice(SPECIAL, n), scores)
    odd = rng.choice(np.array([-1, -(2**31), 2**31 - 1, 2**24 + 1], np.int32), n)
    return boxes, scores, np.where(rng.random(n) < 0.1, odd, classes)


def one_unknown(rng: np.random.Generator, n: int) -> Batch:
    """One NaN in the best box: the distance by which `offset` moves the classes is NaN."""
    boxes, scores, classes = crowded(rng, n)
    boxes[scores.argmax(), rng.integers(4)] = np.nan
    return boxes, scores, classes


def worthless(rng: np.random.Generator, n: int) -> Batch:
    boxes, scores, classes = scattered(rng, n)
    return boxes, np.full_like(scores, rng.choice([np.nan, -np.inf, -1e38])), classes


KINDS = (
    scattered,
    crowded,
    far_away,
    on_a_grid,
    all_equal,
    one_place,
    chain,
    hostile,
    one_unknown,
    worthless,
)
ATTRIBUTES: tuple[dict[str, Any], ...] = (
    {},
    {"grouping": "offset", "iou_threshold": 0.6, "score_threshold": 0.0},
    {"class_agnostic": 1, "iou_threshold": 0.3, "max_detections": 7},
    {"candidates": 20, "max_detections": 40, "iou_threshold": 0.7, "score_threshold": -1.0},
    {"max_detections": 1, "grouping": "offset", "class_agnostic": 1, "score_threshold": 0.3},
    {"iou_threshold": 0.0, "score_threshold": 0.25},
    {"iou_threshold": 1.0, "max_detections": 300, "grouping": "offset", **EVERYTHING},
    {"iou_threshold": 0.1, "candidates": 1, "score_threshold": 0.05},
)


def batch(seed: int, images: int, n: int) -> Images:
    """Return `images` cases of every kind in turn."""
    rng = np.random.default_rng(seed)
    cases = [KINDS[i % len(KINDS)](rng, n) for i in range(images)]
    boxes, scores, classes = (np.stack(part) for part in zip(*cases, strict=True))
    return boxes.astype(np.float32), scores.astype(np.float32), classes.astype(np.int32)


# --- what torchvision says ---------------------------------------------------------------------


def chosen(case: Batch, a: Mapping[str, Any]) -> list[int]:
    """Return the indices that torchvision keeps of one image, best first, ties by index."""
    boxes, scores, classes = case
    entering = np.flatnonzero(scores > np.float32(a["score_threshold"]))
    order = entering[np.argsort(-scores[entering], kind="stable")][: a["candidates"]]
    b, s = torch.from_numpy(boxes[order]), torch.from_numpy(scores[order])
    groups, threshold = torch.from_numpy(classes[order]).long(), float(a["iou_threshold"])
    if a["class_agnostic"]:
        kept = torchvision.ops.nms(b, s, threshold)
    elif a["grouping"] == "offset":
        kept = vision._batched_nms_coordinate_trick(b, s, groups, threshold)
    else:
        kept = vision._batched_nms_vanilla(b, s, groups, threshold)
    found: list[int] = order[np.sort(kept.numpy())][: a["max_detections"]].tolist()
    return found


def expected(inputs: Images, a: Mapping[str, Any]) -> list[Array]:
    images, most = len(inputs[1]), a["max_detections"]
    boxes, scores = np.zeros((images, most, 4), np.float32), np.zeros((images, most), np.float32)
    classes, indices = (np.full((images, most), -1, np.int32) for _ in range(2))
    count = np.zeros(images, np.int32)
    for i, case in enumerate(zip(*inputs, strict=True)):
        kept = chosen(case, a)
        count[i] = len(kept)
        for value, source in zip((boxes, scores, classes), case, strict=True):
            value[i, : len(kept)] = source[kept]
        indices[i, : len(kept)] = kept
    return [boxes, scores, classes, indices, count]


def assert_same(runs: Run | Sequence[Run], inputs: Images, **attributes: Any) -> None:
    """Check that every run gives what torchvision gives, bit by bit."""
    a = DEFAULTS | attributes
    wanted = expected(inputs, a)
    for run in [runs] if callable(runs) else runs:
        for name, found, value in zip(OUTPUTS, run(inputs, a), wanted, strict=True):
            np.testing.assert_array_equal(found, value, err_msg=f"{name} with {a}", strict=True)


# --- the forms ---------------------------------------------------------------------------------


def in_torch(inputs: Images, a: Mapping[str, Any]) -> list[Array]:
    results = PLUGIN.reference(*map(torch.from_numpy, inputs), **a)
    return [result.numpy() for result in results]


def node_model(n: int, attributes: Mapping[str, Any], sizes: Any = None) -> ir.Model:
    """Return a model of one DKBatchedNms."""
    boxes, scores, classes = sizes or ([n, 4], [n], [n])
    kinds = (ir.DataType.FLOAT, ir.DataType.FLOAT, ir.DataType.INT32)
    inputs = [
        ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(["batch", *size]))
        for name, kind, size in zip(INPUTS, kinds, (boxes, scores, classes), strict=True)
    ]
    node = ir.node(
        PLUGIN.name,
        inputs,
        {**attributes, "plugin_namespace": "deploykit", "plugin_version": "1"},
        domain="deploykit",
        outputs=[ir.Value(name=f"out_{name}") for name in OUTPUTS],
        name="nms",
    )
    most = int(attributes.get("max_detections", 100))
    for value, rest in zip(node.outputs, ([most, 4], [most], [most], [most], []), strict=True):
        real = value.name in ("out_boxes", "out_scores")
        value.type = ir.TensorType(ir.DataType.FLOAT if real else ir.DataType.INT32)
        value.shape = ir.Shape(["batch", *rest])
    opsets = {"": 19, "deploykit": 1}
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports=opsets, name="g")
    return ir.Model(graph, ir_version=10)


FORMS = {"runtime": ops.attach, "portable": ops.inline}


def in_onnx(form: str, n: int, attributes: Mapping[str, Any]) -> Run:
    model = node_model(n, attributes)
    FORMS[form](model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda inputs, _: session.run(None, dict(zip(INPUTS, inputs, strict=True)))


class Params(ctypes.Structure):
    """BatchedNmsParams."""

    _fields_ = (
        ("batch", ctypes.c_int),
        ("boxes", ctypes.c_int),
        ("candidates", ctypes.c_int),
        ("max_detections", ctypes.c_int),
        ("iou_threshold", ctypes.c_float),
        ("score_threshold", ctypes.c_float),
        ("class_agnostic", ctypes.c_int),
        ("offset_grouping", ctypes.c_int),
    )


def params(shape: tuple[int, ...], a: Mapping[str, Any]) -> Params:
    by_offset = int(a["grouping"] == "offset")
    values = [a[name] for name, _ in Params._fields_[2:-1]]
    return Params(*shape, *values, by_offset)


class Host:
    """The CUDA source, compiled for the CPU."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.deploykit_batched_nms_workspace.restype = ctypes.c_size_t

    def launch(self, call: Params, arrays: list[Array], workspace: Array) -> int:
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in arrays]
        start = ctypes.c_void_p(-(-workspace.ctypes.data // 16) * 16)
        return int(self.library.deploykit_batched_nms(ctypes.byref(call), *pointers, start, None))

    def __call__(self, inputs: Images, a: Mapping[str, Any]) -> list[Array]:
        """Return the outputs; every array starts dirty, and nothing is written beyond."""
        call, (images, _) = params(inputs[1].shape, a), inputs[1].shape
        shapes = [(images, a["max_detections"], 4), *[(images, a["max_detections"])] * 3, (images,)]
        types = (np.float32, np.float32, np.int32, np.int32, np.int32)
        outputs = [np.full(s, 7, t) for s, t in zip(shapes, types, strict=True)]
        size = self.library.deploykit_batched_nms_workspace(ctypes.byref(call))
        workspace = np.full(size + 64, 0xA5, np.uint8)
        assert self.launch(call, [*inputs, *outputs], workspace) == 0
        assert (workspace[-48:] == 0xA5).all()
        return outputs

    def using(self, order: Order = "forward", threads: int = 32) -> Host:
        host_build.arrange(self.library, order=order, threads=threads)
        return self


@pytest.fixture(scope="session")
def host() -> Host:
    return Host(host_build.compiled(PLUGIN.source))


# --- the same in every form --------------------------------------------------------------------


@pytest.mark.parametrize("attributes", ATTRIBUTES)
def test_the_reference_is_torchvisions_nms(attributes: dict[str, Any]) -> None:
    assert_same(in_torch, batch(1, 80, 60), **attributes)


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize("form", FORMS)
def test_both_bodies_are_torchvisions_nms(form: str, attributes: dict[str, Any]) -> None:
    assert_same(in_onnx(form, 60, attributes), batch(2, 80, 60), **attributes)


@pytest.mark.parametrize("attributes", ATTRIBUTES)
@pytest.mark.parametrize(("order", "threads"), [("forward", 32), ("reverse", 1), ("shuffled", 256)])
def test_the_kernels_are_torchvisions_nms(
    host: Host, order: Order, threads: int, attributes: dict[str, Any]
) -> None:
    assert_same(host.using(order, threads), batch(3 + threads, 40, 150), **attributes)


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 256, 257])
def test_any_number_of_boxes_is_right(host: Host, n: int) -> None:
    bodies = [in_onnx(form, n, EVERYTHING) for form in FORMS]
    assert_same([in_torch, host.using(), *bodies], batch(n, 10, n), **EVERYTHING)


@pytest.mark.parametrize("threads", [0, 32])
@pytest.mark.parametrize("order", host_build.ORDERS)
def test_kernels_as_wide_as_on_a_gpu_are_right_in_any_order(
    host: Host, order: Order, threads: int
) -> None:
    assert_same(host.using(order, threads), batch(threads, 10, 700), **EVERYTHING)


def test_no_image_and_no_box_give_no_results(host: Host) -> None:
    runs: list[Run] = [in_torch, host.using()]
    for images, n in ((0, 5), (3, 0), (0, 0)):
        assert_same(runs, empty(images, n))
    assert_same([in_onnx(form, 5, {}) for form in FORMS], empty(0, 5))


def empty(images: int, n: int) -> Images:
    shape = (images, n)
    return np.zeros((*shape, 4), np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.int32)


# --- sizes of real detectors -------------------------------------------------------------------


def of_detector(seed: int, images: int, n: int, labels: int, power: int) -> Images:
    """Return n / labels places with a score for every label; the power decides how many count."""
    rng = np.random.default_rng(seed)
    corner = rng.random((images, n // labels, 2), np.float32) * 800
    sides = rng.random((images, n // labels, 2), np.float32) * 200
    boxes = np.repeat(np.concatenate([corner, corner + sides], 2), labels, 1)
    scores = rng.random((images, n), np.float32) ** power
    return boxes, scores, np.tile(np.arange(labels, dtype=np.int32), (images, n // labels))


RPN = {"iou_threshold": 0.7, "score_threshold": 0.0, "max_detections": 1000}
FINAL = {"candidates": 3840}


def test_the_proposals_of_an_rpn_are_right(host: Host) -> None:
    bodies = [in_onnx(form, 1000, RPN) for form in FORMS]
    assert_same([in_torch, host.using(), *bodies], of_detector(4, 5, 1000, 1, 1), **RPN)


@pytest.mark.parametrize("power", [20, 60])
def test_the_last_stage_of_a_detector_is_right(host: Host, power: int) -> None:
    runs: list[Run] = [in_torch, host.using(), in_onnx("runtime", 90_000, FINAL)]
    assert_same(runs, of_detector(5, 1, 90_000, 90, power), **FINAL)


@pytest.mark.parametrize(
    ("n", "attributes"),
    [
        (20_000, {"candidates": 1000, "score_threshold": -1.0}),
        (20_000, {"candidates": 1000, "score_threshold": -1.0, "grouping": "offset"}),
        (100_000, {"candidates": 3840, "max_detections": 3840, "class_agnostic": 1}),
        (9000, {"candidates": 9000, "max_detections": 9000, "class_agnostic": 1}),
    ],
)
def test_kernels_take_many_boxes_and_more_candidates_than_a_body(
    host: Host, n: int, attributes: dict[str, Any]
) -> None:
    assert_same(host.using("shuffled"), of_detector(6, 1, n, 1, 3), **attributes)


def test_candidates_with_equal_scores_enter_by_index(host: Host) -> None:
    """5000 boxes of few scores: the last digits of the keys decide who is among 1000."""
    boxes, _, classes = of_detector(7, 2, 5000, 1, 1)
    scores = np.random.default_rng(7).choice([0.5, 0.25, -0.0, 0.0], (2, 5000)).astype(np.float32)
    attributes = {"candidates": 1777, "score_threshold": -1.0, "max_detections": 1777}
    runs: list[Run] = [in_torch, host.using("reverse"), in_onnx("runtime", 5000, attributes)]
    assert_same(runs, (boxes, scores, classes), **attributes)
    assert_same(runs, (boxes, np.full_like(scores, -0.0), classes), **attributes)


# --- thresholds --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
    st.integers(0, 100).map(lambda percent: percent / 100),
)
def test_an_iou_at_the_threshold_is_judged_as_in_float64(parts: tuple[int, int], t: float) -> None:
    iou = np.float32(parts[0]) / np.float32(parts[1])
    threshold = np.float32(LIMIT(float(np.float32(t))))
    assert (iou > threshold) == (float(iou) > t)
    assert float(threshold) <= t


def test_every_form_judges_fractions_at_the_threshold_alike(host: Host) -> None:
    """Boxes 10 wide of which 1 to 10 are shared with the first: IoU is 0.1, 0.2 and so on."""
    wide = np.array([[0, 0, 10, 10], *([0, 0, 10, k] for k in range(1, 11))], np.float32)
    inputs = (
        wide[None],
        np.linspace(1, 0.5, 11, dtype=np.float32)[None],
        np.zeros((1, 11), np.int32),
    )
    for tenths in range(11):
        attributes = {"iou_threshold": tenths / 10}
        bodies = [in_onnx(form, 11, attributes) for form in FORMS]
        assert_same([in_torch, host.using(), *bodies], inputs, **attributes)


@st.composite
def images(draw: st.DrawFn) -> Images:
    n = draw(st.integers(1, 12))
    side = st.integers(-3, 9).map(float) | st.sampled_from(SPECIAL.tolist())
    score = st.sampled_from([0.0, 0.05, 0.06, 0.5, 1.0, *SPECIAL.tolist()])
    boxes = draw(st.lists(st.lists(side, min_size=4, max_size=4), min_size=n, max_size=n))
    scores = draw(st.lists(score, min_size=n, max_size=n))
    classes = draw(st.lists(st.integers(-2, 3), min_size=n, max_size=n))
    return (
        np.array([boxes], np.float32),
        np.array([scores], np.float32),
        np.array([classes], np.int32),
    )


@settings(deadline=None, max_examples=150)
@given(images(), st.sampled_from(ATTRIBUTES), st.sampled_from(host_build.ORDERS))
def test_whatever_the_numbers_are_reference_and_kernels_are_torchvisions_nms(
    host: Host, inputs: Images, attributes: dict[str, Any], order: Order
) -> None:
    assert_same([in_torch, host.using(order, 3)], inputs, **attributes)


# --- what is refused ---------------------------------------------------------------------------

INVALID = [
    ({"iou_threshold": 1.5}, "iou_threshold is 1.5\nexpected: a number from 0 to 1"),
    ({"iou_threshold": float("nan")}, "iou_threshold is nan"),
    ({"iou_threshold": -0.1}, "iou_threshold is -0.1"),
    ({"score_threshold": float("inf")}, "score_threshold is inf\nexpected: a finite number"),
    ({"score_threshold": float("nan")}, "score_threshold is nan"),
    ({"candidates": 0}, "candidates is 0\nexpected: 1 to 3840"),
    ({"candidates": 3841}, "candidates is 3841"),
    ({"candidates": 10.5}, "candidates is 10.5"),
    ({"max_detections": -1}, "max_detections is -1"),
    ({"max_detections": 2**40}, "max_detections is 1099511627776"),
    ({"class_agnostic": 2}, "class_agnostic is 2\nexpected: 0 or 1"),
    ({"grouping": "sum"}, "grouping is 'sum'\nexpected: mask or offset"),
    ({"topk": 5}, "has no attribute 'topk'"),
]


@pytest.mark.parametrize(("attributes", "message"), INVALID)
def test_attributes_that_are_not_valid_are_refused(
    attributes: dict[str, Any], message: str
) -> None:
    tensors = [torch.from_numpy(value) for value in empty(1, 3)]
    with pytest.raises(OptionError, match=message):
        ops.torch_op("batched_nms")(*tensors, **attributes)
    for form in FORMS.values():
        with pytest.raises(ModelError, match=message):
            form(node_model(3, attributes))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (([3, 5], [3], [3]), r"boxes are \[B, 3, 5\], expected \[B, N, 4\], N > 0"),
        (([3], [3], [3]), r"boxes are \[B, 3\], expected"),
        (([0, 4], [0], [0]), r"boxes are \[B, 0, 4\], expected"),
        (([3, 4], [4], [3]), r"3 boxes with scores \[4\] and classes \[3\] per image"),
        (([3, 4], [3], [3, 2]), r"3 boxes with scores \[3\] and classes \[3, 2\] per image"),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_shapes_that_do_not_fit_are_refused(form: str, sizes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        FORMS[form](node_model(3, {}, sizes))


@pytest.mark.parametrize(
    "attributes",
    [
        {"candidates": 0},
        {"candidates": 2**17 + 1},
        {"max_detections": 0},
        {"iou_threshold": float("nan")},
        {"iou_threshold": 1.01},
        {"score_threshold": float("nan")},
    ],
)
def test_the_launcher_refuses_them_too(host: Host, attributes: dict[str, Any]) -> None:
    call = params((1, 3), DEFAULTS | attributes)
    assert host.launch(call, [*empty(1, 3), *empty(1, 3), *empty(1, 3)[:2]], empty(1, 9)[0]) == 1
    assert host.launch(params((-1, 3), DEFAULTS), [*empty(1, 3)] * 2, empty(1, 9)[0]) == 1


# --- torch and TensorRT ------------------------------------------------------------------------


def test_torch_accepts_the_op_and_its_shapes() -> None:
    ops.torch_op("batched_nms")
    tensors = [torch.from_numpy(value) for value in batch(8, 2, 30)]
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.deploykit.batched_nms.default
    torch.library.opcheck(op, tuple(tensors), DEFAULTS, test_utils=checks)


@pytest.mark.skipif(not BUILDER.builds, reason=BUILDER.reason)
@pytest.mark.parametrize("sm", ["75", "86"])
@pytest.mark.parametrize(
    ("n", "attributes"),
    [(1000, RPN), (90_000, FINAL), (300, {"grouping": "offset", "max_detections": 400})],
)
def test_an_engine_is_built_from_the_portable_body(
    tmp_path: Path, n: int, attributes: dict[str, Any], sm: str
) -> None:
    model = node_model(n, attributes)
    ops.inline(model)
    path = tmp_path / "nms.onnx"
    path.write_bytes(ir.to_proto(model).SerializeToString())
    engine = path.with_suffix(".engine")
    tensorrt_rtx.build(opened.read(path), engine, BuildOptions(sms=(sm,)))
    assert 100_000 < engine.stat().st_size < 5_000_000  # no table of candidate pairs inside


def test_the_source_compiles_for_a_gpu(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    folder = OPS.folder()
    command = [nvcc, "-arch=sm_75", "-Werror=all-warnings", f"-I{folder}", "-c"]
    target = tmp_path / "nms.o"
    subprocess.run([*command, folder / PLUGIN.source, "-o", target], check=True)
    assert target.stat().st_size > 10_000
