"""Objects from the image file on: the official pipelines' own transforms beside ours.

    python benchmarks/parity.py --files
    python benchmarks/parity.py --files --detectron2 CHECKOUT --yolov6 CHECKOUT

Landscape, square, portrait and panorama images are written as PNG, read by each side with its own
reader, prepared, run and brought back to the pixels of the file. The trained examples are the
networks: what is compared is everything around them. detectron2's and YOLOv6's transforms are
run from a checkout where one is given, and else told anew from the library calls they consist of.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from parity import CLASSES, ROOT, Found, Model, trained
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from deploykit import ops
from deploykit.backends import onnxruntime
from deploykit.data import feeding, fitting, images
from deploykit.data.preprocess import Preprocess
from deploykit.data.sources import SOURCES
from deploykit.graph import canvases, fusion
from deploykit.networks import loading, reparam, tracing
from deploykit.networks.detectors import dense_family
from deploykit.networks.loading import NetworkOptions
from deploykit.recipes import opened
from deploykit.tasks import decoding, matching
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.coco import AveragePrecision
from deploykit.tasks.detections import Detections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from deploykit.backends import Session

    Find = Callable[[Path], Detections]
    Shape = Callable[[int, int], tuple[int, int]]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIMITS = (320, 533)
TORCHVISION = replace(dense_family.torchvisions((320, 544)), limits=LIMITS)
"""As torchvision's detectors prepare images, for the size that the example was trained at."""
DETECTRON2 = replace(TORCHVISION, resampler="pillow", rounding="half-up")
YOLOV6 = Preprocess((320, 320), resampler="cv2-area", rounding="down")
WHOLE = 8
"""Images that detectron2's own network is run on: it is not a small one."""
KINDS = ("landscape", "square", "portrait", "panorama")
BOX, SHARE, AP = 0.5, 0.99, 0.002
"""Pixels between partners, share of objects that must have a partner so near, difference of AP."""


@dataclass(frozen=True)
class Photograph:
    """One image file with its truth."""

    path: Path
    kind: str
    truth: ImageAnnotations


def photographs(folder: Path, count: int) -> Iterator[Photograph]:
    """Yield images of every kind in turn: shapes on photographs, the panoramas three in a row."""
    data = SOURCES.load("shapes").open(f"count={6 * count},size=400,seed=11")
    left = {kind: count // len(KINDS) for kind in KINDS}
    row: list[Any] = []
    for sample in data.samples:
        pixels, truth = sample.read(), sample.truth
        assert truth is not None
        height, width = pixels.shape[:2]
        ratio = width / height
        kind = "landscape" if ratio > 1.1 else "portrait" if ratio < 1 / 1.1 else "square"
        parts = [(pixels, truth())]
        if not left[kind]:
            row.append(parts[0])
            if len(row) < 3 or not left["panorama"]:
                continue
            kind, parts, row = "panorama", row, []
        left[kind] -= 1
        path = folder / f"{kind}_{left[kind]}.png"
        height = min(part.shape[0] for part, _ in parts)
        Image.fromarray(np.concatenate([part[:height] for part, _ in parts], 1)).save(path)
        yield Photograph(path, kind, _joined(parts, height, len(left) * 1000 + sum(left.values())))
        if not any(left.values()):
            return


def _joined(parts: Sequence[Any], height: int, number: int) -> ImageAnnotations:
    """Return the truth about images that stand side by side, cut to one height."""
    found, start = [], 0
    for pixels, truth in parts:
        for one in truth.annotations:
            x, y, w, h = one["bbox"]
            if y + h <= height:
                box = [x + start, y, w, h]
                found.append({"category_id": one["category_id"], "bbox": box, "area": w * h})
        start += pixels.shape[1]
    return ImageAnnotations(number, [{**one, "iscrowd": 0} for one in found], (height, start))


def exported(checkpoint: Path, preprocess: Preprocess) -> Session:
    """Return the network of a checkpoint in ONNX Runtime, for all sizes of `preprocess`."""
    network = loading.load_network(checkpoint, NetworkOptions())
    card = replace(network.card, preprocess=preprocess)
    module = reparam.deployed(network.recipe, network.module)
    folded = replace(network, module=module, card=card)
    models = [tracing.to_onnx(folded.at(size), 19) for size in preprocess.sizes]
    for model in models:
        fusion.fuse(model)
        ops.attach(model)
    return onnxruntime.open_model(opened.made(canvases.merged(models), Path("model.onnx")))


def ours(session: Session, preprocess: Preprocess, path: Path) -> Detections:
    """Return what our pipeline finds in a file."""
    values, place = preprocess(images.decode(path))
    outputs: Any = session.run(feeding.feeds(session.inputs, values[None], [place]))
    (found,) = decoding.objects(outputs, [place])
    return found


def _detections(found: Found, scale: tuple[float, float] = (1.0, 1.0)) -> Detections:
    boxes = found["boxes"].numpy() / np.array([*scale, *scale], np.float32)
    return Detections(boxes, found["scores"].numpy(), found["labels"].numpy() - 1)


def torchvisions(model: Model, path: Path) -> Detections:
    """Return what torchvision finds in a file, each image padded as it is alone."""
    pixels = np.array(Image.open(path).convert("RGB"))
    with torch.inference_mode():
        (found,) = model([torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)])
    return _detections(found)


def detectron2s(model: Model, shape: Shape, path: Path) -> Detections:
    """Return what the network finds in an image that detectron2's transform resized.

    The image is padded by the network, and boxes end with the image, as detectron2 has it.
    """
    pixels = np.array(Image.open(path).convert("RGB"))
    high, wide = pixels.shape[:2]
    height, width = shape(high, wide)
    resized = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    values = (resized.astype(np.float32) / 255 - np.array(MEAN)) / np.array(STD)
    with torch.inference_mode():
        (found,) = model([torch.from_numpy(values.transpose(2, 0, 1).astype(np.float32))])
    return _detections(found, (width / wide, height / high))


def detectron2_shape(checkout: Path | None) -> Shape:
    """Return detectron2's own rule for the sides of an image, else one told anew."""
    if checkout is None:
        return _shape
    source = checkout / "detectron2" / "data" / "transforms" / "augmentation_impl.py"
    rule = next(
        node
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name == "get_output_shape"
    )
    rule.decorator_list, rule.returns = [], None
    for argument in rule.args.args:
        argument.annotation = None
    names: dict[str, Any] = {}
    exec(ast.unparse(rule), names)  # noqa: S102 - the checkout that the user named
    return lambda height, width: names["get_output_shape"](height, width, *LIMITS)


def _shape(height: int, width: int) -> tuple[int, int]:
    scale = LIMITS[0] / min(height, width)
    less = min(1.0, LIMITS[1] / (scale * max(height, width)))
    return int(height * scale * less + 0.5), int(width * scale * less + 0.5)


def yolov6s(network: Model, checkout: Path | None, path: Path) -> Detections:
    """Return what the network finds in an image that YOLOv6's evaluation prepared."""
    import cv2  # noqa: PLC0415 - cv2 reads the file here, as YOLOv6 does

    image: Any = cv2.imread(str(path))
    high, wide = image.shape[:2]
    if checkout is not None:
        sys.path[:0] = [str(checkout)]
        from yolov6.data.datasets import TrainValDataset  # type: ignore[import-not-found] # noqa: PLC0415, I001
        from yolov6.data.data_augment import letterbox  # type: ignore[import-not-found] # noqa: PLC0415

        data = object.__new__(TrainValDataset)
        vars(data).update(img_paths=[str(path)], cache_ram=False, specific_shape=False)
        vars(data).update(img_size=320, augment=False)
        image, _, (height, width) = data.load_image(0)
        image, _, (left, top) = letterbox(image, 320, auto=False, scaleup=False)
    else:
        ratio = 320 / max(high, wide)
        height, width = int(high * ratio), int(wide * ratio)
        way = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        image = cv2.resize(image, (width, height), interpolation=way)
        top, left = (round((320 - side) / 2 - 0.1) for side in (height, width))
        below, right = (round((320 - side) / 2 + 0.1) for side in (height, width))
        grey = (114,) * 3
        image = cv2.copyMakeBorder(image, top, below, left, right, cv2.BORDER_CONSTANT, value=grey)
    values = np.ascontiguousarray(image[:, :, ::-1].transpose(2, 0, 1), np.float32) / 255
    with torch.inference_mode():
        rows = network.module(torch.from_numpy(values[None])).numpy().copy()
    rows[..., [0, 2]] = (rows[..., [0, 2]] - [left, 0]) / (width / wide)
    rows[..., [1, 3]] = (rows[..., [1, 3]] - [top, 0]) / (height / high)
    from deploykit.data.preprocess import Geometry  # noqa: PLC0415 - the identity

    return decoding.objects({"outputs": rows}, [Geometry(high, wide, 1.0, 1.0)])[0]


def _whole(
    checkout: Path, shown: Sequence[Photograph], sizes: Sequence[Any], folder: Path
) -> tuple[str, Find, Find]:
    """Return detectron2's own network and transform, and ours from its checkpoint."""
    import parity_detectron2  # noqa: PLC0415 - it needs a checkout

    official = parity_detectron2.Official(checkout)
    parity_detectron2.lively(official, [photo.path for photo in shown])
    checkpoint = parity_detectron2.saved(official, folder / "detectron2.pth")
    own = loading.load_network(checkpoint, NetworkOptions()).card.preprocess
    fitted = fitting.fitted(own, sizes, dense_family.MULTIPLE).preprocess
    return "detectron2's", official, partial(ours, exported(checkpoint, fitted), fitted)


def compare(name: str, shown: Sequence[Photograph], official: Find, found: Find) -> bool:
    """Print how both sides agree, by kind of image, and return whether they do."""
    boxes: dict[str, list[float]] = defaultdict(list)
    alone: dict[str, int] = defaultdict(int)
    scores = [AveragePrecision(dict(enumerate(NAMES, 1)), NAMES) for _ in range(2)]
    for photo in shown:
        sides = [official(photo.path), found(photo.path)]
        for metric, side in zip(scores, sides, strict=True):
            metric.add(photo.path.name, side, photo.truth, photo.truth.size or (0, 0))
        rows = [
            matching.Rows(
                s.boxes.astype(np.float64),
                s.scores.astype(np.float64),
                s.classes.astype(np.int64),
                full=False,
            )
            for s in (_kept(side) for side in sides)
        ]
        paired = matching.pairs(rows[0], rows[1])
        off = np.abs(rows[0].boxes[paired.reference] - rows[1].boxes[paired.candidate])
        boxes[photo.kind] += off.max(1, initial=0).tolist()
        alone[photo.kind] += sum(map(len, paired.alone))
    ap = [float(metric.scores().metrics["ap"] or 0) for metric in scores]
    off_all = np.array([value for values in boxes.values() for value in values])
    holds = abs(ap[0] - ap[1]) <= AP and float(np.mean(off_all <= BOX)) >= SHARE
    kinds = "; ".join(
        f"{kind} {len(values)}, alone {alone[kind]}, at most {max(values, default=0):.3f} px"
        for kind, values in boxes.items()
    )
    print(
        f"{name:12} {np.mean(off_all <= BOX):.2%} of boxes within {BOX} px ({kinds}); "
        f"AP {ap[0]:.4f} official, {ap[1]:.4f} ours: {'holds' if holds else 'MISSED'}",
        flush=True,
    )
    return holds


NAMES = ("circle", "square", "triangle", "star", "cross", "ring")


def _kept(found: Detections) -> Detections:
    """Return the objects of some certainty: of the others, some hang on the last digit."""
    sure = found.scores > 0.3
    return Detections(found.boxes[sure], found.scores[sure], found.classes[sure])


def run(count: int, detectron2: Path | None, yolov6: Path | None) -> bool:
    """Compare all pipelines on `count` files; return whether every limit holds."""
    assert len(NAMES) == CLASSES
    model = trained()
    model.transform = GeneralizedRCNNTransform(*LIMITS, list(MEAN), list(STD)).eval()
    bare = trained()
    bare.transform.normalize = lambda image: image
    bare.transform.resize = lambda image, target: (image, target)
    shape = detectron2_shape(detectron2)
    checkpoint = ROOT / "examples" / "shapes" / "yolov6_pico.pth"
    pico, network = exported(checkpoint, YOLOV6), loading.load_network(checkpoint, NetworkOptions())
    with tempfile.TemporaryDirectory() as folder:
        shown = list(photographs(Path(folder), count))
        sizes = [images.decode(photo.path).shape[:2] for photo in shown]
        corner, other = (
            fitting.fitted(one, sizes, dense_family.MULTIPLE).preprocess
            for one in (TORCHVISION, DETECTRON2)
        )
        masks = ROOT / "examples" / "shapes_masks" / "mask_rcnn_light.pth"
        found = [partial(ours, exported(masks, one), one) for one in (corner, other)]
        cases: list[tuple[str, Find, Find]] = [
            ("torchvision", partial(torchvisions, model), found[0]),
            ("detectron2", partial(detectron2s, bare, shape), found[1]),
            ("yolov6", partial(yolov6s, network, yolov6), partial(ours, pico, YOLOV6)),
        ]
        if detectron2 is not None:
            cases.append(_whole(detectron2, shown[:WHOLE], sizes[:WHOLE], Path(folder)))
        held = [
            compare(name, shown[:WHOLE] if name == "detectron2's" else shown, *sides)
            for name, *sides in cases
        ]
        return all(held)
