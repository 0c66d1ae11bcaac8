"""Rewriting to a fixed point, and the proof that catches a rewrite that is wrong."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploykit.errors import ModelError, OptionError, OutputError, ProofError
from deploykit.files import artifacts, onnxfile
from deploykit.graph import fusion
from deploykit.graph.passes import DEFAULT, Pass, per_node
from deploykit.pipeline import fusing

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((8, 3, 3, 3)),
    "gamma": RNG.normal(1, 0.3, 8),
    "beta": RNG.normal(0, 1, 8),
    "mean": RNG.normal(0, 1, 8),
    "var": RNG.uniform(0.1, 2, 8),
    "half": np.full((8, 1, 1), 0.5),
    "w2": RNG.standard_normal((4, 8, 1, 1)),
}
TEXT = """
<ir_version: 9, opset_import: ["" : 19]>
g (float[batch, 3, 16, 16] images) => (float[batch, 4, 14, 14] y) {
    a = Conv (images, w)
    b = BatchNormalization (a, gamma, beta, mean, var)
    c = Identity (b)
    d = Mul (c, half)
    e = Relu (d)
    y = Conv (e, w2)
}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(TEXT)
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(array.astype(np.float32), name)
        for name, array in WEIGHTS.items()
    )
    entry = proto.metadata_props.add()
    entry.key, entry.value = "deploykit", json.dumps({"schema_version": 1})
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


def outputs(path: Path) -> list[NDArray[Any]]:
    session = ort.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(5).random((3, 3, 16, 16), np.float32)
    return [np.asarray(array) for array in session.run(None, {"images": images})]


def scale_bias(node: ir.Node) -> bool:
    """A rewrite that is wrong: it changes a weight by 1 %, once."""
    value = node.inputs[1] if node.op_type == "Conv" else None
    if value is None or value.const_value is None or node.metadata_props.get("done"):
        return False
    value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01))
    node.metadata_props["done"] = "yes"
    return True


WRONG = per_node("wrong_scale", scale_bias)


def test_a_network_is_rewritten_until_nothing_changes(path: Path) -> None:
    model = onnxfile.read_model(path)
    report = fusion.fuse(model)
    assert [node.op_type for node in model.graph] == ["Conv", "Relu", "Conv"]
    assert (report.nodes_before, report.nodes_after) == (6, 3)
    assert {"no_ops", "batch_norm", "channel_arithmetic"} <= set(report.changed)
    assert fusion.fuse(model).changed == {}
    assert fusion.fuse(model).rounds == 1


def test_a_rewritten_file_computes_the_same_and_keeps_its_metadata(
    path: Path, tmp_path: Path
) -> None:
    output = tmp_path / "fused.onnx"
    artifact = fusing.fuse(path, output).artifact
    for ours, theirs in zip(outputs(output), outputs(path), strict=True):
        assert np.abs(ours - theirs).max() <= 1e-4 * np.ptp(theirs)
    assert [node.op_type for node in onnx.load(output).graph.node] == ["Conv", "Relu", "Conv"]
    assert dict(onnxfile.read_model(output).metadata_props) == {
        "deploykit": '{"schema_version": 1}'
    }
    assert artifact.parents == {"model.onnx": artifacts.sha256(path)}
    assert str(artifact.inputs[0]) == "images: float32[batch, 3, 16, 16]"
    assert artifact.made_by["max_relative_error"] <= 1e-5
    assert artifacts.read(output).sha256 == artifact.sha256


@pytest.mark.parametrize("position", [0, 3, len(DEFAULT)])
def test_a_pass_that_breaks_the_model_is_caught_and_named(
    path: Path, tmp_path: Path, position: int
) -> None:
    chain = (*DEFAULT[:position], WRONG, *DEFAULT[position:])
    with pytest.raises(ProofError, match=r"pass wrong_scale changed output 'y': largest error"):
        fusing.fuse(path, tmp_path / "fused.onnx", chain)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx"]


def test_a_pass_that_conceals_its_change_is_caught_too(path: Path, tmp_path: Path) -> None:
    def conceal(model: ir.Model) -> bool:
        for node in model.graph:
            scale_bias(node)
        return False

    with pytest.raises(ProofError, match="pass concealed changed"):
        fusing.fuse(path, tmp_path / "out.onnx", (*DEFAULT, Pass("concealed", conceal)))


def test_passes_that_undo_each_other_end_with_an_error(path: Path) -> None:
    model = onnxfile.read_model(path)
    endless = Pass("endless", lambda _: True)
    with pytest.raises(ProofError, match=f"after {fusion.MAX_ROUNDS} rounds of endless"):
        fusion.fuse(model, (endless,))


def test_a_pass_that_fails_is_named(path: Path) -> None:
    def fail(_: ir.Model) -> bool:
        raise IndexError("pop from empty list")

    with pytest.raises(ModelError, match="pass broken cannot handle this model: IndexError"):
        fusion.fuse(onnxfile.read_model(path), (Pass("broken", fail),))


def test_the_input_is_not_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(OptionError, match="-o is the model itself"):
        fusing.fuse(path, path)
    assert path.read_bytes() == before


def test_an_output_that_cannot_be_written_is_refused_first(path: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        fusing.fuse(path, tmp_path / "absent" / "fused.onnx")


def test_text_is_no_model(tmp_path: Path) -> None:
    text = tmp_path / "model.onnx"
    text.write_text("hello")
    with pytest.raises(ModelError, match="a text file"):
        fusing.fuse(text, tmp_path / "fused.onnx")


def test_fuse_needs_no_torch(path: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from deploykit.pipeline import fusing;"
        f"fusing.fuse(Path({str(path)!r}), Path({str(tmp_path / 'f.onnx')!r}));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
