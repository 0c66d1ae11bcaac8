from __future__ import annotations

import contextlib
import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from coco_truth import scored

from deploykit.errors import DataError
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.detections import Detections
from deploykit.tasks.instances import Instances
from deploykit.tasks.keypoints import Keypoints

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.tasks.coco import Part

HEIGHT, WIDTH = 160, 200
CATEGORIES = {7: "cat", 3: "dog", 90: "cow"}
"""Ids with gaps, in no order."""
IDS = (7, 3, 90)
POINTS = 17
KINDS: Mapping[Part, str] = {"bbox": "", "segm": "mask_", "keypoints": "keypoint_"}
STATS = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5}
"""Metric -> its place among pycocotools' figures."""


def box(rng: np.random.Generator) -> list[float]:
    """x, y, width, height: small, medium and large, in whole pixels so that areas meet bounds."""
    side = rng.choice([12, 32, 60, 96, 120], 2)
    x, y = rng.integers(0, (WIDTH - side[0], HEIGHT - side[1]))
    return [float(x), float(y), float(side[0]), float(side[1])]


def segmentation(rng: np.random.Generator, area: list[float]) -> Any:
    """Polygons, or uncompressed run lengths of the box's left half."""
    x, y, w, h = area
    if rng.random() < 0.5:
        return [[x, y, x + w, y + 0.2 * h, x + 0.8 * w, y + h], [x, y, x + w / 3, y, x, y + h]]
    pixels = np.zeros((WIDTH, HEIGHT), np.int8)
    pixels[int(x) : int(x + w / 2), int(y) : int(y + h)] = 1
    flat = np.concatenate([[0], pixels.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat)).tolist()
    runs = np.diff([0, *edges, HEIGHT * WIDTH]).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": runs}


def points(rng: np.random.Generator, area: list[float]) -> list[float]:
    """Keypoints of an object: some not labelled at all, sometimes none is."""
    x, y, w, h = area
    seen = rng.integers(0, 3, POINTS) * (rng.random() < 0.8)
    places = rng.uniform((x, y), (x + w, y + h), (POINTS, 2)).round() * (seen > 0)[:, None]
    return [float(v) for v in np.column_stack([places, seen]).ravel()]


def truth(rng: np.random.Generator, images: int) -> dict[str, Any]:
    """A COCO object: ids with gaps, crowds, images without objects."""
    ids = rng.choice(1000, images, replace=False).tolist()
    annotations: list[dict[str, Any]] = []
    for image in ids:
        for _ in range(int(rng.choice([0, 0, 1, 3, 6]))):
            area = box(rng)
            labelled = points(rng, area)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(rng.choice(IDS)),
                    "bbox": area,
                    "area": area[2] * area[3] * float(rng.choice([0.5, 1.0])),
                    "iscrowd": int(rng.random() < 0.2),
                    "segmentation": segmentation(rng, area),
                    "keypoints": labelled,
                    "num_keypoints": sum(v > 0 for v in labelled[2::3]),
                }
            )
    pictures = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in ids]
    categories = [{"id": i, "name": name} for i, name in CATEGORIES.items()]
    return {"images": pictures, "annotations": annotations, "categories": categories}


def guesses(rng: np.random.Generator, known: list[dict[str, Any]]) -> Detections:
    """Objects near the true ones and elsewhere, scores in tenths: most are tied."""
    boxes, classes, joints = [], [], []
    for item in known:
        for _ in range(int(rng.choice([0, 1, 2]))):
            moved = np.array(item["bbox"]) + rng.integers(-4, 5, 4) * (rng.random() < 0.7)
            moved[2:] = np.maximum(moved[2:], 1)
            boxes.append(moved)
            kept = rng.random() < 0.8
            classes.append(IDS.index(item["category_id"]) if kept else int(rng.integers(3)))
            shift = np.column_stack([rng.normal(0, 3, (POINTS, 2)), np.zeros(POINTS)])
            joints.append(np.reshape(item["keypoints"], (POINTS, 3)) + shift)
    for _ in range(int(rng.choice([0, 0, 2]))):
        boxes.append(np.array(box(rng)))
        classes.append(int(rng.integers(3)))
        joints.append(rng.uniform(0, 99, (POINTS, 3)))
    count = len(boxes)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2]
    return Detections(
        corners,
        (rng.integers(1, 11, count) / 10).astype(np.float32),
        np.array(classes, np.int64),
        masks=rng.random((count, 4, 4)).astype(np.float32),
        keypoints=np.array(joints, np.float32).reshape(-1, POINTS, 3),
    )


def oracle(known: dict[str, Any], found: Mapping[int, Detections], kind: str) -> NDArray[Any]:
    """pycocotools' own figures."""
    from pycocotools import mask as api
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from deploykit.tasks import masks

    results = []
    for image, objects in found.items():
        assert objects.masks is not None
        pasted = masks.paste(objects.masks, objects.boxes, HEIGHT, WIDTH)
        for i in range(len(objects.boxes)):
            x1, y1, x2, y2 = objects.boxes[i].astype(float).tolist()
            assert objects.keypoints is not None
            values: dict[str, Any] = {
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "segmentation": api.encode(np.asfortranarray(pasted[i].astype(np.uint8))),
                "keypoints": objects.keypoints[i].astype(float).ravel().tolist(),
            }
            name = {"segm": "segmentation"}.get(kind, kind)
            links = {"image_id": image, "category_id": IDS[int(objects.classes[i])]}
            results.append({**links, "score": float(objects.scores[i]), name: values[name]})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = known
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_those_of_pycocotools(kind: Part, seed: int) -> None:
    pytest.importorskip("pycocotools", reason="pip install pycocotools")
    rng = np.random.default_rng(seed)
    known = truth(rng, 8)
    found = {
        image["id"]: guesses(rng, [a for a in known["annotations"] if a["image_id"] == image["id"]])
        for image in known["images"]
    }
    expected = oracle(known, found, kind).tolist()
    parts: list[Part] = ["bbox"] if kind == "bbox" else ["bbox", kind]
    named = {f"{image}.png": objects for image, objects in found.items()}
    ours = scored(known, named, [CATEGORIES[i] for i in IDS], parts).metrics
    places = STATS
    if kind == "keypoints":  # which have no small objects
        assert ours["keypoint_ap_small"] is None
        places = {"ap": 0, "ap50": 1, "ap75": 2, "ap_medium": 3, "ap_large": 4}
    for name, place in places.items():
        value = ours[KINDS[kind] + name]
        assert (-1 if value is None else value) == pytest.approx(expected[place], abs=1e-12), name


def one(keypoints: NDArray[np.float32] | None = None) -> Detections:
    """An object at 10, 10 to 40, 40."""
    corners = np.array([[10, 10, 40, 40]], np.float32)
    return Detections(corners, np.ones(1, np.float32), np.zeros(1, np.int64), keypoints=keypoints)


def nothing(points: int) -> Detections:
    empty = np.empty((0, points, 3), np.float32)
    boxes = np.empty((0, 4), np.float32)
    return Detections(boxes, np.empty(0, np.float32), np.empty(0, np.int64), keypoints=empty)


def posed(points: int) -> ImageAnnotations:
    """The object of `one`, all of its keypoints at 25, 25."""
    item = {"category_id": 3, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0}
    return ImageAnnotations(5, [{**item, "keypoints": [25.0, 25.0, 2] * points}], (50, 50))


@pytest.mark.parametrize("found_second", [True, False])
def test_keypoints_of_images_without_detections_count_as_missed(found_second: bool) -> None:  # noqa: FBT001 - drawn
    pose = np.full((1, POINTS, 3), 25, np.float32)
    metric = Keypoints().metric({3: "person"}, ["person"])
    metric.add("a", nothing(POINTS), posed(POINTS), (50, 50))
    metric.add(
        "b",
        one(pose) if found_second else nothing(POINTS),
        replace(posed(POINTS), image_id=6),
        (50, 50),
    )
    scores = metric.scores()
    assert scores.primary == "keypoint_ap"
    # Recall 1/2 at precision 1: 51 of 101 points.
    assert scores.value == pytest.approx(51 / 101 if found_second else 0)


def test_keypoints_of_another_kind_need_tolerances_of_their_own() -> None:
    pose = np.full((1, 5, 3), 25, np.float32)
    for task, primary in ((Keypoints(), "ap"), (Keypoints(tolerances=(0.05,) * 5), "keypoint_ap")):
        metric = task.metric({3: "face"}, ["face"])
        metric.add("a", one(pose), posed(5), (50, 50))
        scores = metric.scores()
        assert scores.primary == primary
        assert scores.value == pytest.approx(1)


def test_masks_on_an_image_of_another_size_than_the_truth_says_are_an_error() -> None:
    item = {"category_id": 3, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    truth_ = ImageAnnotations(1, [{**item, "segmentation": [[0, 0, 9, 0, 9, 9]]}], (50, 60))
    found = replace(one(), masks=np.ones((1, 4, 4), np.float32))
    metric = Instances().metric({3: "cat"}, ["cat"])
    with pytest.raises(DataError, match="says that image a is 50x60, and it has 60x50 pixels"):
        metric.add("a", found, truth_, (60, 50))


def test_every_metric_says_how_it_is_shown() -> None:
    metric = Instances().metric({3: "cat"}, ["cat"])
    metric.add("a", one(), ImageAnnotations(1, ()), (50, 50))
    scores = metric.scores()
    assert scores.primary == "ap", "without an object in the truth there are no masks to score"
    assert scores.metrics.keys() <= scores.display.keys()
    assert scores.display["mask_ap50"].title == "Mask AP50"
