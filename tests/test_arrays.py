"""Models without images are calibrated on arrays, however their files are laid out."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from foreign_nets import WIDTH, Net
from onnx import TensorProto, helper

from deploykit import pipeline
from deploykit.data import arrays
from deploykit.errors import DataError, OptionError, StaleTableError
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.precision.calibration import CalibrationOptions
from deploykit.values import Precision, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

COUNT = 5
SCALED = (TensorSpec("images", "float32", ("n", 3, 4, 4)), TensorSpec("factor", "float32", ()))
TOKENS = TensorSpec("tokens", "float32", ("n", 6, WIDTH))
MASK = TensorSpec("mask", "float32", ("n", 6))


def values(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.standard_normal((COUNT, 6, WIDTH)).astype(np.float32),
        "mask": rng.integers(0, 2, (COUNT, 6)).astype(np.float32),
    }


def archives(folder: Path) -> None:
    for i in range(COUNT):
        one: Any = {name: each[i : i + 1] for name, each in values().items()}
        np.savez(folder / f"{i}.npz", **one)


def archive(folder: Path) -> None:
    every: Any = values()
    np.savez_compressed(folder / "all.npz", **every)


def stacks(folder: Path) -> None:
    for name, each in values().items():
        np.save(folder / f"{name}.npy", each)


def folders(folder: Path) -> None:
    for name, each in values().items():
        (folder / name).mkdir()
        for i in range(COUNT):
            np.save(folder / name / f"{i}.npy", each[i])


LAYOUTS = (archives, archive, stacks, folders)


@pytest.mark.parametrize("write", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 2, 8])
def test_every_layout_gives_the_same_samples_in_order(
    tmp_path: Path, write: Callable[[Path], None], batch: int
) -> None:
    write(tmp_path)
    data = arrays.opened(tmp_path, (TOKENS, MASK))
    feeds = list(data.feeds(batch=batch))
    for name, each in values().items():
        np.testing.assert_array_equal(np.concatenate([fed.arrays[name] for fed in feeds]), each)
    names = [name for fed in feeds for name in fed.names]
    assert len(set(names)) == COUNT
    assert [place for fed in feeds for place in fed.places] == list(range(COUNT))


def test_a_fixed_batch_is_filled_by_repeating(tmp_path: Path) -> None:
    stacks(tmp_path)
    fixed = TensorSpec("tokens", "float32", (3, 6, WIDTH))
    last = list(arrays.opened(tmp_path, (fixed,)).feeds())[-1]
    tokens = values()["tokens"]
    np.testing.assert_array_equal(last.arrays["tokens"], tokens[[3, 4, 3]])
    assert len(last.names) == 2
    with pytest.raises(OptionError, match="a batch size of 2"):
        list(arrays.opened(tmp_path, (fixed,)).feeds(batch=2))


def test_inputs_that_are_no_samples_are_fed_as_they_are(tmp_path: Path) -> None:
    images = TensorSpec("images", "float32", (1, 4))
    size = TensorSpec("size", "int64", (2,))
    for i in range(3):
        parts: Any = {"images": np.full((1, 4), i, "f"), "size": np.array([8, i])}
        np.savez(tmp_path / f"{i}.npz", **parts)
    feeds = list(arrays.opened(tmp_path, (images, size)).feeds())
    assert [fed.arrays["size"].tolist() for fed in feeds] == [[8, 0], [8, 1], [8, 2]]


def network(path: Path) -> Path:
    """tokens[n, 6, 16] weighed by a mask, through two matrices."""
    net = Net()
    weights = [net.weight(net.kernel(WIDTH, WIDTH)) for _ in range(2)]
    first = net.op("Relu", net.op("MatMul", "tokens", weights[0]))
    masked = net.op("Mul", first, net.op("Unsqueeze", "mask", net.weight(np.array([2]))))
    output = net.op("MatMul", masked, weights[1])
    inputs = [
        helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, list(spec.shape))
        for spec in (TOKENS, MASK)
    ]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(net.nodes, "net", inputs, [result], net.weights)
    opsets = [helper.make_opsetid("", 19)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.mark.parametrize("float_type", [Precision.FP32, Precision.FP16])
def test_a_model_without_images_and_card_is_quantised(
    tmp_path: Path, float_type: Precision
) -> None:
    (tmp_path / "data").mkdir()
    stacks(tmp_path / "data")
    path, output = network(tmp_path / "m.onnx"), tmp_path / "int8.onnx"
    table = tmp_path / "table.json"
    options = QuantizeOptions(
        data=tmp_path / "data",
        float_type=float_type,
        table=table,
        calibration=CalibrationOptions("minmax"),
    )
    made = pipeline.quantize(path, output, options)
    assert pipeline.inspect(output).shares == {"int8": 1.0}
    assert f"calibrated on {COUNT} samples (minmax)" in made.notes
    scales = {
        w.name: float(onnx.numpy_helper.to_array(w))
        for w in onnx.load(output).graph.initializer
        if w.name == "tokens.scale"
    }
    expected = np.abs(values()["tokens"]).max() / 127
    assert scales["tokens.scale"] == pytest.approx(expected, rel=1e-3)
    pipeline.quantize(path, output, options)
    np.save(tmp_path / "data" / "mask.npy", values(seed=1)["mask"])
    with pytest.raises(StaleTableError, match="made on other arrays"):
        pipeline.quantize(path, output, options)


def odd_type(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.zeros((2, 6, WIDTH), complex))


def odd_shape(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.zeros((2, 7, WIDTH), "f"))


def pickled(folder: Path) -> None:
    np.save(folder / "tokens.npy", np.array([print], object), allow_pickle=True)


def cut(folder: Path) -> None:
    np.save(folder / "tokens.npy", values()["tokens"])
    content = (folder / "tokens.npy").read_bytes()
    (folder / "tokens.npy").write_bytes(content[:500])


def huge(folder: Path) -> None:
    head = io.BytesIO()
    shape = (1 << 40, 6, WIDTH)
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    with zipfile.ZipFile(folder / "x.npz", "w") as file:
        file.writestr("tokens.npy", head.getvalue())


def other_names(folder: Path) -> None:
    np.savez(folder / "x.npz", a=np.zeros(1), b=np.zeros(1))


def no_archive(folder: Path) -> None:
    (folder / "x.npz").write_bytes(b"PK\x03\x04 nothing")


def empty(folder: Path) -> None:
    (folder / "readme.txt").write_text("nothing", "utf-8")


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (odd_type, r"holds complex128\[2, 6, 16\] in"),
        (odd_shape, r"float32\[2, 7, 16\]"),
        (pickled, r"holds object\[1\] in"),
        (cut, r"holds float32\[5, 6, 16\] in 500 bytes"),
        (huge, r"holds float32\[1099511627776, 6, 16\] in"),
        (other_names, "has no array 'tokens'"),
        (no_archive, "is no archive of .npy files"),
        (empty, "holds no arrays for the inputs tokens"),
    ],
)
def test_files_that_hold_anything_else_are_refused(
    tmp_path: Path, write: Callable[[Path], None], says: str
) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=says):
        arrays.opened(tmp_path, (TOKENS,))


def test_inputs_with_unlike_numbers_of_samples_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", tokens=values()["tokens"], mask=values()["mask"][:3])
    with pytest.raises(DataError, match="holds 3 and 5 samples"):
        arrays.opened(tmp_path, (TOKENS, TensorSpec("mask", "float32", (1, 6))))
    with pytest.raises(DataError, match="no such folder"):
        arrays.opened(tmp_path / "absent", (TOKENS,))
    (tmp_path / "x.npz").unlink()
    folders(tmp_path)
    (tmp_path / "mask" / "0.npy").unlink()
    with pytest.raises(DataError, match=r"0\.npy for some inputs and not for others"):
        arrays.opened(tmp_path, (TOKENS, MASK))


def scaled(folder: Path, factors: Sequence[float]) -> Path:
    for i, factor in enumerate(factors):
        image: Any = np.full((1, 3, 4, 4), i, np.float32)
        np.savez(folder / f"{i}.npz", images=image, factor=np.float32(factor))
    return folder


def test_an_input_without_dimensions_has_a_value_of_each_sample(tmp_path: Path) -> None:
    given = arrays.opened(scaled(tmp_path, [0.5, 2.0, 3.0]), SCALED)
    fed = [each.arrays for each in given.feeds(batch=8)]
    assert [each["factor"].shape for each in fed] == [()] * 3
    assert [float(each["factor"]) for each in fed] == [0.5, 2.0, 3.0]
    assert [each["images"].shape for each in fed] == [(1, 3, 4, 4)] * 3


def test_a_fixed_batch_has_one_value_of_an_input_without_dimensions(tmp_path: Path) -> None:
    inputs = (TensorSpec("images", "float32", (2, 3, 4, 4)), SCALED[1])
    given = arrays.opened(scaled(tmp_path, [0.5, 0.5, 2.0, 3.0]), inputs)
    feeds = given.feeds()
    assert float(next(feeds).arrays["factor"]) == 0.5
    with pytest.raises(DataError, match="one batch have different values of factor"):
        next(feeds)


def test_a_model_with_an_input_without_dimensions_takes_every_verb(tmp_path: Path) -> None:
    net = Net()
    factor = helper.make_tensor_value_info("factor", TensorProto.FLOAT, [])
    product = net.op("Relu", net.op("Mul", net.conv("images", 3, WIDTH), "factor"))
    path = net.save(
        tmp_path / "m.onnx", net.conv(product, WIDTH, WIDTH), (1, 3, 4, 4), inputs=[factor]
    )
    (tmp_path / "data").mkdir()
    options = QuantizeOptions(data=scaled(tmp_path / "data", [0.5, 2.0]))
    pipeline.quantize(path, tmp_path / "int8.onnx", options)
    pipeline.cast(path, tmp_path / "half.onnx")
    pipeline.fuse(path, tmp_path / "fused.onnx")
    (agreement, *_) = pipeline.verify(tmp_path / "fused.onnx", path, pipeline.VerifyOptions())
    assert agreement.max_abs == 0
