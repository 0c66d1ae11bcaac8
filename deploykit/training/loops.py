"""What training loops share: images and objects in memory, optimizer, rate, averaged weights."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from deploykit import tasks
from deploykit.data import feeding
from deploykit.errors import DataError
from deploykit.networks import loading, outputs
from deploykit.tasks import evaluation
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.evaluation import Contract
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry, Preprocess
    from deploykit.data.samples import Batch
    from deploykit.data.sources import Dataset, Sample
    from deploykit.recipes.recipe import Recipe
    from deploykit.tasks.evaluation import Forward
    from deploykit.values import Json

    Bits = NDArray[np.uint8]
    Names = tuple[str, ...]


GAIN, LIFT = 0.25, 20.0
"""Random contrast (relative) and brightness (of 255 levels) of a training image."""


@dataclass(frozen=True)
class Objects:
    """The truth about one image, in input pixels."""

    classes: NDArray[np.int64]
    """int64[M], the position of each object's category among the sorted category ids."""
    boxes: Floats
    """float32[M, 4], xyxy."""
    bits: Bits | None = None
    """uint8[M, H, W / 8]: the masks, eight pixels a byte (`numpy.packbits`)."""

    def masks(self) -> Bits:
        """Return uint8[M, H, W], 0 and 1."""
        assert self.bits is not None, "loaded without masks"
        return np.unpackbits(self.bits, axis=-1)


def load(data: Dataset, preprocess: Preprocess, *, masks: bool = False) -> tuple[Tensor, list[Any]]:
    """Return every image of a set, uint8[N, 3, H, W], placed but not normalised; its `Objects`.

    Masks must be uncompressed run lengths, as the `shapes` source gives them, and W a multiple
    of 8. Raises: DataError for a set without truth.
    """
    order = numbered(data)
    placed = levels(preprocess)
    images = torch.empty((len(data.samples), 3, *preprocess.size), dtype=torch.uint8)
    objects = []
    for k, sample in enumerate(data.samples):
        pixels, place = placed(sample.read())
        images[k] = torch.from_numpy(np.round(pixels).astype(np.uint8))
        found = _annotations(data, sample)
        bits = _masks(found, placed) if masks else None
        objects.append(Objects(_classes(found, order), _boxes(found, place), bits))
    return images, objects


def numbered(data: Dataset) -> dict[int, int]:
    """Return category id -> its place among the sorted ids of a set."""
    return {number: k for k, number in enumerate(sorted(data.categories))}


def placed(truth: ImageAnnotations, order: Mapping[int, int], place: Geometry) -> Objects:
    """Return what is known about one image where it lies in the input, without masks.

    order: see `numbered`.
    """
    return Objects(_classes(truth.annotations, order), _boxes(truth.annotations, place))


def levels(preprocess: Preprocess) -> Preprocess:
    """Return one that leaves the levels of pixels, 0 to 255, as they are.

    A training loop changes them at random, and normalises batch by batch.
    """
    return replace(preprocess, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def normalised(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Return float32[B, 3, H, W] of shares of white, 0 to 1, as `preprocess` normalises them."""
    mean, std = (
        torch.tensor(values, device=images.device).reshape(3, 1, 1)
        for values in (preprocess.mean, preprocess.std)
    )
    return (images * (255 * preprocess.scale) - mean) / std


def _annotations(data: Dataset, sample: Sample) -> Sequence[Json]:
    truth = sample.truth() if sample.truth is not None else None
    if not isinstance(truth, ImageAnnotations):
        raise DataError(
            f"{data.name} has no truth to learn from about {sample.name}",
            expected="COCO annotations, as the sources coco and shapes give them",
        )
    return truth.annotations


def _classes(found: Sequence[Json], order: Mapping[int, int]) -> NDArray[np.int64]:
    return np.array([order[item["category_id"]] for item in found], np.int64)


def _boxes(found: Sequence[Json], place: Geometry) -> Floats:
    boxes: Floats = np.array([item["bbox"] for item in found], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    scale = np.array([place.scale_x, place.scale_y] * 2, np.float32)
    offset = np.array([place.offset_x, place.offset_y] * 2, np.float32)
    moved: Floats = boxes * scale + offset
    return moved


def _masks(found: Sequence[Json], placed: Preprocess) -> Bits:
    """Return the masks' bits, placed as the image is, three at a time as its channels."""
    black = replace(placed, pad_value=0)
    planes = [255 * _pixels(item["segmentation"]) for item in found]
    planes += [np.zeros_like(planes[0])] * (-len(planes) % 3) if planes else []
    groups = [black(np.stack(planes[k : k + 3], -1))[0] for k in range(0, len(planes), 3)]
    everything = np.concatenate([np.empty((0, *placed.size), np.float32), *groups])
    return np.packbits(everything[: len(found)] >= 127.5, axis=-1)


def _pixels(segmentation: Json) -> Bits:
    """Return uint8[H, W], 0 and 1, of COCO's run lengths, which go down the columns."""
    height, width = segmentation["size"]
    runs = np.arange(len(segmentation["counts"]), dtype=np.uint8) % 2
    return np.repeat(runs, segmentation["counts"]).reshape(width, height).T


def turned(planes: Tensor, boxes: Floats, rng: np.random.Generator) -> tuple[Tensor, Floats]:
    """Return square planes [..., S, S] and the boxes on them after a random flip or quarter turn.

    All eight are equally likely.
    """
    side = planes.shape[-1]
    x1, y1, x2, y2 = boxes.T
    if rng.random() < 0.5:
        planes, (x1, x2) = planes.flip(-1), (side - x2, side - x1)
    if rng.random() < 0.5:
        planes, (y1, y2) = planes.flip(-2), (side - y2, side - y1)
    if rng.random() < 0.5:
        planes, (x1, y1, x2, y2) = planes.transpose(-1, -2), (y1, x1, y2, x2)
    return planes, np.stack([x1, y1, x2, y2], 1)


def relit(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Return float32[B, 3, H, W], 0 to 1, of uint8 levels after random contrast and brightness."""
    count = len(images)
    gain = torch.from_numpy(rng.uniform(1 - GAIN, 1 + GAIN, (count, 3, 1, 1)).astype(np.float32))
    lift = torch.from_numpy(rng.uniform(-LIFT, LIFT, (count, 1, 1, 1)).astype(np.float32))
    return (images.float() * gain + lift).clamp(0, 255) / 255


def optimizer(network: nn.Module, rate: float, decay: float) -> torch.optim.Optimizer:
    """Return AdamW that decays kernels only, not biases and norms."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate)


def rate(step: int, steps: int, *, warmup: int, final: float) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine down to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network learns."""

    epochs: int
    steps: int
    """Of each epoch."""
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 200
    """Steps in which the rate rises."""
    final: float = 0.01
    """Of the learning rate, at the end."""
    decay: float = 0.998
    """Of the averaged weights, each step."""


def fit(
    network: nn.Module,
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]],
    loss: Callable[[Any, Tensor], Tensor],
    schedule: Schedule,
) -> nn.Module:
    """Return the network with its weights averaged over the training.

    batches: Gives the images and the truth of one epoch. loss: Of what the network returns.
    """
    average = copy.deepcopy(network).eval()
    network.train()
    learner = optimizer(network, schedule.learning_rate, schedule.weight_decay)
    total, step, started = schedule.epochs * schedule.steps, 0, time.perf_counter()
    for epoch in range(schedule.epochs):
        losses = []
        for images, truth in batches():
            for group in learner.param_groups:
                share = rate(step, total, warmup=schedule.warmup, final=schedule.final)
                group["lr"] = schedule.learning_rate * share
            value = loss(network(images), truth)
            learner.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
            nn.utils.clip_grad_norm_(network.parameters(), _GRADIENT_LIMIT)
            learner.step()
            follow(average, network, min(schedule.decay, (1 + step) / (10 + step)))
            losses.append(float(value.detach()))
            step += 1
        taken = time.perf_counter() - started
        mean = sum(losses) / max(len(losses), 1)
        print(f"epoch {epoch + 1}/{schedule.epochs} {mean:.4f} {taken:.0f} s", flush=True)  # noqa: T201 - what a long training says
    return average


_GRADIENT_LIMIT = 5.0


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights and statistics towards the network's."""
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)


def average_gradients(network: nn.Module) -> None:
    """Give every process of the default group the mean of the processes' gradients."""
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def scores(network: nn.Module, recipe: Recipe, variant: str, data: Dataset, names: Names) -> Json:
    """Return the task's metrics of a network of the recipe on a set it was not trained on.

    names: The network's classes, in its order. Raises: as `evaluation.evaluate`.
    """
    preprocess = recipe.variant(variant).preprocess
    contract = Contract(preprocess, names, tasks.find(recipe.task))
    forward = runner(network, recipe, preprocess)
    scores, images, *_ = evaluation.evaluate(forward, data, contract, batch_size=16)
    return {**scores.metrics, "per_class": dict(scores.per_class), "images": images}


def runner(network: nn.Module, recipe: Recipe, preprocess: Preprocess) -> Forward:
    """Return what gives the outputs of a network of the recipe by their names."""
    pictures = TensorSpec("images", "float32", ("batch", 3, *preprocess.size))
    takes = (pictures, *recipe.extra_inputs(preprocess))

    @torch.inference_mode()
    def forward(batch: Batch) -> dict[str, Floats]:
        feeds = feeding.feeds(takes, batch.images, batch.geometries)
        found = network(*(torch.from_numpy(feeds[spec.name]) for spec in takes))
        return {k: v.numpy() for k, v in outputs.named(recipe, found)}

    return forward


def score(checkpoint: Path, data: Dataset) -> Json:
    """Return the metrics of a stored network on a set, see `scores`. Raises: CheckpointError."""
    made = loading.load_network(checkpoint, loading.NetworkOptions())
    return scores(made.module, made.recipe, made.card.variant, data, made.card.class_names)


def half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in half precision for storing, without the norms' counters."""
    return {
        k: v.half().contiguous() if v.is_floating_point() else v
        for k, v in state.items()
        if not k.endswith("num_batches_tracked")
    }
