"""Semantic segmentation against torch's interpolation and a confusion matrix counted by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from segmenters import DATA, NAMES, segmenter

import deploykit
from deploykit import EvalOptions, Preprocess, VerifyOptions
from deploykit.data.preprocess import Geometry
from deploykit.errors import DataError, ModelError, ProofError
from deploykit.tasks import label_maps
from deploykit.tasks.semantic import LabelMap, Overlap, Semantic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

TASK = Semantic()


def upsampled(scores: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    grown: NDArray[Any] = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None].double(), size, mode="bilinear", align_corners=False
    )[0].numpy()
    return grown


def nearly(found: NDArray[Any], scores: NDArray[Any]) -> bool:
    """Whether each pixel found has the best of the scores, but for rounding."""
    chosen = np.take_along_axis(scores, found[None].astype(np.int64), 0)[0]
    return bool((scores.max(0) - chosen < 1e-4).all())


@pytest.mark.parametrize("size", [(37, 53), (16, 24), (8, 6), (64, 96)])
def test_scores_are_brought_to_the_image_as_torch_interpolates(size: tuple[int, int]) -> None:
    scores = np.random.default_rng(0).normal(size=(5, 16, 24)).astype(np.float32)
    _, place = Preprocess((64, 96), "stretch")(np.zeros((*size, 3), np.uint8))
    found = label_maps.best(scores, place)
    assert found.shape == size
    assert found.dtype.name == "uint8"
    assert nearly(found, upsampled(scores, size))


def test_an_image_between_samples_gets_what_it_would_get_by_itself() -> None:
    """At a quarter of the input's size, an image of 30 rows at row 1 ends between samples."""
    scores = np.random.default_rng(6).normal(size=(4, 8, 8)).astype(np.float32)
    place = Geometry(60, 64, 0.5, 0.5, 0.0, 1.0, canvas=(32, 32))
    where = ((np.arange(60) + 0.5) * 0.5 + 1) / 4 - 0.5
    assert where[0] < 0 < where[2]
    rows = np.stack(
        [[np.interp(np.clip(where, 0, 7), np.arange(8), c) for c in plane.T] for plane in scores]
    ).transpose(0, 2, 1)
    across = ((np.arange(64) + 0.5) * 0.5) / 4 - 0.5
    whole = np.stack(
        [[np.interp(np.clip(across, 0, 7), np.arange(8), c) for c in plane] for plane in rows]
    )
    assert nearly(label_maps.best(scores, place), whole)


@pytest.mark.parametrize("resize", ["letterbox", "corner"])
def test_what_lies_beside_the_image_is_left_out_before_the_interpolation(resize: Any) -> None:
    _, place = Preprocess((64, 64), resize)(np.zeros((60, 120, 3), np.uint8))
    scores = np.random.default_rng(1).normal(size=(4, 64, 64)).astype(np.float32)
    first = 16 if resize == "letterbox" else 0
    inside = scores[:, first : first + 32]
    assert nearly(label_maps.best(scores, place), upsampled(inside, (60, 120)))


def test_large_images_of_many_classes_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(2).normal(size=(300, 8, 8)).astype(np.float32)
    _, place = Preprocess((32, 32), "letterbox")(np.zeros((50, 40, 3), np.uint8))
    whole = label_maps.best(scores, place)
    monkeypatch.setattr(label_maps, "_BLOCK", 300 * 40 * 7)
    assert (label_maps.best(scores, place) == whole).all()
    assert whole.dtype.name == "int32"
    assert whole.max() > 255


def test_indices_are_brought_to_the_image_by_the_nearest() -> None:
    labels = np.arange(16).reshape(4, 4)
    _, place = Preprocess((4, 4), "stretch")(np.zeros((8, 8, 3), np.uint8))
    assert (label_maps.nearest(labels, place) == labels.repeat(2, 0).repeat(2, 1)).all()
    shown = TASK.decode({"y": labels[None, None].astype(np.float32)}, [place])
    assert (shown[0].labels == labels.repeat(2, 0).repeat(2, 1)).all()
    assert (shown[0].of, shown[0].made) == (None, label_maps.NEAREST)


def counted(pairs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> NDArray[np.int64]:
    """The confusion matrix, pixel by pixel: [right, found]."""
    table = np.zeros((3, 3), np.int64)
    for truth, found in pairs:
        for right, guess in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
            if right != 255:
                table[right, guess] += 1
    return table


def test_the_mean_iou_is_that_of_a_confusion_matrix_counted_pixel_by_pixel() -> None:
    rng = np.random.default_rng(4)
    metric = TASK.metric(dict(enumerate(NAMES)), NAMES)
    pairs = []
    for i in range(4):
        size = (11 + i, 17)
        truth = rng.choice([0, 1, 2, 255], size, p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
        found = np.where(rng.random(size) < 0.7, truth % 255, rng.integers(0, 3, size))
        pairs.append((truth, found.astype(np.uint8)))
        metric.add(f"{i}", LabelMap(pairs[-1][1], "x", 3), truth, size)
    table = counted(pairs)
    assert (metric.confusion == table).all()
    iou = [table[i, i] / (table[i].sum() + table[:, i].sum() - table[i, i]) for i in range(3)]
    scores = metric.scores()
    assert scores.value == pytest.approx(np.mean(iou), abs=1e-12)
    assert scores.metrics["pixel_accuracy"] == pytest.approx(np.trace(table) / table.sum())
    recall = table.diagonal() / table.sum(1)
    assert scores.metrics["mean_accuracy"] == pytest.approx(recall.mean())
    assert list(scores.per_class.values()) == pytest.approx(iou)
    assert scores.protocol == {"label_maps": "x"}


def test_a_class_that_neither_side_has_does_not_count_and_one_only_found_does() -> None:
    metric = TASK.metric(dict(enumerate(NAMES)), NAMES)
    truth, found = np.zeros((2, 4), np.uint8), np.zeros((2, 4), np.uint8)
    metric.add("a", LabelMap(found, ""), truth, (2, 4))
    assert metric.scores().metrics["miou"] == 1
    assert metric.scores().per_class == {"background": 1, "cat": None, "dog": None}
    found[0] = 2
    metric.add("b", LabelMap(found, ""), truth, (2, 4))
    assert metric.scores().metrics["miou"] == pytest.approx((12 / 16 + 0) / 2)


def test_ids_of_the_truth_are_its_categories_and_a_part_of_the_classes_is_said() -> None:
    metric = TASK.metric({7: "dog", 9: "cat"}, NAMES)
    truth = np.array([[7, 7, 9, 255, -1]], np.int32)
    metric.add("a", LabelMap(np.array([[2, 0, 1, 1, 1]], np.uint8), "", 3), truth, (1, 5))
    scores = metric.scores()
    assert scores.per_class == {"cat": 1, "dog": 0.5}
    assert scores.metrics["pixel_accuracy"] == pytest.approx(2 / 3)
    assert "2 of the model's 3 classes" in scores.notes[0]


@pytest.mark.parametrize(
    ("truth", "labels", "error", "message"),
    [
        (np.full((2, 2), 9, np.uint8), [[0, 0], [0, 0]], DataError, "pixels of category 9"),
        (np.zeros((2, 3), np.uint8), [[0, 0], [0, 0]], DataError, "2x3 pixels, and the image 2x2"),
        ([[0]], [[0, 0], [0, 0]], DataError, "truth about a is a list"),
        (np.zeros((2, 2)), [[0, 0], [0, 0]], DataError, "category ids .height, width."),
        (np.zeros((2, 2), np.uint8), [[0, 0], [3, 0]], ModelError, "class 3"),
    ],
)
def test_truth_and_results_that_do_not_fit_are_errors(
    truth: Any, labels: Any, error: type[Exception], message: str
) -> None:
    metric: Overlap = TASK.metric(dict(enumerate(NAMES)), NAMES)
    with pytest.raises(error, match=message):
        metric.add("a", LabelMap(np.array(labels, np.uint8), ""), truth, (2, 2))


@pytest.mark.parametrize(
    ("outputs", "error", "message"),
    [
        (
            {"a": np.zeros((1, 3, 4, 4)), "b": np.zeros((1, 3, 4, 4))},
            ModelError,
            "one called 'out'",
        ),
        ({"a": np.full((1, 1, 4, 4), 0.5)}, ModelError, "two classes or"),
        ({"a": np.zeros((1, 3))}, ModelError, r"a\[1, 3\]"),
        ({"a": np.full((1, 3, 4, 4), np.inf)}, ProofError, "NaN or infinity"),
    ],
)
def test_outputs_that_are_no_label_maps_are_refused(
    outputs: Any, error: type[Exception], message: str
) -> None:
    _, place = Preprocess((4, 4), "stretch")(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(error, match=message):
        TASK.decode(outputs, [place])


def test_a_picture_has_the_colours_and_names_of_its_classes() -> None:
    image = np.full((60, 80, 3), 128, np.uint8)
    labels = np.zeros((60, 80), np.uint8)
    labels[10:40, 20:60] = 2
    drawn = TASK.draw(image, LabelMap(labels, "", 3), NAMES)
    times = drawn.shape[1] // 80
    assert drawn.shape[0] > 60 * times, "names below"
    assert (drawn[2 * times, 2 * times] == 128).all(), "the background is left as it is"
    assert (drawn[20 * times, 30 * times] != 128).any()
    assert TASK.draw(image, LabelMap(labels, "", 3), []).shape == drawn.shape


@pytest.mark.parametrize("indices", [False, True])
def test_a_segmenter_is_evaluated_verified_timed_and_reported(
    tmp_path: Path, *, indices: bool
) -> None:
    path = segmenter(tmp_path / "m.onnx", indices=indices)
    found = deploykit.evaluate(path, EvalOptions(DATA), record=tmp_path / "r.jsonl")
    assert found.metrics == {"miou": 1, "pixel_accuracy": 1, "mean_accuracy": 1}
    made = label_maps.NEAREST if indices else label_maps.LINEAR
    assert found.protocol["label_maps"] == made
    text, _ = deploykit.report([tmp_path / "r.jsonl"], tmp_path / "r.html")
    assert "mIoU" in text
    same = deploykit.verify(path, path, VerifyOptions(source=DATA, count=3))
    assert [(a.output, a.passed) for a in same][-1] == ("pixels", True)
    other = segmenter(tmp_path / "o.onnx", bias=9, indices=indices)
    (*_, pixels) = deploykit.verify(other, path, VerifyOptions(source=DATA, count=3))
    assert (pixels.output, pixels.passed, pixels.mean_abs) == ("pixels", False, 1 / 3)
    plan = deploykit.BenchPlan(
        deploykit.BenchOptions(warmup_seconds=0, duration_seconds=0, min_iterations=2),
        end_to_end=DATA,
    )
    (timed,) = deploykit.bench([path], plan)
    assert timed.scope == "end-to-end"


def test_pixels_near_a_tie_may_differ() -> None:
    expected = np.zeros((1, 2, 1, 4), np.float32)
    expected[0, 0] = [[1, 1.001, 5, 5]]
    expected[0, 1] = [[1.0005, 1, 0, 0]]
    ours = expected.copy()
    ours[0, :, 0, 0] = [1.0004, 1.0001]
    pairing = TASK.agreement()
    assert list(pairing.pairs({"y": ours}, {"y": expected}, 0.0, 1e-3)) == ["y"]
    (finding,) = pairing.findings()
    assert (finding.max_abs, finding.mean_abs, finding.passed) == (1, 0.25, True)
    assert "25.000% of 4 pixels" in finding.note
