"""Whole detectors of three families, from the exporter's file to INT8, beside other decodes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import detector_nets
import numpy as np
import pytest
import torch
from detector_nets import Family
from head_reference import HEIGHT, SIZE, WIDTH, average_precision, expected
from PIL import Image

from deploykit import pipeline
from deploykit.recipes.describing import Description

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

CLASSES, IMAGES = 80, 6
NAMES = tuple(f"kind {i}" for i in range(CLASSES))
PATCH = 16
HEADS = {"yolov8": "yolov8", "yolov5": "yolov5", "yolox": "yolox", "yolox_decoded": "none"}
LETTERBOX, CORNER = (8.0, 0.0), (0.0, 0.0)
YOLOX = Description(preprocess="yolo", resize="corner", channels="BGR", scale=1.0)
ABOUT = {
    family: replace(
        YOLOX if "yolox" in family else Description(preprocess="yolo"),
        task="detection",
        decode=head,
        class_names=NAMES,
    )
    for family, head in HEADS.items()
}


def prepared(family: str, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The input of a family for one image, whose sides are halved by even patches."""
    small = pixels[::2, ::2].astype(np.float32)
    grey = np.full((*SIZE, 3), 114, np.float32)
    left = 0 if "yolox" in family else int(LETTERBOX[0])
    grey[:, left : left + small.shape[1]] = small
    if "yolox" in family:
        return grey[..., ::-1].transpose(2, 0, 1).copy()
    return grey.transpose(2, 0, 1) / np.float32(255)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.uint8]]:
    """Images of patches, as files beside each other: path -> pixels."""
    folder, rng = tmp_path_factory.mktemp("shown"), np.random.default_rng(11)
    found = {}
    for number in range(IMAGES):
        coarse = rng.integers(0, 256, (HEIGHT // PATCH, WIDTH // PATCH, 3), dtype=np.uint8)
        pixels = coarse.repeat(PATCH, 0).repeat(PATCH, 1)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        found[str(folder / f"{number}.png")] = pixels
    return found


def rows_of(family: str, output: NDArray[Any]) -> NDArray[Any]:
    """The objects by the reference: x1, y1, x2, y2, score, class."""
    return expected(HEADS[family], output, CORNER if "yolox" in family else LETTERBOX)


def coco(folder: Path, objects: Mapping[str, NDArray[Any]]) -> Path:
    """A set whose truth lies near some of the objects that a network finds in each image."""
    rng = np.random.default_rng(3)
    (folder / "annotations").mkdir(parents=True)
    images, truth = [], list[dict[str, Any]]()
    for number, (path, rows) in enumerate(objects.items(), start=1):
        (folder / "images").mkdir(exist_ok=True)
        (folder / "images" / f"{number}.png").write_bytes(Path(path).read_bytes())
        size = {"height": HEIGHT, "width": WIDTH}
        images.append({"id": number, "file_name": f"{number}.png", **size})
        for x1, y1, x2, y2, _, kind in rows[:60:3]:
            x, y = np.array([x1, y1]) + rng.normal(0, 1, 2)
            box = [x, y, x2 - x1, y2 - y1]
            ids = {"id": len(truth) + 1, "image_id": number, "category_id": int(kind) + 1}
            truth.append({**ids, "iscrowd": 0, "bbox": box, "area": box[2] * box[3]})
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES, start=1)]
    data = {"images": images, "annotations": truth, "categories": categories}
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(data), "utf-8")
    return folder


def by_reference(
    path: Path, family: str, shown: Mapping[str, NDArray[np.uint8]]
) -> dict[str, NDArray[Any]]:
    """The objects in each image by a file's rows and the reference."""
    model = pipeline.open_model(path)
    found = {}
    for name, pixels in shown.items():
        image, _ = model.contract().preprocess(pixels)
        np.testing.assert_allclose(image, prepared(family, pixels), rtol=1e-6)
        (output,) = model.session.run({"images": image[None]}).values()
        found[name] = rows_of(family, np.asarray(output))
    return found


def same_objects(ours: NDArray[Any], theirs: NDArray[Any]) -> None:
    """Compare rows x1, y1, x2, y2, score, class; objects that are as certain may change places."""
    assert len(ours) == len(theirs)
    apart = np.abs(ours[:, None] - theirs) / [2e-3, 2e-3, 2e-3, 2e-3, 1e-6, 0.5]
    partner = apart.max(2).argmin(1)
    assert sorted(partner) == list(range(len(theirs)))
    assert apart[np.arange(len(ours)), partner].max() < 1
    np.testing.assert_allclose(ours[:, 4], theirs[:, 4], atol=1e-6)


@pytest.mark.parametrize("family", get_args(Family))
def test_a_whole_detector_is_described_predicts_and_scores_as_by_an_independent_decode(
    family: Family, shown: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    inputs = torch.from_numpy(np.stack([prepared(family, each) for each in shown.values()]))
    net = detector_nets.detector(family, CLASSES, inputs)
    bare = detector_nets.exported(net, tmp_path / "bare.onnx", SIZE)
    described, int8 = tmp_path / "described.onnx", tmp_path / "int8.onnx"
    made = pipeline.describe(bare, described, ABOUT[family])
    assert any("objects, the best kind" in note for note in made.notes)

    theirs = by_reference(described, family, shown)
    with torch.no_grad():
        outputs = [net(each[None]).numpy() for each in inputs]
    first = next(iter(theirs.values()))
    assert len(first) > 20
    assert any(len(first) != len(other) for other in theirs.values()) or len(first) == 300
    torch_first = rows_of(family, outputs[0])
    np.testing.assert_allclose(first[:20, 4], torch_first[:20, 4], rtol=1e-3)

    model = pipeline.load(described)
    for path, rows in theirs.items():
        found = model(path)
        parts = (found.boxes, found.scores[:, None], found.classes[:, None])
        same_objects(np.concatenate(parts, 1), rows)

    (one, *_) = pipeline.predict(described, [next(iter(theirs))], tmp_path / "out")
    written = json.loads(one.data.read_text("utf-8"))["models"][0]["found"]["objects"]
    ours = [[*each["box"], each["score"], each["index"]] for each in written]
    same_objects(np.array(ours), first)

    data = coco(tmp_path / "coco", theirs)
    options = pipeline.EvalOptions(f"coco:{data}")
    ap = average_precision(data, dict(enumerate(theirs.values(), start=1)))
    assert 0.05 < ap < 0.99
    assert pipeline.evaluate(described, options).metrics["ap"] == pytest.approx(ap, abs=1e-6)

    pipeline.quantize(described, int8, pipeline.QuantizeOptions(source=f"coco:{data}"))
    coarse = by_reference(int8, family, shown)
    ap_int8 = average_precision(data, dict(enumerate(coarse.values(), start=1)))
    assert ap_int8 != ap
    assert ap_int8 > 0.01
    assert pipeline.evaluate(int8, options).metrics["ap"] == pytest.approx(ap_int8, abs=1e-6)
