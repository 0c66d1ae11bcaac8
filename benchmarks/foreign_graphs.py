"""The graphs of `foreign.py`: networks that nobody here wrote, as public exporters write them.

    python benchmarks/foreign_graphs.py NAME FILE.onnx

Runs where torch, torchvision, timm, transformers and the wheels that ship trained networks are;
deploykit need not be there. Weights are random by seed but for the wheels' own; batch norms have
seen the photographs beside FILE (float32[N, 3, H, W] in images-H-W.npy), so that activations have
the ranges of a network in use. Prints the input size as JSON.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from functools import partial
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Make = Callable[[], Any]

SEED = 0
OPSET = 18
SIDE = 96
"""Pixels, where an architecture does not want another number."""


@dataclass(frozen=True)
class Shipped:
    """An ONNX file that a wheel brings."""

    package: str
    path: str
    size: tuple[int, int]
    channels: int = 3


@dataclass(frozen=True)
class Network:
    """A torch module and how it is exported."""

    make: Make
    dynamo: bool
    size: int = SIDE


def torchvision_of(name: str, **settings: Any) -> Any:  # noqa: ANN401 - a torch module
    """Return a classifier of torchvision with random weights."""
    import torchvision

    return getattr(torchvision.models, name)(weights=None, num_classes=50, **settings)


def segmenter(name: str) -> Any:  # noqa: ANN401
    """Return a segmentation network of torchvision, its main output alone."""
    import torch
    import torchvision

    class Main(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            make = getattr(torchvision.models.segmentation, name)
            self.net = make(weights=None, weights_backbone=None, num_classes=21)

        def forward(self, x: Any) -> Any:  # noqa: ANN401
            return self.net(x)["out"]

    return Main()


def detector(name: str, **settings: Any) -> Any:  # noqa: ANN401
    """Return backbone and heads of a detector of torchvision: no boxes are decoded or chosen."""
    import torch
    import torchvision

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            make = getattr(torchvision.models.detection, name)
            net = make(weights=None, weights_backbone=None, **settings)
            self.backbone = net.backbone
            self.head = net.rpn.head if hasattr(net, "rpn") else net.head

        def forward(self, x: Any) -> Any:  # noqa: ANN401
            maps = self.backbone(x)
            maps = list(maps.values()) if isinstance(maps, dict) else [maps]
            found = self.head(maps)
            found = found.values() if isinstance(found, dict) else found
            flat = [each if isinstance(each, (list, tuple)) else [each] for each in found]
            return tuple(tensor for several in flat for tensor in several)

    return Heads()


def timm_of(name: str, **settings: Any) -> Any:  # noqa: ANN401
    """Return a network of timm with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, num_classes=50, **settings)


def transformer(config: str, model: str, **settings: Any) -> Any:  # noqa: ANN401
    """Return a small network of transformers, its tensors alone."""
    import torch
    import transformers

    class Tensors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            made = getattr(transformers, config)(**settings)
            made._attn_implementation = "eager"  # noqa: SLF001 - how transformers is told
            self.net = getattr(transformers, model)(made)

        def forward(self, x: Any) -> Any:  # noqa: ANN401
            found = self.net(x, return_dict=True)
            names = ("logits", "pred_boxes")
            return tuple(found[name] for name in names if name in found)

    return Tensors()


def detr() -> Any:  # noqa: ANN401
    """Return a small DETR on a ResNet-18 of timm."""
    return transformer(
        "DetrConfig",
        "DetrForObjectDetection",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        backbone="resnet18",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=20,
    )


def _shipped() -> Mapping[str, Shipped]:
    light = ("onnx", "backend/test/data/light/light_{}.onnx")
    found = {
        f"light_{name}": Shipped(light[0], light[1].format(name), (224, 224))
        for name in (
            "bvlc_alexnet",
            "densenet121",
            "inception_v1",
            "inception_v2",
            "resnet50",
            "shufflenet",
            "squeezenet",
            "vgg19",
            "zfnet512",
        )
    }
    ocr = "rapidocr_onnxruntime"
    return {
        **found,
        "ppocr_cls": Shipped(ocr, "models/ch_ppocr_mobile_v2.0_cls_infer.onnx", (48, 192)),
        "ppocr_det": Shipped(ocr, "models/ch_PP-OCRv4_det_infer.onnx", (160, 160)),
        "ppocr_rec": Shipped(ocr, "models/ch_PP-OCRv4_rec_infer.onnx", (48, 192)),
        "ddddocr_det": Shipped("ddddocr", "common_det.onnx", (416, 416)),
        "ddddocr_old": Shipped("ddddocr", "common_old.onnx", (64, 160), channels=1),
        "ddddocr": Shipped("ddddocr", "common.onnx", (64, 160), channels=1),
    }


SHIPPED = _shipped()
_TV, _TIMM = partial(partial, torchvision_of), partial(partial, timm_of)
NETWORKS: Mapping[str, Network] = {
    "tv_resnet18": Network(_TV("resnet18"), dynamo=True),
    "tv_resnext50": Network(_TV("resnext50_32x4d"), dynamo=False),
    "tv_mobilenet_v2": Network(_TV("mobilenet_v2"), dynamo=False),
    "tv_mobilenet_v3_small": Network(_TV("mobilenet_v3_small"), dynamo=True),
    "tv_mobilenet_v3_large": Network(_TV("mobilenet_v3_large"), dynamo=False),
    "tv_efficientnet_b0": Network(_TV("efficientnet_b0"), dynamo=True),
    "tv_shufflenet_v2": Network(_TV("shufflenet_v2_x1_0"), dynamo=False),
    "tv_squeezenet": Network(_TV("squeezenet1_1"), dynamo=True),
    "tv_mnasnet": Network(_TV("mnasnet0_5"), dynamo=False),
    "tv_regnet_y": Network(_TV("regnet_y_400mf"), dynamo=True),
    "tv_densenet": Network(_TV("densenet121"), dynamo=True),
    "tv_googlenet": Network(_TV("googlenet", aux_logits=False, init_weights=False), dynamo=False),
    "tv_convnext": Network(_TV("convnext_tiny"), dynamo=False),
    "tv_swin": Network(_TV("swin_t"), dynamo=True),
    "tv_swin_v2": Network(_TV("swin_v2_t"), dynamo=False),
    "tv_vit": Network(
        lambda: _vit(image_size=SIDE, patch_size=16, num_layers=4, num_heads=4, hidden_dim=128),
        dynamo=True,
    ),
    "tv_deeplab": Network(partial(segmenter, "deeplabv3_mobilenet_v3_large"), dynamo=True),
    "tv_lraspp": Network(partial(segmenter, "lraspp_mobilenet_v3_large"), dynamo=False),
    "tv_fcn": Network(partial(segmenter, "fcn_resnet50"), dynamo=True),
    "tv_retinanet": Network(partial(detector, "retinanet_resnet50_fpn"), dynamo=True, size=128),
    "tv_fcos": Network(partial(detector, "fcos_resnet50_fpn"), dynamo=False, size=128),
    "tv_ssdlite": Network(
        partial(detector, "ssdlite320_mobilenet_v3_large"), dynamo=False, size=320
    ),
    "tv_ssd": Network(partial(detector, "ssd300_vgg16"), dynamo=True, size=300),
    "tv_rpn": Network(
        partial(detector, "fasterrcnn_mobilenet_v3_large_320_fpn"), dynamo=False, size=128
    ),
    "timm_mobilenetv4": Network(_TIMM("mobilenetv4_conv_small"), dynamo=False),
    "timm_efficientnet_lite": Network(_TIMM("efficientnet_lite0"), dynamo=True),
    "timm_ghostnet": Network(_TIMM("ghostnet_100"), dynamo=True),
    "timm_repvgg": Network(_TIMM("repvgg_a0"), dynamo=False),
    "timm_hrnet": Network(_TIMM("hrnet_w18_small"), dynamo=True),
    "timm_dla": Network(_TIMM("dla34"), dynamo=False),
    "timm_cspresnet": Network(_TIMM("cspresnet50"), dynamo=True),
    "timm_darknet": Network(_TIMM("cspdarknet53"), dynamo=False),
    "timm_edgenext": Network(_TIMM("edgenext_xx_small"), dynamo=True),
    "timm_mobilevit": Network(_TIMM("mobilevit_xxs"), dynamo=False, size=128),
    "timm_fastvit": Network(_TIMM("fastvit_t8"), dynamo=True, size=128),
    "timm_levit": Network(_TIMM("levit_128s"), dynamo=False, size=224),
    "timm_poolformer": Network(_TIMM("poolformer_s12"), dynamo=True),
    "timm_mixer": Network(_TIMM("mixer_s32_224"), dynamo=False, size=224),
    "timm_deit": Network(_TIMM("deit_tiny_patch16_224", img_size=SIDE), dynamo=True),
    "timm_convnextv2": Network(_TIMM("convnextv2_atto"), dynamo=False),
    "hf_detr": Network(detr, dynamo=False),
    "hf_segformer": Network(
        partial(
            transformer,
            "SegformerConfig",
            "SegformerForSemanticSegmentation",
            hidden_sizes=[16, 32, 64, 128],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=64,
        ),
        dynamo=False,
        size=128,
    ),
    "hf_swin": Network(
        partial(
            transformer,
            "SwinConfig",
            "SwinForImageClassification",
            image_size=128,
            embed_dim=48,
            depths=[2, 2, 2, 2],
            num_heads=[2, 4, 8, 16],
            window_size=4,
        ),
        dynamo=True,
        size=128,
    ),
    "hf_vit": Network(
        partial(
            transformer,
            "ViTConfig",
            "ViTForImageClassification",
            image_size=SIDE,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
        ),
        dynamo=True,
    ),
    "hf_convnext": Network(
        partial(
            transformer,
            "ConvNextConfig",
            "ConvNextForImageClassification",
            hidden_sizes=[32, 64, 128, 256],
            depths=[2, 2, 4, 2],
        ),
        dynamo=False,
    ),
}
NAMES = (*SHIPPED, *NETWORKS)
TASKS = {
    **dict.fromkeys(("tv_deeplab", "tv_lraspp", "tv_fcn", "hf_segformer"), "semantic_segmentation"),
    "ddddocr_det": "detection",
}
"""Graph -> its task, where that is not classification."""
READERS = ("ppocr_cls", "ppocr_det", "ppocr_rec", "ddddocr", "ddddocr_old")
"""Graphs that are fed with lines of text."""
_ANCHORS = ("tv_retinanet", "tv_fcos", "tv_ssdlite", "tv_ssd", "tv_rpn")
TASKLESS = (*READERS, *_ANCHORS, "hf_detr")
"""Graphs whose outputs none of deploykit's tasks reads: they are quantised without one."""


def _vit(**settings: Any) -> Any:  # noqa: ANN401
    import torchvision

    return torchvision.models.VisionTransformer(
        mlp_dim=2 * settings["hidden_dim"], num_classes=50, **settings
    )


def settled(net: Any, images: Any) -> Any:  # noqa: ANN401
    """Return a module whose batch norms have the statistics of `images`.

    Layers that start with zeros, as some classifiers do, get random weights: no image would change
    their outputs.
    """
    import torch

    net.train()
    for module in net.modules():
        if isinstance(module, torch.nn.Linear) and not module.weight.any():
            module.reset_parameters()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # noqa: SLF001
            module.momentum = None
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    with torch.no_grad():
        for start in range(0, len(images), 8):
            net(images[start : start + 8])
    return net.eval()


def export(network: Network, path: Path) -> None:
    """Write a module as ONNX, its batch open where its exporter can."""
    import torch

    torch.manual_seed(SEED)
    side = network.size
    images = torch.from_numpy(np.load(path.parent / f"images-{side}-{side}.npy")[:16])
    net = settled(network.make(), images)
    example = (images[:2].clone(),)
    if network.dynamo:
        program = torch.onnx.export(
            net,
            example,
            input_names=["images"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
        assert program is not None
        program.save(path)
    else:
        torch.onnx.export(
            net,
            example,
            str(path),
            input_names=["images"],
            opset_version=OPSET - 1,
            dynamo=False,
            dynamic_axes={"images": {0: "batch"}},
        )


def main() -> None:
    """Write the graph of a name and print its input size."""
    warnings.simplefilter("ignore")
    name, path = sys.argv[1], Path(sys.argv[2])
    if name in SHIPPED:
        shipped = SHIPPED[name]
        spec = util.find_spec(shipped.package)
        assert spec is not None
        assert spec.origin is not None
        path.write_bytes((Path(spec.origin).parent / shipped.path).read_bytes())
    else:
        export(NETWORKS[name], path)
    print("\n" + json.dumps(sizes(name)))


def sizes(name: str) -> dict[str, Any]:
    """Return the input size of a graph."""
    if name in SHIPPED:
        return {"size": SHIPPED[name].size, "channels": SHIPPED[name].channels}
    side = NETWORKS[name].size
    return {"size": (side, side), "channels": 3}


if __name__ == "__main__":
    main()
