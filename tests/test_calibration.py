from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.data import samples
from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import (
    DataError,
    DeployError,
    InputError,
    ModelError,
    OptionError,
    StaleTableError,
)
from deploykit.files import artifacts
from deploykit.precision import calibration, memory, observing, tables, tapping
from deploykit.precision.calibration import CalibrationOptions
from deploykit.recipes import opened
from deploykit.values import CalibrationTable, Range

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from deploykit.data.preprocess import Pixels
    from deploykit.precision.blocks import Tapped

PREPROCESS = Preprocess((16, 16), resize="stretch", mean=(0.5, 0.5, 0.5))
TENSORS = ("images", "conv", "relu", "pool")
MINMAX = CalibrationOptions("minmax")


def calibrate(path: Path, *args: Any, **options: Any) -> CalibrationTable:
    return calibration.calibrate(opened.read(path), *args, **options)


def photograph(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)


def dataset(count: int, broken: Iterable[int] = ()) -> Dataset:
    def read(index: int) -> Pixels:
        if index in broken:
            raise DataError(f"cannot read image{index}.jpg")
        return photograph(index)

    return Dataset(
        "test",
        [Sample(f"image{i}.jpg", lambda i=i: read(i)) for i in range(count)],  # type: ignore[misc]  # a lambda's default
    )


def network(
    *, batch: int | str = "batch", weight_scale: float = 1.0, dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """images -> Conv -> Relu -> MaxPool, and the shape of the pooled tensor."""
    number = np.float16 if dtype == TensorProto.FLOAT16 else np.float32
    weights = np.random.default_rng(0).standard_normal((4, 3, 3, 3)) * weight_scale
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["conv"], "stem.conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["conv"], ["relu"], "stem.relu"),
        helper.make_node("MaxPool", ["relu"], ["pool"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Shape", ["pool"], ["size"], "size"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("images", dtype, [batch, 3, 16, 16])],
        [
            helper.make_tensor_value_info("pool", dtype, None),
            helper.make_tensor_value_info("size", TensorProto.INT64, [4]),
        ],
        [numpy_helper.from_array(weights.astype(number), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(network(), path)
    return path


def with_outputs(proto: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    return proto


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "other.onnx"
    onnx.save(proto, path)
    return path


def test_ranges_equal_those_of_the_reference_evaluator(model: Path) -> None:
    table = calibrate(model, dataset(7), PREPROCESS, TENSORS, options=MINMAX)
    proto = with_outputs(network(), "conv", "relu")
    images = np.stack([PREPROCESS(photograph(i))[0] for i in range(7)])
    expected = dict(
        zip(
            ("pool", "size", "conv", "relu"),
            ReferenceEvaluator(proto).run(None, {"images": images}),
            strict=True,
        )
    )
    expected["images"] = images
    assert list(table.ranges) == list(TENSORS)
    for name, found in table.ranges.items():
        assert found.minimum == pytest.approx(expected[name].min(), abs=1e-5)
        assert found.maximum == pytest.approx(expected[name].max(), rel=1e-5)
        assert found.threshold == pytest.approx(np.abs(expected[name]).max(), rel=1e-5)


@pytest.mark.parametrize("observer", ["minmax", "percentile", "entropy", "mse"])
def test_the_batch_size_changes_nothing(model: Path, observer: str) -> None:
    tables = [
        calibrate(
            model,
            dataset(7),
            PREPROCESS,
            TENSORS,
            options=CalibrationOptions(observer, batch_size=batch_size),
        )
        for batch_size in (1, 3, 7)
    ]
    for other in tables[1:]:
        assert other.samples_sha256 == tables[0].samples_sha256
        for name, found in other.ranges.items():  # the runtime's own rounding depends on the batch
            assert found.threshold == pytest.approx(tables[0].ranges[name].threshold, rel=2e-2)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_channels_are_looked_at_on_the_first_three_images(model: Path, batch_size: int) -> None:
    options = CalibrationOptions(batch_size=batch_size, candidates=True)
    found = calibrate(model, dataset(5), PREPROCESS, ["images", "conv"], options=options)
    first = np.concatenate([PREPROCESS(photograph(seed))[0][None] for seed in range(3)])
    (conv,) = ReferenceEvaluator(with_outputs(network(), "conv")).run(["conv"], {"images": first})
    np.testing.assert_allclose(found.reaches["images"], np.abs(first).max((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.reaches["conv"], np.abs(conv).max((0, 2, 3)), rtol=1e-4)
    assert not calibrate(model, dataset(5), PREPROCESS, ["images"]).reaches


def test_the_table_is_bound_to_the_model_and_the_images(model: Path) -> None:
    table = calibrate(model, dataset(3), PREPROCESS, TENSORS, options=MINMAX)
    batch = next(samples.batches(dataset(3), PREPROCESS, 3))
    assert table.model_sha256 == artifacts.sha256(model)
    assert table.samples == ("image0.jpg", "image1.jpg", "image2.jpg")
    assert table.samples_sha256 == samples.fingerprint(batch.names, batch.pixel_sha256s)
    assert table.observer == "minmax"
    tables.check_fresh(table, opened.read(model))


def test_the_percentage_is_part_of_the_observer_and_lowers_the_threshold(model: Path) -> None:
    some = CalibrationOptions("percentile", percentile=95.5)
    table = calibrate(model, dataset(3), PREPROCESS, ["conv"], options=some)
    assert table.observer == "percentile 95.5"
    found = table.ranges["conv"]
    assert found.threshold < max(-found.minimum, found.maximum)


def test_the_default_is_mse_over_all_images(model: Path) -> None:
    table = calibrate(model, dataset(3), PREPROCESS, ["relu"])
    assert (table.observer, len(table.samples)) == ("mse", 3)


@pytest.mark.parametrize(
    ("available", "workers", "fresh"),
    [
        ("MemAvailable: 0 kB", 1, 1),
        ("MemAvailable: 3 kB", 2, 1),
        ("MemAvailable: 9 kB", 4, 3),
        ("", 4, 4),
    ],
)
def test_there_are_as_many_workers_as_memory_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, available: str, workers: int, fresh: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "_MACHINE", meminfo)
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    assert observing._affordable(1024) == 4, "where nothing says how much there is"
    meminfo.write_text(f"MemTotal: 99999 kB\n{available}\n")
    assert observing._affordable(1024, held=1) == workers
    assert observing._affordable(1024) == fresh


def test_the_number_of_workers_changes_nothing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []
    for workers in (1, 2, 4):
        monkeypatch.setattr(observing, "_affordable", lambda *_, n=workers, **__: n)
        tables.append(calibrate(model, dataset(9), PREPROCESS, TENSORS))
    assert tables[0] == tables[1] == tables[2]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("place", "expected"), [(2, ()), (7, ("conv", "images", "pool", "relu"))])
def test_tensors_that_only_the_last_images_take_far_are_named(
    model: Path, monkeypatch: pytest.MonkeyPatch, workers: int, place: int, expected: tuple[str]
) -> None:
    monkeypatch.setattr(observing, "_affordable", lambda *_, **__: workers)
    dim = [Sample(f"{i}", lambda: np.full((20, 24, 3), 120, np.uint8)) for i in range(8)]
    dim[place] = Sample("bright", lambda: photograph(0))
    options = CalibrationOptions("minmax", batch_size=1)
    table = calibrate(model, Dataset("dim", dim), PREPROCESS, TENSORS, options=options)
    assert table.growing == expected


def test_size_takes_images_from_every_part_of_the_set(model: Path) -> None:
    options = CalibrationOptions("minmax", size=2)
    table = calibrate(model, dataset(8), PREPROCESS, ["relu"], options=options)
    assert table.samples == ("image0.jpg", "image4.jpg")


def test_an_unreadable_image_is_an_error_unless_allowed(model: Path) -> None:
    with pytest.raises(DataError, match=r"image1\.jpg"):
        calibrate(model, dataset(3, broken=[1]), PREPROCESS, ["relu"])
    options = CalibrationOptions("minmax", skip_unreadable=True)
    table = calibrate(model, dataset(3, broken=[1]), PREPROCESS, ["relu"], options=options)
    assert table.skipped == ("image1.jpg",)
    assert table.samples == ("image0.jpg", "image2.jpg")


def test_the_input_alone_needs_no_run_and_repeated_names_count_once(model: Path) -> None:
    table = calibrate(model, dataset(3), PREPROCESS, ["images", "images"], options=MINMAX)
    assert list(table.ranges) == ["images"]
    assert table.ranges["images"].maximum <= 0.5


def test_the_file_is_not_changed_and_nothing_is_left_beside_it(model: Path) -> None:
    before = artifacts.sha256(model)
    calibrate(model, dataset(2), PREPROCESS, TENSORS)
    assert artifacts.sha256(model) == before
    assert list(model.parent.iterdir()) == [model]


def test_weights_beside_the_model_are_found(tmp_path: Path) -> None:
    path = tmp_path / "split.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    onnx.save(network(), tmp_path / "whole.onnx")
    split = calibrate(path, dataset(2), PREPROCESS, TENSORS)
    whole = calibrate(tmp_path / "whole.onnx", dataset(2), PREPROCESS, TENSORS)
    assert split.ranges == whole.ranges


def test_every_image_is_told_to_the_progress(model: Path) -> None:
    told: list[int] = []

    def progress(items: Iterable[object], label: str, total: int) -> Iterator[object]:
        assert (label, total) == ("images", 5)
        for item in items:
            told.append(1)
            yield item

    calibrate(model, dataset(5), PREPROCESS, ["relu"], progress=progress)
    assert len(told) == 5


def test_images_are_decoded_while_the_model_is_opened(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = threading.Event()

    def read() -> Pixels:
        decoded.set()
        return photograph(0)

    def opens(*args: Any) -> Tapped:
        assert decoded.wait(10)
        return opening(*args)

    opening = tapping.open_session
    monkeypatch.setattr(tapping, "open_session", opens)
    assert calibrate(model, Dataset("test", [Sample("a.jpg", read)]), PREPROCESS, ["relu"]).ranges


def test_an_interrupt_ends_the_run(model: Path) -> None:
    def progress(items: Iterable[object], label: str, total: int) -> Iterator[object]:
        del label, total
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, dataset(5), PREPROCESS, ["relu"], progress=progress)


@pytest.mark.parametrize("observer", ["minmax", "entropy"])
def test_weights_that_are_nan_are_reported_with_the_tensor(tmp_path: Path, observer: str) -> None:
    path = saved(network(weight_scale=np.nan), tmp_path)
    with pytest.raises(InputError, match="tensor 'conv' takes the value nan"):
        calibrate(path, dataset(3), PREPROCESS, ["conv"], options=CalibrationOptions(observer))


def test_a_dead_tensor_has_a_scale_above_zero(tmp_path: Path) -> None:
    path = saved(network(weight_scale=0), tmp_path)
    table = calibrate(path, dataset(2), PREPROCESS, ["conv"])
    assert table.ranges["conv"].scale > 0


def test_an_unknown_tensor_is_refused_with_the_nearest_name(model: Path) -> None:
    with pytest.raises(ModelError, match="computes no tensor 'rellu'") as caught:
        calibrate(model, dataset(2), PREPROCESS, ["rellu"])
    assert caught.value.fix == "did you mean relu?"


def test_a_tensor_that_is_not_float_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot calibrate 'size', a tensor\(int64\)"):
        calibrate(model, dataset(2), PREPROCESS, ["size"])


def test_a_model_of_another_size_is_refused(model: Path) -> None:
    with pytest.raises(ModelError, match=r"images: float32\[batch, 3, 16, 16\]") as caught:
        calibrate(model, dataset(2), replace(PREPROCESS, size=(32, 32)), ["relu"])
    assert "images: float32[batch, 3, 32, 32]" in caught.value.expected


def test_a_half_precision_model_is_refused(tmp_path: Path) -> None:
    path = saved(network(dtype=TensorProto.FLOAT16), tmp_path)
    with pytest.raises(ModelError, match=r"images: float16\[batch, 3, 16, 16\]"):
        calibrate(path, dataset(2), PREPROCESS, ["relu"])


def test_a_model_with_two_inputs_is_refused(tmp_path: Path) -> None:
    proto = network()
    proto.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))
    with pytest.raises(ModelError, match=r"16, 16\]; mask: float32\[1\]"):
        calibrate(saved(proto, tmp_path), dataset(2), PREPROCESS, ["relu"])


def test_a_fixed_batch_must_be_the_one_that_is_run(tmp_path: Path) -> None:
    path = saved(network(batch=2), tmp_path)
    single = CalibrationOptions("minmax", batch_size=1)
    with pytest.raises(OptionError, match="a batch size of 1 for the input images") as caught:
        calibrate(path, dataset(4), PREPROCESS, ["relu"], options=single)
    assert calibrate(path, dataset(4), PREPROCESS, ["relu"]).samples, "the model's own, unasked"
    assert "batch size of 2" in caught.value.fix
    options = CalibrationOptions("minmax", batch_size=2)
    assert calibrate(path, dataset(4), PREPROCESS, ["relu"], options=options).samples


@pytest.mark.parametrize("images", [1, 3, 5])
def test_a_fixed_batch_that_images_do_not_fill_repeats_them(tmp_path: Path, images: int) -> None:
    fixed = calibrate(saved(network(batch=4), tmp_path), dataset(images), PREPROCESS, ["relu"])
    alone = calibrate(saved(network(batch=1), tmp_path), dataset(images), PREPROCESS, ["relu"])
    assert fixed.samples == alone.samples
    found, expected = fixed.ranges["relu"], alone.ranges["relu"]
    assert (found.minimum, found.maximum) == (expected.minimum, expected.maximum)
    assert found.threshold == pytest.approx(expected.threshold, rel=0.05), "by weight alone"


def test_a_graph_that_the_runtime_refuses_is_a_model_error(tmp_path: Path) -> None:
    proto = network()
    proto.graph.node[1].op_type = "Relux"
    with pytest.raises(ModelError, match="ONNX Runtime cannot run"):
        calibrate(saved(proto, tmp_path), dataset(2), PREPROCESS, ["relu"])


@pytest.mark.parametrize("content", [None, b"", b"just some text", b"\x08\x09\x12"])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "bad.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"bad\.onnx"):
        calibrate(path, dataset(2), PREPROCESS, ["relu"])


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (CalibrationOptions("histogram"), "unknown calibration method 'histogram'"),
        (CalibrationOptions("percentile", percentile=0), "a percentile of 0"),
        (CalibrationOptions(batch_size=0), "a batch size of 0"),
        (CalibrationOptions(size=0), "0 images asked for"),
    ],
)
def test_options_are_checked_before_an_image_is_read(
    model: Path, options: CalibrationOptions, found: str
) -> None:
    with pytest.raises(OptionError, match=found):
        calibrate(model, dataset(2, broken=[0, 1]), PREPROCESS, ["relu"], options=options)


def test_a_set_without_images_is_refused(model: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        calibrate(model, dataset(0), PREPROCESS, ["relu"])


def table() -> CalibrationTable:
    ranges = {name: Range(float(i), -1.0, float(i)) for i, name in enumerate("abcd", start=1)}
    return CalibrationTable("0" * 64, "mse", ("x.jpg",), "1" * 64, ranges, ("y.jpg",))


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    tables.write(path, table())
    assert tables.read(path) == table()
    assert '"schema_version": 1' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ranges": {"a": 1}}', '{"ranges": []}'])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        tables.read(path)


def test_a_table_of_another_model_is_stale_and_both_hashes_are_named(model: Path) -> None:
    with pytest.raises(StaleTableError, match="another model") as caught:
        tables.check_fresh(table(), opened.read(model))
    assert "0" * 64 in caught.value.expected
    assert artifacts.sha256(model) in caught.value.expected
    assert isinstance(caught.value, DeployError)


def test_calibration_does_not_import_torch() -> None:
    code = "import sys, deploykit.precision.calibration; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
