from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
from coco_truth import whole
from PIL import Image

from deploykit.data import sources
from deploykit.errors import DataError, DeployError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRUTH: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "b.png", "height": 20, "width": 30},
        {"id": 3, "file_name": "a.png", "height": 20, "width": 30},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 18, "bbox": [1, 2, 3.5, 4], "area": 9},
        {"id": 2, "image_id": 3, "category_id": 18, "bbox": [1, 2, 3, 4], "iscrowd": 1},
    ],
    "categories": [{"id": 18, "name": "dog"}],
}


def write(root: Path, annotations: str, images: str, truth: object = TRUTH) -> Path:
    path = root / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(truth))
    (root / images).mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20)).save(root / images / name)
    return path


@pytest.mark.parametrize("images", ["val2017", "images/val2017", "images", "."])
def test_the_usual_layouts_are_found(tmp_path: Path, images: str) -> None:
    write(tmp_path, "annotations/instances_val2017.json", images)
    data = sources.dataset(f"coco:{tmp_path}")
    assert [s.name for s in data.samples] == ["b.png", "a.png"]
    assert data.samples[0].read().shape == (20, 30, 3)


def test_roboflow_and_explicit_layouts_are_read(tmp_path: Path) -> None:
    write(tmp_path, "_annotations.coco.json", ".")
    assert len(sources.dataset(f"coco:{tmp_path}").samples) == 2
    file = write(tmp_path / "other", "x.json", "pictures/here")
    data = sources.dataset(f"coco:{tmp_path / 'other/pictures/here'},annotations={file}")
    assert len(data.samples) == 2


def test_the_truth_fills_in_areas_and_crowd_marks(tmp_path: Path) -> None:
    write(tmp_path, "annotations/instances_val.json", "images")
    first, second = whole(sources.dataset(f"coco:{tmp_path}"))["annotations"]
    assert (first["area"], first["iscrowd"]) == (9, 0)
    assert (second["area"], second["iscrowd"]) == (12, 1)


def test_of_several_files_the_only_validation_set_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "annotations/instances_val2017.json", "val2017")
    write(tmp_path, "annotations/instances_train2017.json", "train2017", {"images": []})
    assert len(sources.dataset(f"coco:{tmp_path}").samples) == 2
    write(tmp_path, "annotations/instances_val2014.json", "val2014")
    with pytest.raises(OptionError, match=r"several annotation files.*val2014") as bad:
        sources.dataset(f"coco:{tmp_path}")
    assert "annotations=FILE" in str(bad.value)


def damaged(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    truth = copy.deepcopy(TRUTH)
    change(truth)
    return truth


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no images": (lambda t: t.pop("images"), "no list of images"),
    "categories are a dict": (lambda t: t.update(categories={}), "no list of categories"),
    "annotations of numbers": (lambda t: t.update(annotations=[1]), "no list of annotations"),
    "empty": (lambda t: t.update(images=[]), "an empty list of images"),
    "no file name": (
        lambda t: t["images"][1].pop("file_name"),
        r"images\[1\]: it has no 'file_name'",
    ),
    "text id": (lambda t: t["images"][0].update(id="7"), r"images\[0\]: id is '7'"),
    "no box": (lambda t: t["annotations"][1].pop("bbox"), r"annotations\[1\]: it has no 'bbox'"),
    "three numbers": (lambda t: t["annotations"][0].update(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]"),
    "negative width": (lambda t: t["annotations"][0].update(bbox=[1, 2, -3, 4]), "bbox is"),
    "not a number": (lambda t: t["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "bbox"),
    "bad area": (lambda t: t["annotations"][0].update(area="big"), "area is 'big'"),
    "two same ids": (lambda t: t["images"][0].update(id=3), "id in images: 3 stands 2 times"),
    "two same names": (lambda t: t["images"][0].update(file_name="a.png"), "'a.png' stands 2"),
    "unknown image": (lambda t: t["annotations"][0].update(image_id=8), "image_id that is not in"),
    "unknown category": (lambda t: t["annotations"][0].update(category_id=1), "e.g. 1"),
    "missing file": (lambda t: t["images"][1].update(file_name="c.png"), "1 of 2 listed images"),
    "no file at all": (lambda t: t["images"][0].update(file_name="x.png"), "was not found"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_annotations_are_an_error_that_says_what_and_where(
    tmp_path: Path, name: str
) -> None:
    change, message = DAMAGE[name]
    write(tmp_path, "annotations/instances_val.json", "images", damaged(change))
    with pytest.raises(DataError, match=message) as caught:
        sources.dataset(f"coco:{tmp_path}")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"images": 3}'])
def test_a_file_that_is_no_coco_json_is_an_error(tmp_path: Path, text: str) -> None:
    write(tmp_path, "annotations/instances_val.json", "images").write_text(text)
    with pytest.raises(DataError, match=r"instances_val\.json"):
        sources.dataset(f"coco:{tmp_path}")


def test_wrong_locations_are_errors_that_say_what_to_write(tmp_path: Path) -> None:
    for location, message in {
        "": "no folder is given",
        f"{tmp_path / 'absent'}": "no such folder",
        f"{tmp_path}": "has no annotations",
        f"{tmp_path},annotation=x.json": "did you mean annotations",
        f"{tmp_path},annotations=absent.json": "no such file: absent.json",
    }.items():
        with pytest.raises(DeployError, match=message):
            sources.dataset(f"coco:{location}")


def test_links_that_lead_back_end(tmp_path: Path) -> None:
    write(tmp_path, "annotations/instances_val.json", "images")
    for number in range(4):  # followed without a memory, 4^40 folders
        (tmp_path / "images" / f"again{number}").symlink_to(tmp_path / "images")
    assert len(sources.dataset(f"coco:{tmp_path}").samples) == 2


@pytest.mark.parametrize("escaped", [True, False])
def test_names_beyond_ascii_are_read(tmp_path: Path, escaped: bool) -> None:  # noqa: FBT001 - drawn
    truth = damaged(lambda t: t["categories"][0].update(name="Hündin \u3042"))
    path = write(tmp_path, "annotations/instances_val.json", "images")
    path.write_text(json.dumps(truth, ensure_ascii=escaped), encoding="utf-8")
    assert sources.dataset(f"coco:{tmp_path}").categories == {18: "Hündin \u3042"}


def test_a_category_above_all_others_is_left_out_where_nothing_has_it(tmp_path: Path) -> None:
    above = {"id": 0, "name": "animals"}
    truth = {**TRUTH, "categories": [above, *TRUTH["categories"], {"id": 19, "name": "cat"}]}
    write(tmp_path, "_annotations.coco.json", ".", truth)
    data = sources.dataset(f"coco:{tmp_path}")
    assert data.categories == {0: "animals", 18: "dog", 19: "cat"}
    assert data.known(["cat", "dog", "cow"]) == {18: "dog", 19: "cat"}
    assert data.known(["class0", "class1", "class2"]) == data.categories, "by position"
    assert data.known(["cat", "cow"]) == data.categories, "a dog is seen, and unknown"
