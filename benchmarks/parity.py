"""Objects in photographs: torchvision's detectors in PyTorch beside ours in ONNX Runtime.

    python benchmarks/parity.py                       # every detector
    python benchmarks/parity.py mask_rcnn ssd         # some of them
    python benchmarks/parity.py --files               # from the image file on: see parity_files.py

Weights are random, scaled so that each detector finds tens of objects in a photograph; the trained
example is compared too. Photographs are crops of those that scikit-image ships, in batches of 1, 2
and 4, until objects were found in 50 of them; an even image that shows nothing comes first. Both
sides get the same prepared pixels. Prints one row per detector and leaves with status 1 where a
limit is missed.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))  # the tests make such networks too

import dense_models
import torch
from torchvision.models import detection as zoo

from deploykit import backends
from deploykit.networks import loading
from deploykit.networks.detectors import light
from deploykit.pipeline import exporting
from deploykit.pipeline.exporting import ExportOptions
from deploykit.tasks import heatmaps, masks, matching
from deploykit.tasks.matching import Rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

Model: TypeAlias = Any
"""One of torchvision's detectors, which ship no types."""
Found: TypeAlias = Any
"""What it finds in an image, or one of our outputs."""
Answer: TypeAlias = "tuple[Model, float, float]"
"""A layer, and the mean and the deviation that its answers get."""
EXAMPLE = ROOT / "examples" / "shapes_masks" / "mask_rcnn_light.pth"
PICTURES = (
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png"),
    *("hubble_deep_field.jpg", "ihc.png", "retina.jpg", "camera.png", "coins.png", "moon.png"),
    *("clock_motion.png", "brick.png", "grass.png", "gravel.png", "page.png"),
)
COUNT, MOST, BATCHES = 50, 400, (1, 2, 4)
"""Photographs with objects, photographs at most, and what runs at once."""
CLASSES = 6
OBJECTS = 4
"""In the photograph with the fewest, about."""
LIMIT_BOX, LIMIT_SCORE, LIMIT_IOU = 0.5, 1e-3, 0.99
SHARE = 0.99


@dataclass(frozen=True)
class Subject:
    """One detector."""

    recipe: str
    make: Callable[[], Model]
    """Returns torchvision's model."""
    tame: Callable[[Model], Sequence[Answer]]
    """The layers to scale, with the mean and the deviation that their answers get."""
    size: tuple[int, int] = (320, 448)
    first: int = 1
    """torchvision's label of class 0."""


def two_stage(model: Model) -> list[Answer]:
    """Return the layers of a two-stage detector that give its answers."""
    box = model.roi_heads.box_predictor
    return [
        (model.rpn.head.cls_logits, -1.0, 2.0),
        (model.rpn.head.bbox_pred, 0.0, 0.3),
        (box.cls_score, 0.0, 1.5),
        (box.bbox_pred, 0.0, 0.5),
    ]


def thin(model: Model, images: torch.Tensor) -> None:
    """Make objects less likely until some image has no more than `OBJECTS`."""
    low, high = 0.0, 20.0
    for _ in range(8):
        middle = (low + high) / 2
        lower(model, middle)
        counts = [len(found["scores"]) for found in dense_models.eager(model, images)]
        lower(model, -middle)
        low, high = (middle, high) if min(counts) > OBJECTS else (low, middle)
    lower(model, high)


def lower(model: Model, by: float) -> None:
    """Take `by` from the logits of all classes, or add it to that of the background."""
    with torch.no_grad():
        if hasattr(model, "roi_heads"):
            model.roi_heads.box_predictor.cls_score.bias[0] += by
        elif hasattr(model.head.classification_head, "cls_logits"):
            model.head.classification_head.cls_logits.bias -= by
        else:  # SSD, a background per anchor in each cell
            head = model.head.classification_head
            for layer in head.module_list:
                layer.bias[:: head.num_columns] += by


def dense(model: Model) -> list[Answer]:
    """Return the layers of RetinaNet or FCOS that give its answers."""
    head = model.head
    found = [(head.classification_head.cls_logits, -5.0, 1.5)]
    if hasattr(head.regression_head, "bbox_ctrness"):
        found.append((head.regression_head.bbox_ctrness, 1.0, 1.0))
    return [*found, (head.regression_head.bbox_reg, 0.5, 0.3)]


def single_shot(model: Model) -> list[Answer]:
    """Return the layers of SSD that give its answers."""
    head = model.head
    return [(layer, 0.0, 2.0) for layer in head.classification_head.module_list] + [
        (layer, 0.0, 0.5) for layer in head.regression_head.module_list
    ]


def trained() -> Model:
    """Return the example in torchvision's form."""
    model = light.light_mask_rcnn(CLASSES)
    state = torch.load(EXAMPLE, weights_only=True)["model"]
    model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    return model.eval()


def untrained(name: str, classes: int) -> Model:
    """Return one of torchvision's detectors without weights."""
    return getattr(zoo, name)(weights=None, weights_backbone=None, num_classes=classes)


SUBJECTS = {
    "example": Subject("mask_rcnn", trained, lambda _: [], size=(320, 320)),
    "mask_rcnn": Subject(
        "mask_rcnn", lambda: untrained("maskrcnn_resnet50_fpn", CLASSES + 1), two_stage
    ),
    "faster_rcnn": Subject(
        "faster_rcnn", lambda: untrained("fasterrcnn_resnet50_fpn", CLASSES + 1), two_stage
    ),
    "keypoint_rcnn": Subject(
        "keypoint_rcnn", lambda: untrained("keypointrcnn_resnet50_fpn", 2), two_stage
    ),
    "retinanet": Subject(
        "retinanet", lambda: untrained("retinanet_resnet50_fpn", CLASSES), dense, first=0
    ),
    "fcos": Subject("fcos", lambda: untrained("fcos_resnet50_fpn", CLASSES), dense, first=0),
    "ssd": Subject(
        "ssd", lambda: untrained("ssd300_vgg16", CLASSES + 1), single_shot, size=(300, 300)
    ),
}


def photographs(size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Yield an even image, then uint8[H, W, 3] crops of scikit-image's photographs."""
    from PIL import Image  # noqa: PLC0415 - `--help` is instant

    package = importlib.util.find_spec("skimage")
    assert package is not None, "pip install scikit-image"
    assert package.origin is not None
    folder = Path(package.origin).parent / "data"
    rng = np.random.default_rng(0)
    yield np.full((*size, 3), 127, np.uint8)
    for number in range(MOST):
        whole = Image.open(folder / PICTURES[number % len(PICTURES)]).convert("RGB")
        share = rng.uniform(0.5, 1.0)
        width, height = (int(side * share) for side in whole.size)
        left, top = (
            int(rng.integers(0, a - b + 1))
            for a, b in zip(whole.size, (width, height), strict=True)
        )
        crop = whole.crop((left, top, left + width, top + height)).resize(size[::-1])
        yield np.asarray(crop)


def batches(images: Iterator[NDArray[np.float32]]) -> Iterator[torch.Tensor]:
    """Yield the images in batches of 1, 2 and 4, in turns."""
    for count in itertools.cycle(BATCHES):
        batch = list(itertools.islice(images, count))
        if not batch:
            return
        yield torch.from_numpy(np.stack(batch))


@dataclass
class Tally:
    """What was found alike."""

    images: int = 0
    empty: int = 0
    objects: int = 0
    same_count: int = 0
    alone: int = 0
    """Objects of either side without a partner of the same class in the same place."""
    boxes: list[float] = field(default_factory=list)
    """Pixels between partners."""
    scores: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    points: list[float] = field(default_factory=list)

    def add(
        self, theirs: Found, ours: Mapping[str, Found], first: int, size: tuple[int, int]
    ) -> None:
        """Compare one image."""
        wanted = Rows(
            theirs["boxes"].double().numpy(),
            theirs["scores"].double().numpy(),
            theirs["labels"].numpy() - first,
            full=False,
        )
        count = int(ours["count"])
        found = Rows(
            ours["boxes"][:count].astype(np.float64),
            ours["scores"][:count].astype(np.float64),
            ours["classes"][:count].astype(np.int64),
            full=False,
        )
        paired = matching.pairs(wanted, found)
        left, right = paired.reference, paired.candidate
        self.images += 1
        self.empty += not len(wanted.scores)
        self.objects += len(wanted.scores)
        self.same_count += len(wanted.scores) == count
        self.alone += sum(map(len, paired.alone))
        self.boxes += np.abs(wanted.boxes[left] - found.boxes[right]).max(1).tolist()
        self.scores += np.abs(wanted.scores[left] - found.scores[right]).tolist()
        if "masks" in ours and len(left):
            frames = theirs["boxes"].numpy()[left]
            pasted = masks.paste(ours["masks"][right], frames, *size)
            truth = theirs["masks"].numpy()[left, 0] > masks.THRESHOLD
            either = (pasted | truth).sum((1, 2))
            ious = np.where(either > 0, (pasted & truth).sum((1, 2)) / np.maximum(either, 1), 1)
            self.ious += ious.tolist()
        if "keypoints" in ours and len(left):
            located = heatmaps.locate(ours["keypoints"][right], theirs["boxes"].numpy()[left])
            off = np.abs(located[..., :2] - theirs["keypoints"].numpy()[left, :, :2]).max(-1)
            self.points += off.ravel().tolist()

    def holds(self) -> bool:
        """Return whether every limit holds."""
        near = [value <= LIMIT_BOX for value in self.boxes]
        return (
            self.same_count == self.images
            and self.images - self.empty >= COUNT
            and not self.alone
            and bool(near)
            and float(np.mean(near)) >= SHARE
            and max(self.scores) <= LIMIT_SCORE
            and min(self.ious, default=1) >= LIMIT_IOU
            and float(np.mean([p <= LIMIT_BOX for p in self.points] or [True])) >= SHARE
        )

    def row(self, name: str) -> str:
        """Return one line of the table."""
        boxes = np.array(self.boxes)
        extra = f"mask IoU >= {min(self.ious):.4f}" if self.ious else ""
        if self.points:
            share = np.mean([p <= LIMIT_BOX for p in self.points])
            extra = f"{share:.2%} of points within {LIMIT_BOX} px"
        return (
            f"{name:14}{self.images:4} images, {self.empty} empty; {self.objects:5} objects; same "
            f"count {self.same_count}/{self.images}; alone {self.alone}; boxes "
            f"{np.mean(boxes <= LIMIT_BOX):.2%} within {LIMIT_BOX} px, "
            f"at most {boxes.max(initial=0):.4f}; "
            f"scores within {max(self.scores, default=0):.1e}; {extra} "
            f"{'holds' if self.holds() else 'MISSED'}"
        )


def compare(subject: Subject, folder: Path) -> Tally:
    """Return how the two sides of one detector agree."""
    torch.manual_seed(0)
    model = subject.make()
    layers = subject.tame(model)
    if layers:
        dense_models.sane(model)
    torch.save(model.state_dict(), folder / "model.pth")
    options = ExportOptions(subject.recipe, input_size=subject.size)
    preprocess = loading.load_network(folder / "model.pth", options).card.preprocess
    first = list(itertools.islice(photographs(preprocess.size), 1, 1 + len(PICTURES)))
    some = torch.from_numpy(np.stack([preprocess(picture)[0] for picture in first]))
    for layer, mean, deviation in layers:
        dense_models.tame(lambda: dense_models.eager(model, some[:2]), [layer], mean, deviation)
    if layers:
        thin(model, some)
    torch.save(model.state_dict(), folder / "model.pth")
    path = folder / "model.onnx"
    exporting.export(folder / "model.pth", path, options)
    session = backends.load("onnxruntime").open_session(path)
    tally = Tally()
    for batch in batches(preprocess(picture)[0] for picture in photographs(preprocess.size)):
        if tally.images - tally.empty >= COUNT:
            break
        found = session.run({"images": batch.numpy()})
        for i, theirs in enumerate(dense_models.eager(model, batch)):
            ours = {name: value[i] for name, value in found.items()}
            tally.add(theirs, ours, subject.first, preprocess.size)
    return tally


def main() -> int:
    """Compare what the command line names; return 1 where a limit is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("detector", nargs="*", help=", ".join(SUBJECTS))
    parser.add_argument("--files", type=int, nargs="?", const=60, metavar="COUNT")
    parser.add_argument("--detectron2", type=Path, help="a checkout: its transform is run")
    parser.add_argument("--yolov6", type=Path, help="a checkout: its transforms are run")
    given = parser.parse_args()
    if given.files:
        import parity_files  # noqa: PLC0415 - it needs this module

        return int(not parity_files.run(given.files, given.detectron2, given.yolov6))
    chosen = given.detector or list(SUBJECTS)
    missed = 0
    for name in chosen:
        if name not in SUBJECTS:
            parser.error(f"unknown detector {name!r}: one of {', '.join(SUBJECTS)}")
        with tempfile.TemporaryDirectory() as folder:
            tally = compare(SUBJECTS[name], Path(folder))
        print(tally.row(name), flush=True)
        missed += not tally.holds()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
