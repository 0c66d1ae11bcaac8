"""Sources of label maps: Pascal VOC's layout and ADE20K's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.data import label_images, sources
from deploykit.errors import DataError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.data.sources import Dataset

IDS = np.array([[0, 1, 255], [2, 2, 0]], np.uint8)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (3, 2), "teal").save(path)


def labels(path: Path, ids: NDArray[Any] = IDS, mode: str = "P") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    if mode == "P":
        image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
    image.save(path)


def truths(data: Dataset) -> dict[str, Any]:
    return {s.name: s.truth() for s in data.samples if s.truth is not None}


def voc(root: Path, *, split: str | None = "val", names: tuple[str, ...] = ("a", "b")) -> None:
    for name in ("a", "b", "c"):
        picture(root / "JPEGImages" / f"{name}.jpg")
        labels(root / "SegmentationClass" / f"{name}.png")
    if split:
        file = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        file.parent.mkdir(parents=True)
        file.write_text("".join(f"{name}\n" for name in names))


@pytest.mark.parametrize("place", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_the_ids_of_a_palette_are_read_for_the_images_of_a_split(
    place: str, tmp_path: Path
) -> None:
    voc(tmp_path / place)
    data = sources.dataset(f"voc:{tmp_path}")
    assert list(truths(data)) == ["a", "b"]
    assert all((ids == IDS).all() for ids in truths(data).values())
    assert data.samples[0].read().shape == (2, 3, 3)
    assert (len(data.categories), data.categories[20]) == (21, "tvmonitor")


def test_sets_in_vocs_layout_have_their_own_splits_names_and_folders(tmp_path: Path) -> None:
    voc(tmp_path, split=None)
    (tmp_path / "class_names.txt").write_text("__ignore__\n_background_\nnut\nbolt\n")
    data = sources.dataset(f"voc:{tmp_path}")
    assert list(truths(data)) == ["a", "b", "c"]
    assert data.categories == {0: "_background_", 1: "nut", 2: "bolt"}
    labels(tmp_path / "Aug" / "a.png", IDS + 1, "L")
    (tmp_path / "own.txt").write_text("x\ny\nz\n")
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Segmentation" / "test.txt").write_text("a\n")
    spec = f"voc:{tmp_path},split=test,labels=Aug,classes={tmp_path / 'own.txt'}"
    data = sources.dataset(spec)
    assert (truths(data)["a"] == IDS + 1).all()
    assert data.categories == {0: "x", 1: "y", 2: "z"}


def test_what_a_voc_layout_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no JPEGImages"):
        sources.dataset(f"voc:{tmp_path}")
    voc(tmp_path / "VOC2007", names=("a", "gone"))
    with pytest.raises(DataError, match="no image gone"):
        sources.dataset(f"voc:{tmp_path}")
    with pytest.raises(OptionError, match="unknown split of VOC2007 'trian'"):
        sources.dataset(f"voc:{tmp_path},split=trian")
    voc(tmp_path / "VOC2012")
    with pytest.raises(OptionError, match="several sets: VOC2007, VOC2012"):
        sources.dataset(f"voc:{tmp_path}")
    with pytest.raises(DataError, match="has no Aug"):
        sources.dataset(f"voc:{tmp_path / 'VOC2012'},labels=Aug")


TABLE = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t9\t1\twall\n2\t0.1\t9\t9\t1\tsky, blue\n"


@pytest.mark.parametrize(
    ("layout", "split"),
    [(("images", "annotations"), "validation"), (("img_dir", "ann_dir"), "val")],
)
def test_zero_is_no_label_in_ades_layout(
    layout: tuple[str, str], split: str, tmp_path: Path
) -> None:
    picture(tmp_path / layout[0] / split / "ADE_val_1.jpg")
    labels(tmp_path / layout[1] / split / "ADE_val_1.png", IDS, "L")
    (tmp_path / "objectInfo150.txt").write_text(TABLE)
    data = sources.dataset(f"ade:{tmp_path}")
    assert data.categories == {1: "wall", 2: "sky"}
    assert truths(data)["ADE_val_1.jpg"].tolist() == [[255, 1, 255], [2, 2, 255]]


def test_zero_may_be_a_class_and_names_may_come_from_a_file(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "x.png")
    labels(tmp_path / "labels" / "train" / "x.png", IDS.astype(np.uint16), "I")
    (tmp_path / "names.txt").write_text("ground\nroad\ncar\n")
    spec = f"ade:{tmp_path},split=train,zero=class,classes={tmp_path / 'names.txt'}"
    data = sources.dataset(spec)
    assert data.categories == {0: "ground", 1: "road", 2: "car"}
    assert (truths(data)["x.png"] == IDS).all()


def test_what_an_ade_layout_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images and label maps of the split validation or val"):
        sources.dataset(f"ade:{tmp_path}")
    picture(tmp_path / "images" / "training" / "x.jpg")
    labels(tmp_path / "annotations" / "training" / "x.png")
    with pytest.raises(DataError, match="split=training"):
        sources.dataset(f"ade:{tmp_path}")
    with pytest.raises(DataError, match=r"no objectInfo150\.txt"):
        sources.dataset(f"ade:{tmp_path},split=training")
    with pytest.raises(OptionError, match="zero='no'"):
        sources.dataset(f"ade:{tmp_path},zero=no")
    picture(tmp_path / "images" / "training" / "y.jpg")
    with pytest.raises(DataError, match=r"1 of 2 images have no label map .* y\.jpg"):
        sources.dataset(f"ade:{tmp_path},split=training")


def test_label_maps_keep_every_id_or_are_refused(tmp_path: Path) -> None:
    wide = np.array([[0, 300], [70, 65535]], np.uint16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert label_images.decode(tmp_path / "wide.png").tolist() == wide.tolist()
    Image.fromarray(np.eye(3, dtype=bool)).save(tmp_path / "two.png")
    assert label_images.decode(tmp_path / "two.png").tolist() == np.eye(3, dtype=int).tolist()
    Image.new("RGB", (2, 2)).save(tmp_path / "colours.png")
    with pytest.raises(DataError, match=r"holds colours \(RGB\)"):
        label_images.decode(tmp_path / "colours.png")
    Image.new("L", (2, 2)).save(tmp_path / "lossy.png", "JPEG")
    with pytest.raises(DataError, match="cannot read"):
        label_images.decode(tmp_path / "lossy.png")
    with pytest.raises(DataError, match="no such file"):
        label_images.decode(tmp_path / "absent.png")
