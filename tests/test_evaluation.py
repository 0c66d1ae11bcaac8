from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import Dataset, Sample
from deploykit.errors import BackendError, DataError, ModelError, OptionError
from deploykit.tasks import evaluation
from deploykit.tasks.detections import Detections
from deploykit.tasks.evaluation import Contract

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry
    from deploykit.tasks.detections import Decode

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
    result = evaluation.coco_ap(truth(known, ("cat", "dog")), detections, (10, 20))

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
    result = evaluation.coco_ap(
        truth(known), {"a": found((0, 0.9, 0, 0, 20, 20), (0, 0.8, 100, 100, 150, 150))}, (10,)
    )
    assert (result.ap, result.ap50, result.ap_small, result.ap_medium) == (1, 1, 1, 1)
    assert result.ap_large is None
    assert result.images == 1
    assert json.loads(json.dumps(result.to_json()))["per_class"] == {"cat": 1.0}
    assert capsys.readouterr().out == ""


def test_a_hand_made_case_gives_the_value_worked_out_by_hand() -> None:
    # Two objects; best first: hit at IoU 0.8, miss, hit at IoU 1. Up to IoU 0.80 precision is 1
    # up to recall 0.5 (51 points) and 2/3 beyond (50 points). Above, the first is a miss and
    # precision is 1/3 up to recall 0.5.
    known = {"a": [[0, 0, 0, 10, 10], [0, 50, 50, 60, 60]]}
    guesses = found((0, 0.9, 0, 0, 10, 8), (0, 0.8, 200, 0, 210, 9), (0, 0.7, 50, 50, 60, 60))
    result = evaluation.coco_ap(truth(known), {"a": guesses}, (10,))
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 3 / 101
    assert result.ap50 == pytest.approx(low)
    assert result.ap == pytest.approx((7 * low + 3 * high) / 10)


def test_the_area_of_the_truth_decides_the_size_class() -> None:
    known = truth({"a": [[0, 0, 0, 40, 40]]})
    known["annotations"][0]["area"] = 500  # of the mask
    result = evaluation.coco_ap(known, {"a": found((0, 1, 0, 0, 40, 40))}, (10,))
    assert (result.ap_small, result.ap_medium) == (1, None)


def test_a_crowd_swallows_detections_without_reward_or_punishment() -> None:
    known = truth({"a": [[0, 0, 0, 100, 100], [0, 200, 200, 220, 220]]})
    known["annotations"][0]["iscrowd"] = 1
    guesses = found((0, 0.9, 5, 5, 20, 20), (0, 0.8, 200, 200, 220, 220))
    assert evaluation.coco_ap(known, {"a": guesses}, (10,)).ap == 1


def test_no_detections_at_all_score_zero() -> None:
    result = evaluation.coco_ap(truth({"a": [[0, 0, 0, 9, 9]]}), {"a": found()}, (10,))
    assert (result.ap, result.ap50) == (0, 0)


def test_images_that_were_not_run_do_not_count() -> None:
    known = truth({"a": [[0, 0, 0, 9, 9]], "b": [[0, 0, 0, 9, 9]]})
    result = evaluation.coco_ap(known, {"b": found((0, 1, 0, 0, 9, 9))}, (10,))
    assert (result.ap, result.images) == (1, 1)


def test_the_truth_is_left_as_it_was() -> None:
    known = truth({"a": [[0, 0, 0, 9, 9]]})
    before = json.dumps(known)
    evaluation.coco_ap(known, {"a": found((0, 1, 0, 0, 9, 9))}, (10,))
    assert json.dumps(known) == before


def test_an_image_that_the_truth_lacks_is_an_error() -> None:
    with pytest.raises(DataError, match="knows no image called x"):
        evaluation.coco_ap(truth({"a": []}), {"x": found()}, (10,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_detections_that_are_no_finite_numbers_are_an_error(value: float) -> None:
    with pytest.raises(ModelError, match="not a finite number"):
        evaluation.coco_ap(truth({"a": []}), {"a": found((0, 0.5, 0, 0, value, 9))}, (10,))


def test_without_faster_coco_eval_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(BackendError, match=r"deploykit\[eval\]"):
        evaluation.coco_ap(truth({"a": []}), {}, (10,))


def categories(*names: str) -> Any:
    return {"categories": [{"id": 10 * (i + 1), "name": n} for i, n in enumerate(names)]}


def test_classes_are_matched_by_name_where_the_names_agree() -> None:
    found_ids = evaluation.category_ids(categories("cat", "dog", "cow"), ("cow", "cat", "dog"))
    assert found_ids == (30, 10, 20)


def test_other_names_are_matched_by_position() -> None:
    shuffled = {"categories": categories("cat", "dog")["categories"][::-1]}
    assert evaluation.category_ids(shuffled, ("class0", "class1")) == (10, 20)
    assert evaluation.category_ids(categories("airplane", "bus"), ("aeroplane", "bus")) == (10, 20)
    assert evaluation.category_ids(categories("same", "same"), ("same", "same")) == (10, 20)


@pytest.mark.parametrize(
    ("known", "classes", "message"),
    [
        (("cat",), ("cat", "dog"), "only in the model: dog"),
        (("cat", "dog"), ("cat",), "2 categories, the model 1 classes; only in the truth: dog"),
        (("cat", "dog"), ("dog", "cow"), "in another place: dog"),
        (("a",), tuple("abcdefgh"), "b, c, d, e, f, and 2 more"),
    ],
)
def test_classes_that_do_not_fit_are_an_error_that_names_them(
    known: tuple[str, ...], classes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        evaluation.category_ids(categories(*known), classes)


def contract(decode: Decode) -> Contract:
    return Contract(Preprocess((32, 32)), ("cat",), decode)


def squares(count: int) -> Dataset:
    """Image i is grey level i and holds one object at (i, i)."""
    samples = [
        Sample(str(i), lambda i=i: np.full((64, 64, 3), i, np.uint8))  # type: ignore[misc]
        for i in range(count)
    ]
    known = truth({str(i): [[0, i, i, i + 20, i + 20]] for i in range(count)})
    return Dataset("squares", samples, truth=lambda: known)


def run(images: Floats) -> dict[str, Floats]:
    return {"level": np.round(images[:, 0, 0, 0] * 255)}


def decode(outputs: Mapping[str, Floats], geometries: Sequence[Geometry]) -> list[Detections]:
    assert all(geometry.scale_x == 0.5 for geometry in geometries)
    levels: NDArray[np.float32] = outputs["level"]
    return [found((0, 0.5, i, i, i + 20, i + 20)) for i in levels]


@pytest.mark.parametrize(("limit", "images"), [(None, 7), (3, 3)])
def test_a_model_is_scored_on_the_images_it_was_run_on(limit: int | None, images: int) -> None:
    scores = evaluation.evaluate(run, squares(7), contract(decode), batch_size=3, limit=limit)
    assert (scores.ap, scores.images) == (1, images)


def test_a_source_without_truth_cannot_be_scored() -> None:
    data = Dataset("folder:x", squares(2).samples)
    with pytest.raises(OptionError, match="folder:x has images but no truth"):
        evaluation.evaluate(run, data, contract(decode))


def test_a_decoder_that_drops_images_is_an_error() -> None:
    with pytest.raises(ModelError, match="results for 1 images"):
        evaluation.evaluate(run, squares(2), contract(lambda o, g: decode(o, g)[:1]), batch_size=2)
