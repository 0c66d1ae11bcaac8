from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from coco_truth import of_image, scored
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import BackendError, DataError, ModelError, OptionError
from deploykit.tasks import categories, evaluation
from deploykit.tasks.detection import Detection
from deploykit.tasks.detections import Detections
from deploykit.tasks.evaluation import Contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.data.samples import Batch
    from deploykit.tasks.detections import Decode


def averages(
    known: Any, detections: Mapping[str, Detections], classes: Sequence[str]
) -> SimpleNamespace:
    """The metrics by name, and the scores they are part of."""
    scores = scored(known, detections, classes)
    return SimpleNamespace(**scores.metrics, scores=scores, per_class=scores.per_class)


IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)


def truth(boxes: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str] = ("cat",)) -> Any:
    """Boxes per image: class, x1, y1, x2, y2. Ids are far from indices on purpose."""
    images = [{"id": 100 + i, "file_name": name} for i, name in enumerate(boxes)]
    annotations = [
        {
            "id": 0,
            "image_id": 100 + i,
            "category_id": 10 * (int(kind) + 1),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for i, rows in enumerate(boxes.values())
        for kind, x1, y1, x2, y2 in rows
    ]
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}


def found(*rows: Sequence[float]) -> Detections:
    """Rows: class, score, x1, y1, x2, y2."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, 2:], table[:, 1], table[:, 0].astype(np.int64))


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def hits(objects: list[Sequence[float]], boxes: list[Sequence[float]], least: float) -> list[bool]:
    """Which boxes (best first) find an object: the best one left, as in COCO the last of equals."""
    left = list(objects)
    result = []
    for box in boxes:
        best = max(reversed(left), key=lambda o: iou(o, box), default=None)
        result.append(best is not None and iou(best, box) >= least)
        if best is not None and result[-1]:
            left.remove(best)
    return result


def textbook_ap(
    objects: Mapping[str, Sequence[Sequence[float]]],
    detections: Mapping[str, Detections],
    kind: int,
    least: float,
) -> float:
    """101-point interpolated average precision of one class at one IoU threshold."""
    scored: list[tuple[float, bool]] = []
    total = 0
    for name, rows in objects.items():
        mine = [row[1:] for row in rows if row[0] == kind]
        total += len(mine)
        d = detections[name]
        order = [i for i in np.argsort(-d.scores, kind="stable") if d.classes[i] == kind]
        boxes = [d.boxes[i].astype(float).tolist() for i in order]
        good = hits(mine, boxes, least)
        scored += [(float(d.scores[i]), g) for i, g in zip(order, good, strict=True)]
    scored.sort(key=lambda pair: -pair[0])
    correct = np.cumsum([good for _, good in scored])
    if not scored:
        return 0.0
    precision = correct / np.arange(1, len(scored) + 1)
    recall = correct / total
    return float(np.mean([max(precision[recall >= r], default=0.0) for r in RECALLS]))


def moved(box: Sequence[float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a box near `box`, at least a pixel wide and high."""
    near = np.array(box) + rng.normal(0, 2.3, 4)
    return np.concatenate([near[:2], np.maximum(near[2:], near[:2] + 1)])


coordinates = st.integers(0, 60)
boxes = st.tuples(coordinates, coordinates, st.integers(8, 60), st.integers(8, 60)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
objects = st.lists(st.tuples(st.integers(0, 1), boxes).map(lambda p: (p[0], *p[1])), max_size=5)


@settings(deadline=None, max_examples=60)
@given(pictures=st.lists(objects, min_size=1, max_size=4), seed=st.integers(0, 999))
def test_ap_equals_a_textbook_implementation(
    pictures: list[list[tuple[int, int, int, int, int]]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    known = {f"{i}.png": [list(map(float, row)) for row in rows] for i, rows in enumerate(pictures)}
    scores = iter(rng.permutation(1000) / 1000)  # ties would be broken in an unspecified order
    detections = {}
    for name, rows in known.items():
        guesses = [
            (row[0], next(scores), *moved(row[1:], rng))
            for row in rows
            for _ in range(int(rng.integers(0, 3)))
        ]
        guesses += [(1, next(scores), *rng.uniform(0, 30, 2), *rng.uniform(31, 90, 2))]
        detections[name] = found(*guesses)
    result = averages(truth(known, ("cat", "dog")), detections, ("cat", "dog"))

    present = sorted({int(row[0]) for rows in known.values() for row in rows})
    table = np.array([[textbook_ap(known, detections, k, t) for t in IOUS] for k in present])
    if not present:
        assert result.ap is result.ap50 is result.per_class["cat"] is None
        return
    assert result.ap == pytest.approx(table.mean(), abs=1e-6)
    assert result.ap50 == pytest.approx(table[:, 0].mean(), abs=1e-6)
    assert result.ap75 == pytest.approx(table[:, 5].mean(), abs=1e-6)
    for row, k in zip(table, present, strict=True):
        assert result.per_class["cat" if k == 0 else "dog"] == pytest.approx(row.mean(), abs=1e-6)


def test_perfect_detections_score_one_in_every_size_that_exists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"a": [[0, 0, 0, 20, 20], [0, 100, 100, 150, 150]], "b": []}
    result = averages(
        truth(known), {"a": found((0, 0.9, 0, 0, 20, 20), (0, 0.8, 100, 100, 150, 150))}, ("cat",)
    )
    assert (result.ap, result.ap50, result.ap_small, result.ap_medium) == (1, 1, 1, 1)
    assert result.ap_large is None
    assert result.per_class == {"cat": 1.0}
    assert capsys.readouterr().out == ""


def test_a_hand_made_case_gives_the_value_worked_out_by_hand() -> None:
    # Two objects; best first: hit at IoU 0.8, miss, hit at IoU 1. Up to IoU 0.80 precision is 1
    # up to recall 0.5 (51 points) and 2/3 beyond (50 points). Above, the first is a miss and
    # precision is 1/3 up to recall 0.5.
    known = {"a": [[0, 0, 0, 10, 10], [0, 50, 50, 60, 60]]}
    guesses = found((0, 0.9, 0, 0, 10, 8), (0, 0.8, 200, 0, 210, 9), (0, 0.7, 50, 50, 60, 60))
    result = averages(truth(known), {"a": guesses}, ("cat",))
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 3 / 101
    assert result.ap50 == pytest.approx(low)
    assert result.ap == pytest.approx((7 * low + 3 * high) / 10)


def test_the_area_of_the_truth_decides_the_size_class() -> None:
    known = truth({"a": [[0, 0, 0, 40, 40]]})
    known["annotations"][0]["area"] = 500  # of the mask
    result = averages(known, {"a": found((0, 1, 0, 0, 40, 40))}, ("cat",))
    assert (result.ap_small, result.ap_medium) == (1, None)


def test_a_crowd_swallows_detections_without_reward_or_punishment() -> None:
    known = truth({"a": [[0, 0, 0, 100, 100], [0, 200, 200, 220, 220]]})
    known["annotations"][0]["iscrowd"] = 1
    guesses = found((0, 0.9, 5, 5, 20, 20), (0, 0.8, 200, 200, 220, 220))
    assert averages(known, {"a": guesses}, ("cat",)).ap == 1


def test_no_detections_at_all_score_zero() -> None:
    result = averages(truth({"a": [[0, 0, 0, 9, 9]]}), {"a": found()}, ("cat",))
    assert (result.ap, result.ap50) == (0, 0)


def test_images_that_were_not_run_do_not_count() -> None:
    known = truth({"a": [[0, 0, 0, 9, 9]], "b": [[0, 0, 0, 9, 9]]})
    result = averages(known, {"b": found((0, 1, 0, 0, 9, 9))}, ("cat",))
    assert result.ap == 1


def test_the_truth_is_left_as_it_was() -> None:
    known = truth({"a": [[0, 0, 0, 9, 9]]})
    before = json.dumps(known)
    averages(known, {"a": found((0, 1, 0, 0, 9, 9))}, ("cat",))
    assert json.dumps(known) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_detections_that_are_no_finite_numbers_are_an_error(value: float) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        averages(truth({"a": []}), {"a": found((0, 0.5, 0, 0, value, 9))}, ("cat",))


def test_without_faster_coco_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(BackendError, match="pip install faster-coco-eval"):
        averages(truth({"a": []}), {}, ("cat",))


def known_as(*names: str) -> dict[int, str]:
    return {10 * (i + 1): name for i, name in enumerate(names)}


def test_classes_are_matched_by_name_where_the_names_agree() -> None:
    match = categories.match(known_as("cat", "dog", "cow"), ("cow", "cat", "dog"))
    assert (match.indices, match.notes) == ({10: 1, 20: 2, 30: 0}, ())


def test_other_names_are_matched_by_position() -> None:
    shuffled = {20: "dog", 10: "cat"}
    numbered = categories.match(shuffled, ("class0", "class1"))
    assert (numbered.indices, numbered.notes) == ({10: 0, 20: 1}, ())
    near = categories.match(known_as("airplane", "bus"), ("aeroplane", "Bus"))
    assert near.indices == {10: 0, 20: 1}
    (note,) = near.notes
    assert note.startswith("1 of 2 classes are called otherwise in the truth")
    assert note.endswith("taken in its order: aeroplane is airplane")
    alike = categories.match(known_as("same", "same"), ("same", "same"))
    assert (alike.indices, alike.classes) == ({10: 0, 20: 1}, ("same (0)", "same (1)"))


def test_a_part_of_the_classes_is_matched_by_name_and_said() -> None:
    match = categories.match(known_as("dog", "cat"), ("cat", "cow", "dog", "cow"))
    assert match.indices == {10: 2, 20: 0}
    (note,) = match.notes
    assert "2 of the model's 4 classes, and only these are scored: cat, dog" in note


@pytest.mark.parametrize(
    ("known", "classes", "message"),
    [
        (("bee",), ("cat", "dog"), "only in the truth: bee; only in the model: cat, dog"),
        (("cat", "dog"), ("cat",), "2 categories, the model 1 classes; only in the truth: dog"),
        (("cat", "dog"), ("dog", "cow"), "in another place: dog"),
        (("z",), tuple("abcdefgh"), "a, b, c, d, e, and 3 more"),
    ],
)
def test_classes_that_do_not_fit_are_an_error_that_names_them(
    known: tuple[str, ...], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        categories.match(known_as(*known), classes)


def test_objects_of_classes_that_the_truth_does_not_have_are_left_out() -> None:
    known = truth({"a": [[0, 0, 0, 9, 9]]})
    guesses = found((1, 0.9, 0, 0, 9, 9), (0, 0.8, 0, 0, 9, 9))
    assert averages(known, {"a": guesses}, ("dog", "cat", "cow")).ap == 1
    assert averages(known, {"a": guesses}, ("cat", "dog", "cow")).ap == pytest.approx(1)
    with pytest.raises(ModelError, match="an object of class 3"):
        averages(known, {"a": found((3, 0.9, 0, 0, 9, 9))}, ("cat", "dog", "cow"))


def contract(read: Decode) -> Contract:
    return Contract(Preprocess((32, 32)), ("cat",), Detection(read))


def squares(count: int) -> Dataset:
    """Image i is grey level i and holds one object at (i, i)."""
    known = truth({str(i): [[0, i, i, i + 20, i + 20]] for i in range(count)})
    samples = [
        Sample(
            str(i),
            partial(np.full, (64, 64, 3), i, np.uint8),
            partial(of_image, known, str(i)),
        )
        for i in range(count)
    ]
    return Dataset("squares", samples, {10: "cat"})


def run(batch: Batch) -> dict[str, Floats]:
    return {"level": np.round(batch.images[:, 0, 0, 0] * 255)}


def decode(outputs: Mapping[str, Floats], geometries: Sequence[Geometry]) -> list[Detections]:
    assert all(geometry.scale_x == 0.5 for geometry in geometries)
    levels: NDArray[np.float32] = outputs["level"]
    return [found((0, 0.5, i, i, i + 20, i + 20)) for i in levels]


@pytest.mark.parametrize(("limit", "images"), [(None, 7), (3, 3)])
def test_a_model_is_scored_on_the_images_it_was_run_on(limit: int | None, images: int) -> None:
    found = evaluation.evaluate(run, squares(7), contract(decode), batch_size=3, limit=limit)
    assert (found.scores.value, found.images) == (1, images)


def test_parts_of_a_set_are_scored_with_the_whole() -> None:
    def shifted(outputs: Mapping[str, Floats], _: Sequence[Geometry]) -> list[Detections]:
        levels = outputs["level"]  # an object is found where it is in the first four images alone
        return [found((0, 0.5, i + 99 * (i > 3), i, i + 20 + 99 * (i > 3), i + 20)) for i in levels]

    data, how = squares(7), contract(shifted)
    seen: list[str] = []

    def watched(batch: Batch) -> dict[str, Floats]:
        seen.extend(batch.names)
        return run(batch)

    parts = [replace(data, samples=data.samples[a:b]) for a, b in ((0, 3), (3, 5), (5, 7))]
    made = evaluation.evaluate(watched, data, how, batch_size=2, parts=3)
    assert seen == [sample.name for sample in data.samples]
    assert made.scores == evaluation.evaluate(run, data, how).scores
    assert made.parts == tuple(evaluation.evaluate(run, part, how).scores for part in parts)
    assert [each.value for each in made.parts] == [1.0, pytest.approx(0.5, abs=0.02), 0.0]
    assert len(evaluation.evaluate(run, data, how, parts=20).parts) == 7


def test_images_that_no_canvas_holds_at_their_scale_are_counted() -> None:
    within = Preprocess((10, 10), resize="corner", limits=(10, 10), rounding="down")
    beyond = replace(within, limits=(40, 40))
    for preprocess, shrunk in ((within, 0), (beyond, 5)):
        made = replace(contract(lambda o, _: decode(o, ())), preprocess=preprocess)
        assert evaluation.evaluate(run, squares(5), made).shrunk == shrunk


def test_the_truth_is_read_only_of_the_images_that_are_run() -> None:
    read: list[str] = []

    def told(sample: Sample) -> object:
        read.append(sample.name)
        assert sample.truth is not None
        return sample.truth()

    plain = squares(9)
    samples = [replace(sample, truth=partial(told, sample)) for sample in plain.samples]
    data = replace(plain, samples=samples)
    evaluation.evaluate(run, data, contract(decode), batch_size=2, limit=3)
    assert read == ["0", "3", "6"]


def test_a_source_without_truth_cannot_be_scored() -> None:
    bare = [replace(sample, truth=None) for sample in squares(2).samples]
    with pytest.raises(OptionError, match="folder:x has images but no truth to compare with"):
        evaluation.evaluate(run, Dataset("folder:x", bare), contract(decode))
    half = Dataset("half", [*bare, replace(squares(1).samples[0], name="known")])
    with pytest.raises(OptionError, match="for 2 of 3"):
        evaluation.evaluate(run, half, contract(decode))


def test_truth_of_another_form_is_an_error_that_names_the_image() -> None:
    data = Dataset("ids", [replace(squares(1).samples[0], truth=lambda: 3)], {10: "cat"})
    with pytest.raises(DataError, match="the truth about 0 is a int"):
        evaluation.evaluate(run, data, contract(decode))


def test_a_class_that_the_model_has_no_name_for_is_an_error() -> None:
    with pytest.raises(ModelError, match="an object of class 1"):
        averages(truth({"a": []}), {"a": found((1, 0.5, 0, 0, 9, 9))}, ("cat",))


def test_a_decoder_that_drops_images_is_an_error() -> None:
    with pytest.raises(ModelError, match="results for 1 images"):
        evaluation.evaluate(run, squares(2), contract(lambda o, g: decode(o, g)[:1]), batch_size=2)
