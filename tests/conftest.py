"""Fixtures shared by the tests."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, settings
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploykit.data import sources
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray
    from torch import nn

settings.register_profile(
    "shared machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("shared machine")  # how long an example takes says nothing of the code

SIDE = 64
"""Height and width of the exported test model's input, in pixels."""


LONG = (
    "test_two_stage",
    "test_readme",
    "test_qat",
    "test_fuzz",
    "test_exporters",
    "test_sensitivity",
    "test_sizes",
    "test_detector_nets",
    "test_keras_mask_rcnn",
    "test_detector_settings",
    "test_ssd",
    "test_deformable_detr",
    "test_two_stage_variants",
    "test_bad_input",
    "test_point_rend",
    "test_planning",
)
"""Files that take longest, in this order."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first: where they came last, one process would wait."""
    last = len(LONG)
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, last))  # stable: else as they were


def pytest_sessionstart(session: pytest.Session) -> None:
    """Make a run of several processes shorter; one of a few files begins at once."""
    if hasattr(session.config, "workerinput"):
        import untraced

        untraced.install()


def pytest_configure() -> None:
    """Take interrupts, which the background jobs of a shell ignore: some tests send them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLOv6 pico for 6 classes, train form, with random weights and statistics."""
    import torch

    torch.manual_seed(0)
    network = RECIPES.load("yolov6").network("pico", 6)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0.0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    path = tmp_path_factory.mktemp("checkpoint") / "pico.pth"
    torch.save({"model": network.state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def model(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint exported at 64x64."""
    from deploykit.pipeline.exporting import ExportOptions, export

    path = tmp_path_factory.mktemp("model") / "pico.onnx"
    export(checkpoint, path, ExportOptions(input_size=(SIDE, SIDE)))
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight small generated photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for number, sample in enumerate(sources.dataset("shapes:count=8,size=96").samples):
        Image.fromarray(np.asarray(sample.read())).save(folder / f"{number}.jpg", quality=95)
    return folder


@pytest.fixture(scope="session")
def int8(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test model in INT8 with FP16 elsewhere."""
    from deploykit.pipeline.quantizing import QuantizeOptions, quantize

    path = tmp_path_factory.mktemp("int8") / "pico.int8.onnx"
    quantize(model, path, QuantizeOptions(source=f"folder:{photos}"))
    return path


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """Return a function that gives a network random weights and batch norm statistics."""
    import torch

    def change(network: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for key, value in network.state_dict().items():
            if "proj" in key or not value.is_floating_point():
                continue
            if key.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.ndim == 1 and key.endswith(("weight", "alpha")):
                value.uniform_(0.3, 0.8, generator=generator)
            elif value.ndim == 1:
                value.normal_(0, 0.2, generator=generator)
            else:
                value.normal_(0, (0.7 / value[0].numel()) ** 0.5, generator=generator)
        return network.eval()

    return change


class Toy:
    """Writes a residual convnet with a classifier, images[n, 3, 32, 32] -> logits[n, 10]."""

    def __init__(
        self, *, quantized: bool = False, half: bool = False, classify: bool = True
    ) -> None:
        """Make the graph; `quantized`: Q/DQ as TensorRT wants them, weights per channel."""
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.quantized = quantized
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)
        stem = self.conv("stem", "images", (16, 3, 3, 3), stride=2)
        inner = self.conv("block1", stem, (16, 16, 3, 3))
        outer = self.conv("block2", inner, (16, 16, 3, 3), relu=False)
        added = self.node("Add", "add", [outer, self.qdq("skip", stem, np.float32(0.05))])
        self.output = self.conv("head", self.node("Relu", "add_relu", [added]), (32, 16, 1, 1))
        if classify:
            flat = self.node(
                "Flatten", "flat", [self.node("GlobalAveragePool", "gap", [self.output])]
            )
            self.output = self.weighted("Gemm", "fc", flat, (10, 32), transB=1)

    def node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        """Append a node and return its output."""
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.y"], name=name, **attributes))
        return f"{name}.y"

    def weight(self, name: str, value: object) -> str:
        """Add an initializer and return its name."""
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def qdq(self, name: str, tensor: str, scale: object, **axis: int) -> str:
        """Return `tensor`, quantized and dequantized where the model is quantized."""
        if not self.quantized:
            return tensor
        scale = np.asarray(scale, self.dtype)
        pair = [self.weight(f"{name}.scale", scale)]
        pair.append(self.weight(f"{name}.zero", np.zeros(scale.shape, np.int8)))
        quantized = self.node("QuantizeLinear", f"{name}.Q", [tensor, *pair], **axis)
        return self.node("DequantizeLinear", f"{name}.DQ", [quantized, *pair], **axis)

    def weighted(
        self, op: str, name: str, x: str, shape: tuple[int, ...], **attributes: Any
    ) -> str:
        """Append a node with a random weight, per output channel, and a bias."""
        value = self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        scale = np.abs(value).reshape(shape[0], -1).max(1) / 127
        weight = self.weight(f"{name}.weight", value.astype(self.dtype))
        bias = self.weight(f"{name}.bias", np.zeros(shape[0], self.dtype))
        x = self.qdq(f"{name}.x", x, np.float32(0.05))
        return self.node(
            op, name, [x, self.qdq(f"{name}.w", weight, scale, axis=0), bias], **attributes
        )

    def conv(
        self, name: str, x: str, shape: tuple[int, ...], *, stride: int = 1, relu: bool = True
    ) -> str:
        """Append a convolution that keeps the size, or halves it, and mostly a ReLU."""
        kernel = list(shape[2:])
        pads = [k // 2 for k in kernel] * 2
        y = self.weighted(
            "Conv", name, x, shape, kernel_shape=kernel, pads=pads, strides=[stride, stride]
        )
        return self.node("Relu", f"{name}_relu", [y]) if relu else y

    def save(self, path: Path) -> Path:
        """Write the model and return its path."""
        dtype = TensorProto.FLOAT16 if self.dtype == np.float16 else TensorProto.FLOAT
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [value("images", dtype, ["n", 3, 32, 32])],
            [value(self.output, dtype, None)],
            self.weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        onnx.save(onnx.shape_inference.infer_shapes(model), path)
        return path


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    """The maker of a small convnet in any precision."""
    return Toy


@pytest.fixture
def graph() -> Callable[..., ir.Model]:
    """Return a function that parses a graph in ONNX's text form.

    Its weights are given by name: a tuple is the shape of random numbers, an array is taken as is;
    what the text does not name is left out.
    """

    def parse(text: str, opset: int = 19, **weights: tuple[int, ...] | NDArray[Any]) -> ir.Model:
        import onnx_ir as ir

        header = f'<ir_version: 9, opset_import: ["" : {opset}]> graph '
        proto = onnx.parser.parse_model(header + text)
        named = {name for node in proto.graph.node for name in node.input}
        rng = np.random.default_rng(0)
        for name, given in weights.items():
            array = np.asarray(given)
            if isinstance(given, tuple):
                scale = np.prod(given[1:] or (1,)) ** -0.5
                array = (rng.standard_normal(given) * scale).astype(np.float32)
            if name in named:
                proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return ir.from_proto(proto)

    return parse
