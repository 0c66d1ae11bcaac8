from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from deploykit.data import sources
from deploykit.errors import DataError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.data.sources import Dataset


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "teal").save(root / name)


def truths(data: Dataset) -> dict[str, object]:
    return {s.name: s.truth() for s in data.samples if s.truth is not None}


def test_folders_are_classes_in_the_order_that_torchvision_gives_them(tmp_path: Path) -> None:
    put(tmp_path, "dog/b.png", "dog/a/c.JPG", "cat/z.png", "Ape/x.webp", ".cache/no.png")
    (tmp_path / "readme.txt").touch()
    data = sources.dataset(f"imagefolder:{tmp_path}")
    from torchvision.datasets.folder import find_classes

    theirs = [name for name in find_classes(str(tmp_path))[0] if name[0] != "."]
    assert list(data.categories.values()) == theirs == ["Ape", "cat", "dog"]
    expected = {"Ape/x.webp": 0, "cat/z.png": 1, "dog/a/c.JPG": 2, "dog/b.png": 2}
    assert truths(data) == expected
    assert data.samples[0].read().shape == (2, 3, 3)


def test_an_empty_class_keeps_its_place(tmp_path: Path) -> None:
    put(tmp_path, "b/1.png")
    (tmp_path / "a").mkdir()
    data = sources.dataset(f"imagefolder:{tmp_path}")
    assert (truths(data), data.categories) == ({"b/1.png": 1}, {0: "a", 1: "b"})


@pytest.mark.parametrize(
    ("file", "text", "expected", "by_index"),
    [
        ("map.txt", "y\nx\nunused\n", {"x": 1, "y": 0}, False),
        ("map.txt", "x 5\ny 3\n", {"x": 5, "y": 3}, True),
        ("map.txt", "x\t5\n\ny\t3\n", {"x": 5, "y": 3}, True),
        ("map.csv", "5,x\n3,y\n", {"x": 5, "y": 3}, True),
        ("map.json", json.dumps({"x": 5, "y": 3}), {"x": 5, "y": 3}, True),
        ("map.json", json.dumps({"3": ["y", "why"], "5": ["x", "ex"]}), {"x": 5, "y": 3}, True),
        ("map.json", json.dumps(["y", "x"]), {"x": 1, "y": 0}, False),
    ],
)
def test_a_class_map_says_the_index_of_each_folder(
    file: str, text: str, expected: dict[str, int], *, by_index: bool, tmp_path: Path
) -> None:
    put(tmp_path / "set", "x/1.png", "y/1.png")
    (tmp_path / file).write_text(text)
    data = sources.dataset(f"imagefolder:{tmp_path / 'set'},classes={tmp_path / file}")
    assert truths(data) == {"x/1.png": expected["x"], "y/1.png": expected["y"]}
    assert data.by_index == by_index


def test_a_class_map_may_give_the_models_names(tmp_path: Path) -> None:
    put(tmp_path / "set", "n1/1.png", "n2/1.png", "n3/1.png")
    (tmp_path / "words.txt").write_text("n1 tench, Tinca tinca\nn2 polar bear\nn3 polar bear\n")
    data = sources.dataset(f"imagefolder:{tmp_path / 'set'},classes={tmp_path / 'words.txt'}")
    assert data.categories == {0: "tench, Tinca tinca", 1: "polar bear"}
    assert list(truths(data).values()) == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("x 1\n", "does not say which class 1 of 2 folders are, the first one y"),
        ("x 1\nx 2\n", "has 'x' twice"),
        ("x 1\ny two\n", "gives indices and names"),
        ('{"x": 1, "y": [2]}', "'y' leads to"),
        ('{"x": ', "is not JSON"),
        ("x 1\ny\n", "'y' has no second part"),
    ],
)
def test_a_class_map_that_does_not_serve_is_an_error(
    text: str, message: str, tmp_path: Path
) -> None:
    put(tmp_path / "set", "x/1.png", "y/1.png")
    (tmp_path / "map").write_text(text)
    with pytest.raises(DataError, match=message):
        sources.dataset(f"imagefolder:{tmp_path / 'set'},classes={tmp_path / 'map'}")


def test_folders_called_by_numbers_need_an_order(tmp_path: Path) -> None:
    put(tmp_path, *(f"{i}/1.png" for i in range(11)))
    with pytest.raises(OptionError, match=r"as text 1 comes second|as text 10 comes"):
        sources.dataset(f"imagefolder:{tmp_path}")
    by_number = sources.dataset(f"imagefolder:{tmp_path},order=number")
    assert truths(by_number)["10/1.png"] == 10
    as_text = sources.dataset(f"imagefolder:{tmp_path},order=text")
    assert truths(as_text)["10/1.png"] == 2
    with pytest.raises(OptionError, match="order='size'"):
        sources.dataset(f"imagefolder:{tmp_path},order=size")


def test_folders_without_classes_or_images_are_errors(tmp_path: Path) -> None:
    put(tmp_path / "flat", "1.png")
    with pytest.raises(DataError, match=r"(?s)has no folders.*imagenet:DIR"):
        sources.dataset(f"imagefolder:{tmp_path / 'flat'}")
    put(tmp_path / "parts", "train/a/1.png", "val/a/1.png")
    with pytest.raises(DataError, match=r"(?s)train, val.*imagefolder:.*val"):
        sources.dataset(f"imagefolder:{tmp_path / 'parts'}")
    (tmp_path / "bare" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="hold no images"):
        sources.dataset(f"imagefolder:{tmp_path / 'bare'}")
    with pytest.raises(OptionError, match="unknown option of imagefolder 'clases'"):
        sources.dataset(f"imagefolder:{tmp_path / 'parts'},clases=x")
