from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from coco_truth import whole
from hypothesis import given
from hypothesis import strategies as st

from deploykit.data import sources
from deploykit.data.sources import SOURCES
from deploykit.errors import DataError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("skimage", reason="pip install 'deploykit[shapes]'")


@pytest.fixture(scope="module")
def shapes() -> Any:
    SOURCES.load("shapes")
    return sys.modules["_deploykit_source_shapes"]


def test_a_set_is_what_its_spec_says(shapes: Any) -> None:
    data = sources.dataset("shapes: count=3 , split=train,seed=9,size=160")
    assert data.name == "shapes:seed=9,count=3,size=160,split=train"
    assert [s.name for s in data.samples] == [f"train-9-00000{i}" for i in range(3)]
    assert data.samples[0].read().dtype == np.uint8
    default = sources.dataset("shapes:")
    assert default.name == f"shapes:{shapes.Spec()}"
    assert len(default.samples) == 500


@given(
    seed=st.integers(0, 2**31 - 1),
    count=st.integers(1, 10**6),
    size=st.integers(64, 2048),
    split=st.sampled_from(["train", "val"]),
)
def test_a_spec_prints_as_the_text_it_is_parsed_from(
    shapes: Any, seed: int, count: int, size: int, split: str
) -> None:
    spec = shapes.Spec(seed, count, size, split)
    assert shapes.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed=1", "did you mean seed"),
        ("split=test", "unknown split of shapes 'test'"),
        ("truth=masks", "unknown truth of shapes 'masks'"),
        ("count=0", "an integer from 1 to 1000000"),
        ("count=1e3", "count='1e3'"),
        ("size=32", "from 64 to 2048"),
        ("seed=-1", "seed='-1'"),
        ("seed=9999999999999999999999", "an integer from 0"),
        ("seed=²", "seed='²'"),
        ("seed", "seed=''"),
        ("seed=1,seed=2", "given twice"),
        ("seed=1,,", "unknown option of shapes ''"),
    ],
)
def test_a_wrong_spec_is_an_error_that_says_why(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        sources.dataset(f"shapes:{text}")


def test_images_follow_from_split_seed_and_index_alone(shapes: Any) -> None:
    def pictures(**options: Any) -> list[bytes]:
        spec = shapes.Spec(**options)
        return [shapes.render(spec, i)[0].tobytes() for i in range(4)]

    base = pictures(seed=1)
    assert base == pictures(seed=1, count=7)
    assert len({*base, *pictures(seed=2), *pictures(seed=1, split="train")}) == 12


def test_train_and_val_share_no_photograph_and_no_texture_pixels(shapes: Any) -> None:
    assert not set(shapes._PHOTOS["train"]) & set(shapes._PHOTOS["val"])
    train, val = (shapes._materials(split).textures for split in ("train", "val"))
    for left, right in zip(train, val, strict=True):
        assert left.shape[1] + right.shape[1] == 512
        assert not np.array_equal(left, right)


def test_the_truth_describes_the_pictures_that_are_read(shapes: Any) -> None:
    spec = shapes.parse("count=12,seed=4")
    data = sources.dataset(f"shapes:{spec}")
    truth = json.loads(json.dumps(whole(data)))
    assert [c["name"] for c in truth["categories"]] == list(shapes.CLASSES)
    assert [i["file_name"] for i in truth["images"]] == [s.name for s in data.samples]
    for index, (image, sample) in enumerate(zip(truth["images"], data.samples, strict=True)):
        pixels, instances = shapes.render(spec, index)
        assert np.array_equal(sample.read(), pixels)
        assert pixels.shape == (image["height"], image["width"], 3)
        mine = [a for a in truth["annotations"] if a["image_id"] == image["id"]]
        assert len(mine) == len(instances) <= 8
        for annotation, instance in zip(mine, instances, strict=True):
            x1, y1, x2, y2 = instance.box
            assert annotation["bbox"] == [x1, y1, x2 - x1, y2 - y1]
            assert annotation["category_id"] == instance.category + 1
            assert 0 <= x1 < x2 <= image["width"]
            assert 0 <= y1 < y2 <= image["height"]


def test_masks_are_disjoint_touch_their_box_on_each_side_and_fill_the_area(shapes: Any) -> None:
    for index in range(30):
        pixels, instances = shapes.render(shapes.Spec(seed=6), index)
        owned = np.zeros(pixels.shape[:2], int)
        for instance in instances:
            x1, y1, x2, y2 = instance.box
            mask = instance.mask
            assert mask.shape == (y2 - y1, x2 - x1)
            assert mask[0].any()
            assert mask[-1].any()
            assert mask[:, 0].any()
            assert mask[:, -1].any()
            assert mask.sum() >= 60
            owned[y1:y2, x1:x2] += mask
        assert owned.max(initial=0) <= 1


def test_run_lengths_are_what_faster_coco_eval_reads(shapes: Any) -> None:
    faster_coco_eval = pytest.importorskip("faster_coco_eval")
    spec = shapes.Spec(seed=3, count=6)
    coco = faster_coco_eval.COCO(whole(sources.dataset(f"shapes:{spec}")))
    for index in range(spec.count):
        _, instances = shapes.render(spec, index)
        annotations = coco.imgToAnns[index + 1]
        for annotation, instance in zip(annotations, instances, strict=True):
            x1, y1, x2, y2 = instance.box
            mask = coco.annToMask(annotation)
            assert mask.sum() == annotation["area"]
            np.testing.assert_array_equal(mask[y1:y2, x1:x2], instance.mask)


def test_hidden_shapes_are_painted_but_not_in_the_truth(shapes: Any) -> None:
    painted = hidden = partly = 0
    for index in range(150):
        scene = shapes._scene(shapes.Spec(), index)
        kept = scene.instances()
        whole = [s.area for k, s in zip(scene.kinds, scene.shapes, strict=True) if k != "bar"]
        painted += len(whole)
        hidden += len(whole) - len(kept)
        for instance in kept:
            candidates = [
                s.area
                for k, s in zip(scene.kinds, scene.shapes, strict=True)
                if k == shapes.CLASSES[instance.category]
            ]
            assert instance.mask.sum() >= 0.25 * min(candidates)
            partly += instance.mask.sum() < 0.8 * min(candidates)
    assert 0.01 < hidden / painted < 0.3
    assert partly / painted > 0.05


def test_every_class_size_and_aspect_occurs(shapes: Any) -> None:
    truth = whole(sources.dataset(f"shapes:{shapes.Spec(count=300)}"))
    counts = np.bincount([a["category_id"] for a in truth["annotations"]], minlength=7)[1:]
    assert counts.min() > 0.7 * counts.mean()
    longest = np.array([max(a["bbox"][2:]) for a in truth["annotations"]])
    assert np.percentile(longest, 5) < 25
    assert np.percentile(longest, 95) > 110
    ratios = np.array([i["width"] / i["height"] for i in truth["images"]])
    assert ratios.min() < 0.75
    assert ratios.max() > 1.3


def test_shapes_grow_with_the_image() -> None:
    small, large = (
        np.mean([item["area"] for item in whole(data)["annotations"]])
        for data in (sources.dataset(f"shapes:size={size},count=40") for size in (160, 640))
    )
    assert 10 < large / small < 22


def test_a_label_map_has_the_class_of_every_pixel(shapes: Any) -> None:
    maps = sources.dataset("shapes:count=6,size=160,truth=map")
    assert maps.name == "shapes:seed=1,count=6,size=160,split=val,truth=map"
    assert maps.categories == {0: "background", **dict(enumerate(shapes.CLASSES, start=1))}
    for index, sample in enumerate(maps.samples):
        assert sample.truth is not None
        found: Any = sample.truth()
        assert found.shape == sample.read().shape[:2]
        _, instances = shapes.render(shapes.parse("count=6,size=160"), index)
        for item in instances:
            x1, y1, x2, y2 = item.box
            assert (found[y1:y2, x1:x2][item.mask] == item.category + 1).all()


def test_things_are_the_same_objects_without_their_classes() -> None:
    """What a network that tells no classes apart is scored on."""
    plain = sources.dataset("shapes:seed=5,count=4,size=96")
    bare = sources.dataset("shapes:seed=5,count=4,size=96,truth=things")
    assert dict(bare.categories) == {1: "object"}
    for one, other in zip(plain.samples, bare.samples, strict=True):
        assert np.array_equal(one.read(), other.read())
        truths: Any = (one.truth, other.truth)
        known, things = (truth().annotations for truth in truths)
        assert [item["category_id"] for item in things] == [1] * len(known)
        assert [item | {"category_id": 1} for item in known] == list(things)


def test_with_a_class_as_truth_an_image_holds_one_shape_of_it(shapes: Any) -> None:
    classes = sources.dataset("shapes:count=40,size=96,truth=class")
    found = [sample.truth() for sample in classes.samples if sample.truth]
    assert set(found) == set(range(1, 7))
    for index, number in enumerate(found):
        scene = shapes._scene(shapes.parse("size=96,truth=class"), index)
        assert [k for k in scene.kinds if k != "bar"] == [shapes.CLASSES[int(str(number)) - 1]]
        assert (scene.label_map() == number).sum() > 40


def test_without_scikit_image_the_extra_is_named(
    shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    shapes._materials.cache_clear()
    with pytest.raises(DataError, match="pip install scikit-image"):
        sources.dataset("shapes:")


def test_a_scikit_image_without_its_pictures_is_an_error(
    shapes: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(importlib.util, "find_spec", lambda _: Spec)
    shapes._materials.cache_clear()
    with pytest.raises(DataError, match=r"chelsea\.png.*\n?to fix: install scikit-image again"):
        sources.dataset("shapes:")
