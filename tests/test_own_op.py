"""An op of the user's own: one file with its kernels, in a folder of theirs; no edit elsewhere."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import warnings
from types import SimpleNamespace
from typing import TYPE_CHECKING

import host_build
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from deploykit import cli, ops
from deploykit.backends import BuildOptions, _python_plugins, tensorrt_rtx
from deploykit.errors import BackendError, ModelError, OptionError
from deploykit.files import onnxfile
from deploykit.graph import fusion
from deploykit.ops.plugin import OPS
from deploykit.precision import float16, lint, placement
from deploykit.recipes import opened
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from pathlib import Path

HERE = tensorrt_rtx.availability()
needs_builder = pytest.mark.skipif(not HERE.builds, reason=HERE.reason)

PYTHON = '''
"""y = x + scale * shift[c]: what a channel is moved by."""
import ctypes

from deploykit.ops.plugin import Attribute, Input, Launcher, Output, Plugin


class Params(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("batch", "channels", "cells")]
    _fields_ += [("scale", ctypes.c_float)]


def params(values, shapes):
    batch, channels, height, width = shapes[0]
    return Params(batch, channels, height * width, values["scale"])


def reference(x, shift, *, scale):
    return x + scale * shift[:, :, None, None]


def body(op, call):
    x, shift = call.inputs
    return [op.Add(x, op.Mul(op.Unsqueeze(shift, [2, 3]), call.attributes["scale"]))]


plugin = Plugin(
    name="DKMoveChannels",
    version="1",
    inputs=(Input("x", "float32"), Input("shift", "float32")),
    outputs=(Output("y", "float32"),),
    attributes=(Attribute("scale", 1.0, "a number above 0", lambda v: v > 0),),
    reference=reference,
    fake=lambda x, shift, **_: x.new_empty(x.shape),
    runtime_body=body,
    portable_body=body,
    source="move_channels.cu",
    launcher=Launcher(params, ((((0, 0),), ((0, 1),), ((0, 2),), ((0, 3),)),)),
    why_float="adds what INT8 would round away",
)
'''
CUDA = """
#include "kernel.cuh"

struct Params { int batch, channels, cells; float scale; };

__global__ void deploykit_move(Params p, const float* x, const float* shift, float* y) {
  const int plane = blockIdx.x;
  for (int i = threadIdx.x; i < p.cells; i += blockDim.x)
    y[plane * p.cells + i] = x[plane * p.cells + i] + p.scale * shift[plane];
}

extern "C" int deploykit_move_channels(const Params* params, const float* x, const float* shift,
                                       float* y, cudaStream_t stream) {
  const Params p = *params;
  DEPLOYKIT_LAUNCH(deploykit_move, dim3(p.batch * p.channels), 64, 0, stream, p, x, shift, y);
  return static_cast<int>(cudaGetLastError());
}
"""


class Net(torch.nn.Module):
    """A convolution, the op, a convolution."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
        self.last = torch.nn.Conv2d(16, 16, 3, padding=1)
        self.move = ops.torch_op(file)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x)
        moved: torch.Tensor = self.move(features, features.mean((2, 3)), scale=0.5)
        result: torch.Tensor = self.last(moved)
        return result


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The op's file, its kernels beside it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "move_channels.cu").write_text(CUDA)
    path = folder / "move_channels.py"
    path.write_text(PYTHON)
    return path


@pytest.fixture(scope="module")
def network(file: Path) -> Net:
    return Net(file).eval()


@pytest.fixture(scope="module")
def model(network: Net, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as ONNX, with a function of standard ops for the op."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, 16, 16),),
            input_names=["images"],
            output_names=["y"],
            dynamo=True,
            opset_version=19,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table=ops.translations(),
            verbose=False,
        )
    assert program is not None
    fusion.fuse(program.model)
    ops.attach(program.model)
    path = tmp_path_factory.mktemp("model") / "own.onnx"
    onnxfile.write_model(program.model, path)
    return path


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what torch was told here be unknown, as in another process."""
    monkeypatch.setattr(ops.registry, "_called", {})


def test_the_op_is_traced_and_runs_in_onnx_runtime_as_in_torch(network: Net, model: Path) -> None:
    assert [n.op_type for n in onnx.load(model).graph.node if n.domain] == ["DKMoveChannels"]
    images = np.random.default_rng(0).random((3, 3, 16, 16), np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images})
    wanted = network(torch.from_numpy(images)).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_placement_float16_and_lint_take_what_the_file_declares(file: Path, model: Path) -> None:
    with ops.known(file):
        graph = onnxfile.read_model(model)
        kept = placement.place(graph, PrecisionPlan(Precision.INT8)).kept
        assert sorted(kept.values()) == [
            "rule 11: DKMoveChannels stays in float: it adds what INT8 would round away"
        ]
        wide = float16.rules.wide_nodes(graph, PrecisionPlan(Precision.FP16))
        assert "DKMoveChannels adds what INT8 would round away" in wide.values()
        node = next(node for node in graph.graph if node.domain)
        assert not [f for f in lint.lint(graph) if f.rule == "plugin-namespace"]
        del node.attributes["plugin_namespace"]
        assert [f.node for f in lint.lint(graph) if f.rule == "plugin-namespace"] == [node.name]


@needs_builder
@pytest.mark.parametrize("choice", ["auto", "none"])
def test_an_engine_has_the_op_as_a_plugin_or_as_standard_ops(
    choice: str, file: Path, model: Path, tmp_path: Path
) -> None:
    shape = (3, 16, 16)
    shapes = {"images": ((1, *shape), (1, *shape), (2, *shape))}
    options = BuildOptions(sms=("86",), shapes=shapes, plugins=choice)
    with ops.known(file):
        built = tensorrt_rtx.build(opened.read(model), tmp_path / "own.engine", options)
    assert built.plugins is not None
    assert built.plugins["ops"] == {"DKMoveChannels": 1}
    assert built.plugins["how"] == {"auto": "python", "none": "none"}[choice]


def test_the_commands_take_the_file_and_say_what_is_missing_without_it(
    file: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "half.onnx"
    for words, status in ((["--op", file], 0), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["cast", str(model), "-o", str(out), "--json", *map(str, words)])
        assert ended.value.code == status
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "DKMoveChannels adds" in " ".join(said[0]["made_by"]["fp32_nodes"].values())
    assert "--op FILE" in said[1]["error"]["fix"]


def test_its_kernel_is_called_by_the_layer_that_tensorrt_calls(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    plugin = ops.load(file)
    monkeypatch.setattr(_python_plugins, "kernels", lambda _: on_host(file))
    made = _python_plugins.make_plugin(trt, plugin, {"scale": 0.5})
    random = np.random.default_rng(0)
    x, shift = (random.random(s, np.float32) for s in ((2, 3, 4, 5), (2, 3)))
    y = np.empty_like(x)
    described = [SimpleNamespace(dims=a.shape, type=trt.DataType.FLOAT) for a in (x, shift)]
    made.enqueue(described, [], [x.ctypes.data, shift.ctypes.data], [y.ctypes.data], 0, 0)
    np.testing.assert_allclose(y, x + 0.5 * shift[:, :, None, None], rtol=1e-6)
    assert made.get_output_data_types([trt.DataType.FLOAT] * 2) == [trt.DataType.FLOAT]


def on_host(file: Path) -> ctypes.CDLL:
    """Return the op's kernel as the host's compiler makes it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on this machine")
    unit, target = file.with_name("unit.cpp"), file.with_name("unit.so")
    unit.write_text(f'#include "host/cuda_on_host.h"\n#include "{file.stem}.cu"\n')
    folders = [f"-I{OPS.folder()}", f"-I{file.parent}"]
    command = [compiler, *host_build.FLAGS, *folders, str(unit), "-o", str(target)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


def test_what_is_wrong_with_a_file_is_said_before_anything_runs(file: Path, tmp_path: Path) -> None:
    same = tmp_path / "another.py"
    same.write_text(PYTHON)
    with pytest.raises(OptionError, match=r"DKMoveChannels of .* is the name of another op"):
        ops.known(file, same).__enter__()
    plain = tmp_path / "plain.py"
    plain.write_text(PYTHON.replace("DKMoveChannels", "Relu"))
    with pytest.raises(OptionError, match=r"is called 'Relu'\nexpected: DK and a word"):
        ops.load(plain)
    (tmp_path / "none.py").write_text("x = 1")
    with pytest.raises(OptionError, match="defines no plugin"):
        ops.load(tmp_path / "none.py")
    lonely = tmp_path / "lonely.py"
    lonely.write_text(PYTHON.replace("move_channels.cu", "gone.cu"))
    with pytest.raises(BackendError, match=r"has no kernels: there is no .*gone\.cu"):
        _python_plugins.source(ops.load(lonely))


def test_an_op_is_known_only_where_it_was_named(file: Path, model: Path) -> None:
    graph = onnxfile.read_model(model)
    with ops.known(file):
        assert ops.counts(graph) == {"DKMoveChannels": 1}
    with pytest.raises(ModelError, match=r"deploykit::DKMoveChannels\n(.|\n)*--op FILE"):
        ops.counts(graph)
    node = next(node for node in graph.graph if node.domain)
    assert isinstance(node, ir.Node)
    assert ops.op_of(node) is None
