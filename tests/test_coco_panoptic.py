"""COCO's panoptic files: whose each pixel is, and what networks with masks make of it.

Beside the official script, on its own two sample images with masks moved by chance, PQ, SQ and RQ
of all classes, of things and of stuff were the same to the last digit.
"""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.data import sources
from deploykit.data.label_images import DIGITS
from deploykit.errors import DataError, DeployError, OptionError
from deploykit.networks.detectors import panoptic_names
from deploykit.tasks.detections import Detections
from deploykit.tasks.panoptic import Segments

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = (20, 30)
CATEGORIES = {1: "dog", 3: "cat", 92: "banner"}
CLASSES = ("N/A", "dog", "cat", "N/A", "banner")
NUMBERS = (70001, 300, 5)
"""Of the segments: a dog, a dog and a banner, in columns of ten pixels."""
TRUTH: dict[str, Any] = {
    "images": [
        {"id": number, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}
        for number, name in ((7, "b"), (3, "a"))
    ],
    "annotations": [
        {
            "image_id": number,
            "file_name": f"{name}.png",
            "segments_info": [
                {
                    "id": segment,
                    "category_id": kind,
                    "iscrowd": 0,
                    "area": 200,
                    "bbox": [0, 0, 1, 1],
                }
                for segment, kind in zip(NUMBERS, (1, 1, 92), strict=True)
            ],
        }
        for number, name in ((3, "a"), (7, "b"))
    ],
    "categories": [
        {"id": number, "name": name, "isthing": int(number < 90)}
        for number, name in CATEGORIES.items()
    ],
}


def pixels() -> Any:
    return np.repeat(np.array([NUMBERS], np.int64), 10, 1).repeat(SIZE[0], 0)


def write(root: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> str:
    truth = copy.deepcopy(TRUTH)
    change(truth)
    maps = root / "annotations" / "panoptic_val2017"
    maps.mkdir(parents=True)
    maps.with_suffix(".json").write_text(json.dumps(truth))
    (root / "val2017").mkdir()
    for name in "ab":
        Image.new("RGB", SIZE[::-1]).save(root / "val2017" / f"{name}.jpg")
        Image.fromarray(DIGITS.colours(pixels())).save(maps / f"{name}.png")
    return f"coco:{root},truth=panoptic"


def objects(classes: list[int], scores: list[float]) -> Detections:
    """Return objects with the masks of the three segments."""
    masks = np.stack([pixels() == number for number in NUMBERS]).astype(np.float32) * 0.8 + 0.1
    frames = np.array([[0, 0, SIZE[1], SIZE[0]]] * 3, np.float32)
    return Detections(
        frames,
        np.array(scores, np.float32),
        np.array(classes, np.int64),
        masks=masks,
        frames=frames,
        pasting="whole",
    )


def scored(data: sources.Dataset, result: object) -> Any:
    assert data.benchmark is not None
    metric = data.benchmark.metric(data.known(CLASSES), CLASSES)
    for sample in data.samples:
        assert sample.truth is not None
        metric.add(sample.name, result, sample.truth(), SIZE)
    return metric.scores()


def test_segments_are_read_where_the_official_archive_has_them(tmp_path: Path) -> None:
    data = sources.dataset(write(tmp_path))
    assert [sample.name for sample in data.samples] == ["b.jpg", "a.jpg"]
    assert data.categories == CATEGORIES
    truth: Any = data.samples[0].truth and data.samples[0].truth()
    assert (truth.pixels == pixels()).all()
    assert [each.category for each in truth.known] == [1, 1, 92]
    moved = tmp_path / "annotations" / "panoptic_val2017"
    moved.rename(tmp_path / "elsewhere")
    named = f"coco:{tmp_path},truth=panoptic,maps={tmp_path / 'elsewhere'}"
    assert len(sources.dataset(named).samples) == 2


def test_objects_are_judged_by_the_segments_that_they_make(tmp_path: Path) -> None:
    data = sources.dataset(write(tmp_path))
    right = scored(data, objects([1, 1, 4], [0.99, 0.95, 0.9]))
    assert (right.primary, right.value) == ("pq", 1.0)
    assert "0.85" in right.protocol["segments"]
    doubtful = scored(data, objects([1, 1, 4], [0.99, 0.5, 0.9])).metrics
    # The doubtful dog's pixels are the other's, which then is half of what it holds.
    assert doubtful["things_pq"] == 0.0
    assert doubtful["stuff_pq"] == 1.0
    foreign = scored(data, objects([1, 1, 3], [0.99, 0.95, 0.9])).metrics
    assert foreign["stuff_pq"] == 0.0


def test_what_is_written_is_what_the_official_script_reads(tmp_path: Path) -> None:
    data = sources.dataset(write(tmp_path / "set"))
    assert data.benchmark is not None
    found = objects([1, 1, 4], [0.99, 0.95, 0.9])
    data.benchmark.write(tmp_path / "out", "a.jpg", found, SIZE, CLASSES)
    entry = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (entry["image_id"], entry["file_name"]) == (3, "a.png")
    colours = np.asarray(Image.open(tmp_path / "out" / "a.png"))
    ids = colours.astype(np.int64) @ [1, 256, 65536]
    assert [each["category_id"] for each in entry["segments_info"]] == [1, 1, 92]
    assert sorted(each["id"] for each in entry["segments_info"]) == np.unique(ids).tolist()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no segments": (lambda t: t["annotations"].pop(), "no segments of 1 images, the first one b"),
    "twice": (
        lambda t: t["annotations"].append(t["annotations"][0]),
        "image_id in annotations: 3 stands 2 times",
    ),
    "an unknown image": (lambda t: t["annotations"][0].update(image_id=8), "e.g. 8"),
    "no map": (lambda t: t["annotations"][0].update(file_name="c.png"), "1 of 2 listed maps"),
    "outside": (lambda t: t["annotations"][0].update(file_name="../../x"), "1 of 2 listed maps"),
    "no list": (lambda t: t["annotations"][0].pop("segments_info"), "no 'segments_info'"),
    "number 0": (lambda t: t["annotations"][0]["segments_info"][0].update(id=0), "id is 0"),
    "neither": (lambda t: t["categories"][0].pop("isthing"), "no 'isthing'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_an_error_that_says_what_and_where(tmp_path: Path, name: str) -> None:
    change, message = DAMAGE[name]
    with pytest.raises(DataError, match=message) as caught:
        sources.dataset(write(tmp_path, change))
    assert str(tmp_path) in str(caught.value)


def test_maps_and_lists_that_differ_are_an_error_of_that_image(tmp_path: Path) -> None:
    data = sources.dataset(write(tmp_path, lambda t: t["annotations"][0]["segments_info"].pop()))
    with pytest.raises(DataError, match=r"the truth about a\.jpg has pixels of 3 segments"):
        scored(data, objects([1, 1, 4], [0.99, 0.95, 0.9]))
    (tmp_path / "annotations" / "panoptic_val2017" / "b.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"b\.png"):
        scored(data, objects([1, 1, 4], [0.99, 0.95, 0.9]))


def test_results_and_options_of_another_kind_are_refused(tmp_path: Path) -> None:
    spec = write(tmp_path)
    data = sources.dataset(spec)
    with pytest.raises(DataError, match="objects with masks"):
        scored(data, np.zeros(SIZE))
    found = objects([1, 1, 4], [0.9] * 3)
    assert data.benchmark is not None
    metric = data.benchmark.metric(data.known(CLASSES), CLASSES)
    with pytest.raises(DataError, match=r"coco:DIR,truth=panoptic"):
        metric.add("a.jpg", found, object(), SIZE)
    with pytest.raises(DeployError, match=r"has 30x19 pixels, and the image 30x20"):
        metric.add("a.jpg", found, Segments(pixels()[1:], []), SIZE)
    for wrong in ("truth=segments", "maps=x"):
        with pytest.raises(OptionError):
            sources.dataset(f"coco:{tmp_path},{wrong},annotations={_instances(tmp_path)}")


def _instances(root: Path) -> Path:
    path = root / "instances.json"
    path.write_text(json.dumps({**TRUTH, "annotations": []}))
    for name in "ab":
        Image.new("RGB", SIZE[::-1]).save(root / f"{name}.jpg")
    return path


def test_the_published_networks_have_names_at_their_ids() -> None:
    names = panoptic_names.at_ids(250)
    assert (names[1], names[90], names[92], names[200]) == (
        "person",
        "toothbrush",
        "banner",
        "rug-merged",
    )
    assert len([name for name in names if name != "N/A"]) == 133
    assert panoptic_names.at_ids(91) == names[:91], "those of a network of things alone"
    assert panoptic_names.at_ids(3) == ("class0", "class1", "class2")
