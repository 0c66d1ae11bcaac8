"""Sources of label maps: Pascal VOC's layout and ADE20K's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from deploykit.data import label_images, palettes, sources
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


VOC_COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
"""From the development kit's table of colours."""


def drawn(path: Path, colours: dict[int, tuple[int, int, int]], ids: NDArray[Any] = IDS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.zeros((256, 3), np.uint8)
    for number, colour in colours.items():
        table[number] = colour
    Image.fromarray(table[ids]).save(path)


def test_colours_of_voc_are_its_classes(tmp_path: Path) -> None:
    voc(tmp_path)
    ids = np.where(IDS == 2, 20, IDS)
    drawn(tmp_path / "SegmentationClass" / "a.png", VOC_COLOURS, ids)
    assert (truths(sources.dataset(f"voc:{tmp_path}"))["a"] == ids).all()
    drawn(tmp_path / "SegmentationClass" / "b.png", {**VOC_COLOURS, 2: (1, 2, 3)})
    with pytest.raises(
        DataError, match=r"b\.png: 33\.33% of the pixels have.*\(1, 2, 3\)"
    ) as caught:
        truths(sources.dataset(f"voc:{tmp_path}"))
    assert "colours=FILE" in caught.value.fix


OWN = {0: (64, 0, 128), 1: (0, 128, 64), 2: (9, 9, 9), 255: (255, 255, 255)}


@pytest.mark.parametrize(
    "lines",
    [
        "lane 2 64 0 128\ncar 0 128 64\ntree 9 9 9\n__ignore__ 255 255 255\n",
        "64 0 128\tlane 2\n0 128 64\t\tcar\n9 9 9\ttree\n255 255 255\t__ignore__\n",
        "name,r,g,b\nlane 2,64,0,128\ncar,0,128,64\ntree,9,9,9\n__ignore__, 255, 255, 255\n",
        "# label:\nlane 2:64,0,128::\ncar:0,128,64:a,b\n\ntree:9,9,9::\n__ignore__:255,255,255::\n",
    ],
)
def test_colours_are_those_of_a_file_however_a_tool_writes_it(lines: str, tmp_path: Path) -> None:
    voc(tmp_path)
    for name in ("a", "b"):
        drawn(tmp_path / "SegmentationClass" / f"{name}.png", OWN)
    (tmp_path / "colours.txt").write_text(lines)
    data = sources.dataset(f"voc:{tmp_path},colours={tmp_path / 'colours.txt'}")
    assert data.categories == {0: "lane 2", 1: "car", 2: "tree"}
    assert all((ids == IDS).all() for ids in truths(data).values())
    (tmp_path / "colours.txt").rename(tmp_path / "labelmap.txt")
    assert sources.dataset(f"voc:{tmp_path}").categories == data.categories
    drawn(tmp_path / "annotations" / "val" / "a.png", OWN)
    picture(tmp_path / "images" / "val" / "a.jpg")
    for zero, first in (("class", 0), ("ignore", 1)):
        spec = f"ade:{tmp_path},zero={zero},colours={tmp_path / 'labelmap.txt'}"
        data = sources.dataset(spec)
        assert data.categories == {first: "lane 2", first + 1: "car", first + 2: "tree"}
        assert (truths(data)["a.jpg"] == np.where(IDS == 255, 255, IDS + first)).all()


def test_a_palette_of_its_own_order_is_read_by_its_colours_where_a_file_names_them(
    tmp_path: Path,
) -> None:
    drawn(tmp_path / "a.png", OWN)
    with Image.open(tmp_path / "a.png") as image:
        image.quantize(4).save(tmp_path / "p.png")
    (tmp_path / "c.txt").write_text("".join(f"x{i} {r} {g} {b}\n" for i, (r, g, b) in OWN.items()))
    palette = palettes.read(tmp_path / "c.txt")
    ids = label_images.decode(tmp_path / "p.png", palette, always=True)
    assert (ids == np.where(IDS == 255, 3, IDS)).all()
    Image.new("RGBA", (2, 2), (64, 0, 128, 10)).save(tmp_path / "t.png")
    with pytest.raises(DataError, match="has transparent pixels"):
        label_images.decode(tmp_path / "t.png", palette)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("# nothing\n", "has no colours"),
        ("a 1 2\n", "has no colour"),
        ("a 1 2 3\nb 1 2 3\n", "is the colour of two classes"),
        ("a 1 2 300\n", "is no colour"),
        ("a 1 2 3\nb\n", "'b' has no colour"),
    ],
)
def test_a_file_without_colours_is_refused(lines: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text(lines)
    with pytest.raises(DataError, match=message):
        palettes.read(tmp_path / "c.txt")


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
    with pytest.raises(DataError, match=r"holds colours \(RGB\)") as caught:
        label_images.decode(tmp_path / "colours.png")
    assert "colours=FILE" in caught.value.fix
    Image.new("L", (2, 2)).save(tmp_path / "lossy.png", "JPEG")
    with pytest.raises(DataError, match="cannot read"):
        label_images.decode(tmp_path / "lossy.png")
    with pytest.raises(DataError, match="no such file"):
        label_images.decode(tmp_path / "absent.png")
