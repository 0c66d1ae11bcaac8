"""One model judged by what another finds, without labels."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from counting import Counting
from foreign_nets import Net
from segmenters import DATA, NAMES, segmenter
from test_tasks_own import DATA as DOTS
from test_tasks_own import counter

import deploykit
from deploykit import EvalOptions, ImageAnnotations, OptionError
from deploykit.data import sources
from deploykit.pipeline import teaching
from deploykit.recipes.describing import Description
from deploykit.tasks.classification import Classification, Ranking
from deploykit.tasks.detection import Detection
from deploykit.tasks.detections import Detections
from deploykit.tasks.instances import Instances
from deploykit.tasks.keypoints import Keypoints
from deploykit.tasks.masks import paste
from deploykit.tasks.semantic import LabelMap, Semantic
from deploykit.tasks.task import Result

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIZE = (80, 100)


def some(count: int, seed: int = 0, **parts: Any) -> Detections:
    rng = np.random.default_rng(seed)
    corner, sides = rng.uniform(0, 40, (count, 2)), rng.uniform(8, 40, (count, 2))
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    scores = np.linspace(0.95, 0.32, count).astype(np.float32)
    return Detections(boxes, scores, rng.integers(0, 3, count), **parts)


def masks(count: int) -> Any:
    yes = np.zeros((count, 28, 28), np.float32)
    yes[:, 4:24, 6:20] = 1
    return yes


def points(count: int) -> Any:
    return np.random.default_rng(5).uniform(5, 70, (count, 17, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "found", "names"),
    [
        (Detection(), some(9), ["ap"]),
        (Instances(), some(6, masks=masks(6)), ["ap", "mask_ap"]),
        (Keypoints(), some(3, keypoints=points(3)), ["ap", "keypoint_ap"]),
        (
            Classification(),
            Ranking(np.array([2, 0, 1]), np.full(3, 1 / 3, np.float32), 3),
            ["top1"],
        ),
        (Detection(), some(0), []),
    ],
)
def test_what_a_model_finds_is_the_truth_by_which_it_is_perfect(
    task: Any, found: Any, names: list[str]
) -> None:
    assert isinstance(found, Result)
    metric = task.metric(dict(enumerate("abc")), "abc")
    for number in (1, 2):
        metric.add(f"{number}", found, found.as_truth(number, SIZE), SIZE)
    scores = metric.scores()
    assert all(scores.metrics[name] == 1 for name in names)
    assert scores.value == (1 if names else None)


def test_doubtful_objects_are_no_truth_and_masks_are_their_pixels() -> None:
    found = replace(some(4, masks=masks(4)), scores=np.array([0.9, 0.5, 0.29, 0.1], np.float32))
    told = found.as_truth(7, SIZE)
    assert isinstance(told, ImageAnnotations)
    assert (told.image_id, len(told.annotations), told.size) == (7, 2, SIZE)
    whole = paste(found.masks[:2], found.boxes[:2], *SIZE)  # type: ignore[index]  # it has masks
    for annotation, pixels in zip(told.annotations, whole, strict=True):
        runs = annotation["segmentation"]["counts"]
        values = np.repeat(np.arange(len(runs)) % 2, runs)
        assert (pixels == values.reshape(SIZE[::-1]).T).all()
        assert annotation["area"] == pixels.sum()


def test_objects_without_a_partner_in_class_and_place_are_unlike() -> None:
    one = some(5, seed=3)
    assert not len(one.unlike(one).boxes)
    other = replace(one, classes=(one.classes + 1) % 3)
    assert len(one.unlike(other).boxes) == 5
    moved = replace(one, boxes=one.boxes + np.float32(1))
    assert not len(one.unlike(moved).boxes)
    assert one.unlike(some(0)).said("abc") == one.said("abc")
    half = replace(one, scores=np.full(5, 0.2, np.float32))
    assert not len(one.unlike(half).boxes), "a less certain partner is one"
    assert not len(half.unlike(some(0)).boxes), "what is doubtful is not counted"


def test_results_are_said_and_written_as_json() -> None:
    found = Ranking(np.array([1, 0]), np.array([0.75, 0.25], np.float32), 2)
    assert found.said("ab") == "b 75.0%"
    assert found.to_json("ab", SIZE)["classes"][0] == {"class": "b", "index": 1, "score": 0.75}
    labels = LabelMap(np.array([[0, 0, 2], [2, 2, 1]], np.uint8), "x", 3)
    assert labels.said("abc").startswith("c 50.0%")
    written = labels.to_json("abc", (2, 3))
    assert np.repeat(written["labels"], written["lengths"]).tolist() == [0, 0, 2, 2, 2, 1]
    other = LabelMap(np.array([[0, 1, 2], [2, 2, 1]], np.uint8), "x", 3)
    assert labels.unlike(other).labels.tolist() == [[-1, 0, -1], [-1, -1, -1]]
    assert labels.unlike(labels).said("abc") == ""
    objects = some(2, masks=masks(2), keypoints=points(2)).to_json("ab", SIZE)["objects"]
    assert {"class", "index", "score", "box", "mask", "keypoints"} == set(objects[0])
    assert sum(objects[0]["mask"]["counts"]) == SIZE[0] * SIZE[1]


def test_a_segmenter_is_evaluated_against_another_on_images_without_truth(tmp_path: Path) -> None:
    path = segmenter(tmp_path / "m.onnx")
    bare = replace(DATA, samples=[replace(s, truth=None) for s in DATA.samples], categories={})
    same = deploykit.evaluate(path, EvalOptions(bare, against=path))
    assert same.metrics == {"miou": 1, "pixel_accuracy": 1, "mean_accuracy": 1}
    assert same.dataset == "halves, by what m.onnx finds"
    assert (same.protocol["against"], same.protocol["against_sha256"]) == (
        "m.onnx",
        same.model_sha256,
    )
    other = segmenter(tmp_path / "o.onnx", bias=9)  # everything is background
    worse = deploykit.evaluate(other, EvalOptions(bare, against=path))
    # 768 pixels, of which the first finds 128 red and 128 green ones.
    assert worse.metrics["miou"] == pytest.approx((512 / 768 + 0 + 0) / 3)
    assert worse.per_class == {NAMES[0]: pytest.approx(512 / 768), NAMES[1]: 0, NAMES[2]: 0}


def test_a_detector_is_evaluated_against_itself_and_its_int8_form(
    model: Path, int8: Path, photos: Path
) -> None:
    source = f"folder:{photos}"
    assert sources.dataset(source).samples[0].truth is None
    options = EvalOptions(source, against=model)
    same = deploykit.evaluate(model, options)
    assert same.metrics["ap"] in (1, None)
    deploykit.evaluate(int8, options)


def classifier(path: Path) -> Path:
    """Four classes, with a card."""
    net = Net()
    pooled = net.op("GlobalAveragePool", net.conv("images", 3, 4))
    net.save(path, net.op("Flatten", pooled), (1, 3, 8, 8))
    about = Description(task="classification", preprocess="unit", class_names=tuple("abcd"))
    deploykit.describe(path, path.with_name(f"described-{path.name}"), about)
    return path.with_name(f"described-{path.name}")


def unreadable() -> NDArray[np.uint8]:
    raise AssertionError


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_of_another_task_is_refused_before_anything_runs(
    place: int, tmp_path: Path
) -> None:
    models = [segmenter(tmp_path / "m.onnx"), classifier(tmp_path / "c.onnx")]
    first, second = models[place], models[1 - place]
    bare = replace(DATA, samples=[replace(s, read=unreadable) for s in DATA.samples])
    with pytest.raises(OptionError) as caught:
        deploykit.evaluate(first, EvalOptions(bare, against=second))
    said = str(caught.value)
    assert "m.onnx is for semantic_segmentation" in said
    assert "c.onnx is for classification" in said
    assert "--against a model that finds what the first does" in said


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        (Detection(), Instances(), True),
        (Instances(), Detection(), False),
        (Detection(), Keypoints(), True),
        (Keypoints(), Instances(), False),
        (Detection(), Semantic(), False),
        (Classification(), Semantic(), False),
        (Counting(), Counting(), True),
    ],
)
def test_what_has_boxes_and_more_may_judge_boxes(first: Any, second: Any, *, alike: bool) -> None:
    model: Any = SimpleNamespace(path=Path("m.onnx"))
    refusal = pytest.raises(OptionError, match=r"m\.onnx is for")
    with nullcontext() if alike else refusal:
        teaching.check_alike((model, model), (first, second))


def test_results_that_cannot_be_truth_are_an_error(tmp_path: Path) -> None:
    path = counter(tmp_path / "m.onnx")
    with pytest.raises(OptionError, match=r"what the task Counting finds cannot be the truth"):
        deploykit.evaluate(path, EvalOptions(DOTS, against=path), task=Counting())
