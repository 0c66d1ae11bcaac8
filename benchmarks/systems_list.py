"""The systems that `systems.py` takes along the road: networks, sizes and what is made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

CLASSES = 10
CLASSES_OF_SHAPES = 6
"""What the trained detectors of the examples tell apart, the background among them."""
COMPARED = 16


@dataclass(frozen=True)
class Spread:
    """What the outputs of a layer are brought to."""

    deviation: float
    mean: float = 0.0


HIDDEN = Spread(1.0)
TWO_STAGE = {
    "rpn.head.cls_logits": Spread(2.0, -1.0),
    "rpn.head.bbox_pred": Spread(0.2),
    "box_predictor.cls_score": Spread(2.0),
    "box_predictor.bbox_pred": Spread(0.3),
    "mask_fcn_logits": Spread(2.0),
    "coarse_head.prediction": Spread(2.0),
    "point_head.predictor": Spread(2.0),
    "maskiou.predictor": Spread(0.2, 0.7),
}
FEW = {"proposals": "60", "candidates": "200", "detections": "10"}
"""Settings of a two-stage detector with little to do behind its body."""
REGION_SIZE, SMALL = (192, 256), (128, 160)
DENSE = {
    "classification_head.cls_logits": Spread(2.0, -6.0),
    "regression_head.bbox_reg": Spread(0.3),
}
"""The best of some 10,000 scores lie four deviations above their mean, and are not to saturate."""
SOME = {"candidates": "200", "detections": "20"}
"""Settings of a one-stage detector alike."""


@dataclass(frozen=True)
class System:
    """A network, and how it is made."""

    recipe: str
    variant: str
    size: tuple[int, int]
    layouts: str
    """Whose checkpoints the recipe reads."""
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    """Piece of a layer's name -> what its outputs are brought to; of others `HIDDEN`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    classes: int = CLASSES
    example: str = ""
    """The trained weights in `examples/`, in place of random ones."""
    net: str = ""
    """Their name in the records of `quantization.py`, where what INT8 costs is said by these; of
    others by the records of the example."""
    attends: bool = False
    """Whether it is a transformer."""
    note: str = ""
    compared: int = COMPARED
    beside: str = ""
    """The system in whose turns its speed is measured too."""

    @property
    def least(self) -> float:
        """Return the share of multiply-accumulates in INT8 that is asked for."""
        return 0.85 if self.attends else 0.95


_SCORES = {"head": Spread(3.0), "classifier": Spread(3.0), "cls_head": Spread(3.0)}
SYSTEMS = {
    "DETR": System(
        *("detr", "r50", (192, 256), "official, transformers 4 and 5"),
        {"class_embed": Spread(3.0), "bbox_embed.layers.2": Spread(1.0)},
        attends=True,
        compared=8,
    ),
    "DETR with masks": System(
        *("detr_panoptic", "r50", (192, 256), "official, transformers 4 and 5"),
        {
            "class_embed": Spread(3.0),
            "bbox_embed.layers.2": Spread(1.0),
            "out_lay": Spread(2.0),
        },
        {"detections": "10"},
        attends=True,
        compared=4,
    ),
    "Deformable DETR": System(
        *("deformable_detr", "r50", (192, 256), "official, transformers 4 and 5"),
        {
            "class_embed": Spread(2.0, -3.0),
            "bbox_embed.0.layers.2": Spread(1.0),
            "sampling_offsets": Spread(3.0),
        },
        attends=True,
        compared=4,
    ),
    "Swin": System(
        *("swin", "tiny", (224, 224), "official, timm, torchvision"), _SCORES, attends=True
    ),
    "HRNet": System("hrnet", "w18_small", (224, 224), "official, timm", _SCORES),
    "HRNet segmenter": System(
        *("hrnet_seg", "w18_small", (128, 256), "official"),
        {"last_layer.3": Spread(3.0)},
        classes=19,
        compared=8,
    ),
    "MPViT": System("mpvit", "tiny", (224, 224), "official", _SCORES, attends=True),
    "PointRend": System(
        *("point_rend", "detectron2_resnet50_fpn", REGION_SIZE, "detectron2, old and new"),
        *(TWO_STAGE, FEW),
        compared=4,
        beside="Mask R-CNN",
    ),
    "PointRend SemanticFPN": System(
        *("point_rend_seg", "resnet18_fpn", (128, 256), "detectron2"),
        {"predictor": Spread(3.0)},
        classes=19,
        compared=4,
    ),
    "PointRend DeepLabV3": System(
        *("point_rend_deeplab", "resnet50", (96, 128), "PointRend-PyTorch"),
        {"classifier.4": Spread(3.0), "mlp": Spread(3.0)},
        classes=19,
        compared=4,
    ),
    "Mask Scoring R-CNN": System(
        *("mask_scoring_rcnn", "maskrcnn_benchmark_resnet50_fpn", REGION_SIZE),
        *("maskrcnn-benchmark", TWO_STAGE, FEW),
        compared=4,
        beside="Mask R-CNN",
    ),
    "InstanceFCN": System(
        *("instance_fcn", "vgg16", (128, 160), "torchvision's VGG-16 with the heads' own"),
        {"instance.2": Spread(2.0), "objectness.2": Spread(2.0, -2.0)},
        {"candidates": "200", "detections": "20"},
        classes=1,
        compared=4,
    ),
    "R-CNN": System(
        *("rcnn", "alexnet", (240, 320), "Caffe's layers"),
        {"svm": Spread(1.0, -1.0), "box": Spread(0.5)},
        note="a quarter as wide",
        compared=2,
    ),
    "matterport Mask R-CNN": System(
        *("keras_mask_rcnn", "resnet50_fpn", (192, 192), "Keras `.h5`"),
        {
            "rpn.class_raw": Spread(2.0),
            "rpn.bbox_pred": Spread(0.5),
            "box.logits": Spread(2.0),
            "box.bbox_fc": Spread(0.5),
            "mask.mask": Spread(2.0),
        },
        {**FEW, "score_threshold": "0"},
        compared=4,
    ),
    "Mask R-CNN": System(
        *("mask_rcnn", "resnet50_fpn", REGION_SIZE),
        *("torchvision, detectron2, maskrcnn-benchmark", TWO_STAGE, FEW),
        compared=4,
    ),
    "Faster R-CNN": System(
        *("faster_rcnn", "resnet50_fpn", REGION_SIZE),
        *("torchvision, detectron2, maskrcnn-benchmark", TWO_STAGE, FEW),
        compared=4,
    ),
    "Mask R-CNN, mmdetection": System(
        *("mask_rcnn", "mmdet_resnet50_fpn", SMALL),
        *("mmdetection 2 and 3", TWO_STAGE, FEW),
        compared=4,
    ),
    "Mask R-CNN on Swin": System(
        *("mask_rcnn", "mmdet_swin_tiny_fpn", SMALL),
        *("mmdetection 2 and 3, Swin's own", TWO_STAGE, FEW),
        attends=True,
        compared=4,
    ),
    "Mask R-CNN on MPViT": System(
        *("mask_rcnn", "detectron2_mpvit_tiny_fpn", SMALL),
        *("MPViT's own, detectron2's", TWO_STAGE, FEW),
        attends=True,
        compared=4,
    ),
    "RetinaNet": System(
        *("retinanet", "mmdet_resnet50_fpn", SMALL, "torchvision, detectron2, mmdetection"),
        *(DENSE, SOME),
        compared=4,
    ),
    "RetinaNet on MPViT": System(
        *("retinanet", "mmdet_mpvit_tiny_fpn", SMALL, "MPViT's own, mmdetection's"),
        *(DENSE, SOME),
        attends=True,
        compared=4,
    ),
    "UPerNet on Swin": System(
        *("upernet", "swin_tiny", (96, 128), "mmsegmentation, Swin's own"),
        {"conv_seg": Spread(3.0)},
        classes=19,
        attends=True,
        compared=4,
    ),
    "UPerNet on MPViT": System(
        *("upernet", "mpvit_tiny", (96, 128), "MPViT's own, mmsegmentation's"),
        {"conv_seg": Spread(3.0)},
        classes=19,
        attends=True,
        compared=4,
    ),
    "Mask R-CNN, trained": System(
        *("mask_rcnn", "light", (320, 320), "as above"),
        example="shapes_masks/mask_rcnn_light.pth",
        net="masks",
        compared=4,
    ),
    "Mask Scoring R-CNN, trained": System(
        *("mask_scoring_rcnn", "light", (320, 320), "as above"),
        example="shapes_mask_scores/mask_scoring_rcnn_light.pth",
        compared=4,
    ),
    "PointRend on streets, trained": System(
        *("point_rend", "light", (256, 512), "as above"),
        example="streets_masks/point_rend_light.pth",
        compared=4,
    ),
    "HRNet on streets, trained": System(
        *("hrnet_seg", "w18_small", (256, 512), "as above"),
        example="streets_maps/hrnet_small.pth",
        compared=4,
    ),
    "InstanceFCN, trained": System(
        *("instance_fcn", "light", (448, 448), "as above"),
        example="shapes_instances/instance_fcn_light.pth",
        compared=4,
    ),
    "DETR, trained": System(
        *("detr", "light", (160, 160), "as above"),
        example="shapes_detr/detr_light.pth",
        attends=True,
    ),
    "Swin, trained": System(
        *("swin", "light", (64, 64), "as above"),
        example="shapes_transformers/swin_light.pth",
        attends=True,
    ),
    "MPViT, trained": System(
        *("mpvit", "light", (64, 64), "as above"),
        example="shapes_transformers/mpvit_light.pth",
        attends=True,
    ),
    "YOLOv6, trained": System(
        *("yolov6", "pico", (320, 320), "releases 0.2 to 0.4"),
        example="shapes/yolov6_pico.pth",
        net="repvgg",
    ),
    "RepVGG, trained": System(
        *("repvgg", "pico", (64, 64), "official, timm"),
        example="shapes_classes/repvgg_pico.pth",
        net="classes",
    ),
    "FCN, trained": System(
        *("fcn", "light", (128, 128), "torchvision"),
        example="shapes_maps/fcn_light.pth",
        net="maps",
        compared=8,
    ),
}
