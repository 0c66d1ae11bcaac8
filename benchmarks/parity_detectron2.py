"""detectron2's own Mask R-CNN, from the image file on, beside ours made from its checkpoint.

Run by `parity.py --files --detectron2 CHECKOUT`: the network, the transform and the predictor's
steps are those of the checkout, at the size that its configuration has. Weights are random, scaled
so that objects are found in photographs.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import dense_models
import torch

from deploykit.tasks.detections import Detections

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from parity import Found, Model

CONFIGURATION = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
CLASSES = 6
OBJECTS = 10
"""In a photograph, about."""
SURE = 0.3
"""Score of an object that counts."""


class Official:
    """detectron2's network and how it takes an image file."""

    def __init__(self, checkout: Path) -> None:
        """Build the network of the checkout, with random weights."""
        sys.path.insert(0, str(checkout))
        config = importlib.import_module("detectron2.config").get_cfg()
        config.merge_from_file(str(checkout / "configs" / CONFIGURATION))
        config.MODEL.DEVICE, config.MODEL.RESNETS.NORM = "cpu", "BN"
        config.MODEL.ROI_HEADS.NUM_CLASSES = CLASSES
        transforms = importlib.import_module("detectron2.data.transforms")
        least, most = config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST
        self._resize = transforms.ResizeShortestEdge([least, least], most)
        self._read = importlib.import_module("detectron2.data.detection_utils").read_image
        self.format = config.INPUT.FORMAT
        self.model: Model = importlib.import_module("detectron2.modeling").build_model(config)
        self.model.eval()

    def raw(self, path: Path) -> Found:
        """Return what the network finds in an image file: the steps of DefaultPredictor."""
        original = self._read(str(path), format=self.format)
        height, width = original.shape[:2]
        image = self._resize.get_transform(original).apply_image(original)
        values = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
        with torch.inference_mode():
            (found,) = self.model([{"image": values, "height": height, "width": width}])
        return found["instances"]

    def __call__(self, path: Path) -> Detections:
        """Return it as detections."""
        found = self.raw(path)
        return Detections(
            found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy()
        )


def lively(official: Official, paths: Sequence[Path]) -> None:
    """Give the network weights by which it finds some objects in the images."""
    model = official.model
    dense_models.sane(model)
    rpn, box = model.proposal_generator.rpn_head, model.roi_heads.box_predictor
    for layer, mean, deviation in (
        (rpn.objectness_logits, -1.0, 2.0),
        (rpn.anchor_deltas, 0.0, 0.3),
        (box.cls_score, 0.0, 3.0),
        (box.bbox_pred, 0.0, 0.5),
    ):
        dense_models.tame(partial(official.raw, paths[-1]), [layer], mean, deviation)
    low, high = 0.0, 12.0
    for _ in range(4):
        middle = (low + high) / 2
        _add(box.cls_score, middle)
        found = sum(int((official.raw(path).scores > SURE).sum()) for path in paths)
        many = found > OBJECTS * len(paths)
        _add(box.cls_score, -middle)
        low, high = (middle, high) if many else (low, middle)
    _add(box.cls_score, low)


def _add(scores: Any, by: float) -> None:  # noqa: ANN401 - a layer
    """Make the background, detectron2's last class, more likely."""
    with torch.no_grad():
        scores.bias[-1] += by


def saved(official: Official, path: Path) -> Path:
    """Write the weights as detectron2's checkpointer does, and return the path."""
    torch.save({"model": official.model.state_dict(), "__author__": "random"}, path)
    return path
