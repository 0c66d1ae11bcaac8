"""What the tests of dense detectors share: torchvision's own results on a prepared canvas."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from deploykit import backends, ops, tasks
from deploykit.files import onnxfile
from deploykit.graph import fusion
from deploykit.networks import loading, reparam, tracing
from deploykit.recipes import identity, metadata
from deploykit.recipes.metadata import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.recipes.recipe import Recipe

    Arrays = Sequence[NDArray[Any]]
    Layer = nn.Conv2d | nn.Linear


Sizes: TypeAlias = "list[tuple[int, int]]"


def eager(
    model: Any, images: torch.Tensor, sizes: Sizes | None = None
) -> list[dict[str, torch.Tensor]]:
    """Return what torchvision's model finds in images that are prepared already.

    sizes: of the images at the top left of the canvases; the first is as large as these.
    """
    model.transform.normalize = lambda image: image
    model.transform.resize = lambda image, target: (image, target)
    model.transform.size_divisible = 1
    whole = (int(images.shape[2]), int(images.shape[3]))
    ends = sizes or [whole] * len(images)
    assert ends[0] == whole  # torchvision pads to the largest image
    with torch.inference_mode():
        found: list[dict[str, torch.Tensor]] = model.eval()(
            [image[:, :h, :w] for image, (h, w) in zip(images, ends, strict=True)]
        )
    return found


def cut(images: torch.Tensor, seed: int = 0) -> tuple[torch.Tensor, Sizes]:
    """Return images with zeros beyond their ends, and the ends; those of the first are its own."""
    whole = np.array(images.shape[2:])
    shares = np.random.default_rng(seed).uniform(0.4, 0.9, (len(images) - 1, 2))
    sizes = [(int(h), int(w)) for h, w in [whole, *np.rint(whole * shares)]]
    padded = torch.zeros_like(images)
    for image, other, (h, w) in zip(padded, images, sizes, strict=True):
        image[:, :h, :w] = other[:, :h, :w]
    return padded, sizes


def sane(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network with random weights that keep the size of what passes through it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan = module.weight[0].numel()
                module.weight.normal_(0, (1.6 / fan) ** 0.5, generator=generator)
                if module.bias is not None:
                    module.bias.normal_(0, 0.1, generator=generator)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.2, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


def tame(run: Callable[[], object], layers: Sequence[Layer], mean: float, deviation: float) -> None:
    """Scale the weights of `layers` so that what they give in `run` has this mean and deviation.

    Each layer is scaled by its own: scores that saturate would tie. None may depend on another.
    """
    seen: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in layers}
    hooks = [
        layer.register_forward_hook(lambda layer, _, found: seen[layer].append(found))
        for layer in layers
    ]
    with torch.inference_mode():
        run()
    for hook in hooks:
        hook.remove()
    for layer in layers:
        values = torch.cat([value.flatten() for value in seen[layer]])
        with torch.no_grad():
            layer.weight *= deviation / values.std()
            assert layer.bias is not None
            layer.bias.fill_(mean)


def headed(model: Any, images: torch.Tensor) -> Any:
    """Return what the head of torchvision's model gives, before it is decoded."""
    return model.head(list(model.backbone(images).values()))


def exported(network: nn.Module, recipe: Recipe, size: tuple[int, int], path: Path) -> Path:
    """Return the ONNX file of a network for inputs of `size`, written as `export` does."""
    variant = next(iter(recipe.variants))
    preprocess = replace(recipe.variant(variant).preprocess, size=size)
    card = ModelCard(recipe.name, variant, tasks.name(recipe.task), preprocess, ("a",), "")
    deployed = loading.Network(reparam.deployed(recipe, network).eval(), recipe, card)
    model = tracing.to_onnx(deployed, 19)
    fusion.fuse(model)
    ops.attach(model)
    metadata.write(model.metadata_props, card)
    onnxfile.write_model(model, path)
    return path


def run(path: Path, **feeds: torch.Tensor) -> list[NDArray[Any]]:
    """Return what a written model gives in ONNX Runtime."""
    session = backends.load("onnxruntime").open_session(path)
    found = session.run({name: value.numpy() for name, value in feeds.items()})
    return [found[name] for name in ("boxes", "scores", "classes", "count")]


def assert_same(
    found: Arrays, expected: Sequence[Mapping[str, torch.Tensor]], first: int = 0
) -> None:
    """Compare with torchvision's lists; `first`: its label of class 0."""
    boxes, scores, classes, counts = (np.asarray(array) for array in found[:4])
    for i, wanted in enumerate(expected):
        count = len(wanted["scores"])
        assert counts[i] == count
        order = aligned(boxes[i, :count], classes[i, :count], wanted, first)
        off = np.abs(boxes[i, :count][order] - wanted["boxes"].numpy())
        assert (off.max(1, initial=0) <= 0.5).mean() >= 0.99 if count else True
        np.testing.assert_allclose(scores[i, :count][order], wanted["scores"].numpy(), atol=1e-3)
        assert (classes[i, count:] == -1).all()
        assert not boxes[i, count:].any()
        assert not scores[i, count:].any()
        assert (np.diff(scores[i, :count]) <= 0).all()


def aligned(
    boxes: NDArray[Any], classes: NDArray[Any], wanted: Mapping[str, torch.Tensor], first: int
) -> NDArray[np.int64]:
    """Return, for each wanted detection, a row of its own that has its class and a near box."""
    labels, corners = wanted["labels"].numpy() - first, wanted["boxes"].numpy()
    distance = np.abs(boxes[None] - corners[:, None]).max(-1)
    distance[classes[None] != labels[:, None]] = 1e6
    assert distance.shape[0] == distance.shape[1], "every row has a partner"
    order: NDArray[np.int64] = linear_sum_assignment(distance)[1].astype(np.int64)
    return order


def told(answer: Any) -> tuple[str, int] | None:
    """Return the variant and the number of classes that a family found."""
    known = identity.found(answer)
    return None if known is None else (known.variant, known.classes)
