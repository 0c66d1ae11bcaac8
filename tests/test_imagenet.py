from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from deploykit.data import sources
from deploykit.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.data.sources import Dataset

SYNSETS = ("n01440764", "n01443537", "n01484850", "n01491361")
WORDS = ("tench, Tinca tinca", "goldfish", "great white shark", "tiger shark")
IMAGES = [f"ILSVRC2012_val_{i:08d}" for i in range(1, 6)]
RIGHT = [2, 0, 3, 3, 1]
"""Place of each image's synset among the sorted ones."""
KIT = {1: SYNSETS[3], 2: SYNSETS[0], 3: SYNSETS[2], 4: SYNSETS[1]}
"""The development kit's numbers are in another order."""


def put(root: Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), "teal").save(root / name, "JPEG")


def flat(root: Path, folder: str = "val") -> None:
    put(root / folder, [f"{name}.JPEG" for name in IMAGES])


def numbers(data: Dataset) -> list[object]:
    found = {s.name.rpartition("/")[2][:23]: s.truth() for s in data.samples if s.truth}
    return [found[name] for name in IMAGES]


def words(path: Path) -> None:
    path.write_text("\n".join(map("{} {}".format, SYNSETS, WORDS)) + "\n")


def test_folders_per_synset_and_synsets_in_the_names_are_known(tmp_path: Path) -> None:
    pairs = [(name, SYNSETS[right]) for name, right in zip(IMAGES, RIGHT, strict=True)]
    put(tmp_path / "a" / "val", [f"{synset}/{name}.JPEG" for name, synset in pairs])
    put(tmp_path / "b", [f"{name}_{synset}.JPEG" for name, synset in pairs])
    for root in ("a", "b"):
        data = sources.dataset(f"imagenet:{tmp_path / root}")
        assert numbers(data) == RIGHT
        assert data.categories == dict(enumerate(SYNSETS))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\n"
            + "".join(f"{n},{SYNSETS[r]} 1 2 3 4 \n" for n, r in zip(IMAGES, RIGHT, strict=True)),
        ),
        ("val.txt", "".join(f"{n}.JPEG {r}\n" for n, r in zip(IMAGES, RIGHT, strict=True))),
        ("meta/val.txt", "".join(f"{n}.JPEG {r}\n" for n, r in zip(IMAGES, RIGHT, strict=True))),
        (
            "imagenet_2012_validation_synset_labels.txt",
            "".join(f"{SYNSETS[r]}\n" for r in RIGHT),
        ),
        (
            "ILSVRC2012_val_labels.json",
            json.dumps({f"{n}.JPEG": SYNSETS[r] for n, r in zip(IMAGES, RIGHT, strict=True)}),
        ),
    ],
)
def test_flat_images_are_labelled_by_the_usual_files(file: str, text: str, tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    words(tmp_path / "synset_words.txt")
    data = sources.dataset(f"imagenet:{tmp_path}")
    assert numbers(data) == RIGHT
    assert data.categories[0] == "n01440764 tench, Tinca tinca"


@pytest.mark.parametrize("meta", ["meta.mat", "map_clsloc.txt"])
def test_the_numbers_of_the_development_kit_are_translated(meta: str, tmp_path: Path) -> None:
    io = pytest.importorskip("scipy.io", reason="scipy is not installed")
    flat(tmp_path, "ILSVRC2012_img_val")
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    own = {synset: number for number, synset in KIT.items()}
    labels = "".join(f"{own[SYNSETS[right]]}\n" for right in RIGHT)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text(labels)
    with pytest.raises(DataError, match="an order of their own"):
        sources.dataset(f"imagenet:{tmp_path}")
    if meta == "meta.mat":
        kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
        rows = [(number, synset, "words") for number, synset in KIT.items()]
        rows.append((1001, "n00000001", "an inner node"))
        io.savemat(kit / meta, {"synsets": np.array(rows, kind)[:, None]})
    else:
        (kit / meta).write_text("".join(f"{s} {n} word\n" for n, s in KIT.items()))
    assert numbers(sources.dataset(f"imagenet:{tmp_path}")) == RIGHT


def test_a_subset_of_the_images_takes_the_lines_of_its_own_numbers(tmp_path: Path) -> None:
    put(tmp_path, [f"{IMAGES[1]}.JPEG", f"{IMAGES[4]}.JPEG"])
    (tmp_path / "labels.txt").write_text("".join(f"{right}\n" for right in RIGHT))
    data = sources.dataset(f"imagenet:{tmp_path},labels={tmp_path / 'labels.txt'}")
    assert [s.truth() for s in data.samples if s.truth] == [RIGHT[1], RIGHT[4]]
    assert len(data.categories) == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"(?s)nothing says the class of ILSVRC2012_val_00000001\.JPEG.*labels=FILE"),
        ("1000\n1\n1\n1\n1\n", "(?s)the label '1000'.*development kit's"),
        ("tench\n1\n1\n1\n1\n", "the label 'tench'"),
        ("1\n1\n", "2 labels for 5 images"),
        ("ILSVRC2012_val_00000001.JPEG 1\n", "no label for 4 of 5 images"),
    ],
)
def test_labels_that_do_not_serve_are_errors(
    text: str | None, message: str, tmp_path: Path
) -> None:
    flat(tmp_path)
    if text is not None:
        (tmp_path / "val.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        sources.dataset(f"imagenet:{tmp_path}")


def test_a_synset_that_the_list_lacks_is_an_error(tmp_path: Path) -> None:
    flat(tmp_path)
    (tmp_path / "val.txt").write_text("n01440764\n" * 4 + "n99999999\n")
    words(tmp_path / "synsets.txt")
    with pytest.raises(DataError, match=r"synsets\.txt does not have the synset n99999999"):
        sources.dataset(f"imagenet:{tmp_path}")
