"""Train the example detector on generated shapes: YOLOv6 `pico`, 320x320, 6 classes.

    python examples/shapes/train.py --output examples/shapes/yolov6_pico.pth

Runs on two CPU cores within an hour. Everything is seeded; the images are generated.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from losses import Truth, loss
from torch import Tensor, nn

from deploykit import evaluation, files
from deploykit.metadata import ModelCard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.recipe import Floats, Preprocess, Recipe

VARIANT, SIZE = "pico", (320, 320)
CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS = 1.5e-3, 0.05, 500
FINAL_RATE = 0.01
"""Of the learning rate, at the end of the cosine."""
AVERAGE_DECAY, AVERAGE_RAMP = 0.9995, 1000
"""The averaged weights follow with decay * (1 - exp(-step / ramp))."""
GAIN, LIFT = 0.25, 20.0
"""Random contrast (relative) and brightness (of 255) of a training image."""
GRADIENT_LIMIT = 10.0


class Detector(nn.Module):
    """What training needs of the network that the recipe builds."""

    backbone: Any

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return class logits, distances, anchors and strides."""
        raise NotImplementedError


def prepare(name: str, preprocess: Preprocess, count: int) -> tuple[Tensor, list[Floats]]:
    """Return images uint8[N, 3, H, W] and per image its objects float32[M, 5]: class, xyxy."""
    data = files.dataset(name)
    assert data.truth is not None
    truth = data.truth()
    categories = {
        c["id"]: k for k, c in enumerate(sorted(truth["categories"], key=lambda c: c["id"]))
    }
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in truth["images"]}
    for item in truth["annotations"]:
        x, y, w, h = item["bbox"]
        boxes[item["image_id"]].append([categories[item["category_id"]], x, y, x + w, y + h])
    ids = {image["file_name"]: image["id"] for image in truth["images"]}

    images = torch.empty((count, 3, *preprocess.size), dtype=torch.uint8)
    objects: list[Floats] = []
    for k, sample in enumerate(data.samples):
        pixels, place = preprocess(sample.read())
        images[k] = torch.from_numpy(np.round(pixels * 255).astype(np.uint8))
        rows: Floats = np.array(boxes[ids[sample.name]], np.float32).reshape(-1, 5)
        rows[:, 1::2] = rows[:, 1::2] * place.scale_x + place.offset_x
        rows[:, 2::2] = rows[:, 2::2] * place.scale_y + place.offset_y
        objects.append(rows)
    return images, objects


def batches(
    images: Tensor, objects: list[Floats], size: int, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Truth]]:
    """Yield one epoch of shuffled batches, each image flipped, turned and relit at random."""
    order = rng.permutation(len(images))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        pixels, rows = zip(*(augment(images[k], objects[k], rng) for k in chosen), strict=True)
        batch = torch.stack(pixels).float()
        gain = torch.from_numpy(rng.uniform(1 - GAIN, 1 + GAIN, (size, 3, 1, 1)).astype(np.float32))
        lift = torch.from_numpy(rng.uniform(-LIFT, LIFT, (size, 1, 1, 1)).astype(np.float32))
        batch = (batch * gain + lift).clamp(0, 255) / 255
        yield batch, pad(rows)


def augment(image: Tensor, rows: Floats, rng: np.random.Generator) -> tuple[Tensor, Floats]:
    """Return the square image and its boxes after one of the eight flips and quarter turns."""
    side = image.shape[-1]
    label, x1, y1, x2, y2 = rows.T
    if rng.random() < 0.5:
        image, (x1, x2) = image.flip(-1), (side - x2, side - x1)
    if rng.random() < 0.5:
        image, (y1, y2) = image.flip(-2), (side - y2, side - y1)
    if rng.random() < 0.5:
        image, (x1, y1, x2, y2) = image.transpose(-1, -2), (y1, x1, y2, x2)
    return image, np.stack([label, x1, y1, x2, y2], 1)


def pad(rows: tuple[Floats, ...]) -> Truth:
    """Return the objects of a batch as one padded `Truth`."""
    most = max(1, *(len(r) for r in rows))
    full = torch.zeros(len(rows), most, 5)
    present = torch.zeros(len(rows), most, dtype=torch.bool)
    for k, r in enumerate(rows):
        full[k, : len(r)] = torch.from_numpy(r)
        present[k, : len(r)] = True
    return Truth(full[..., 0].long(), full[..., 1:], present)


def optimizer_for(network: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW that decays kernels only, not biases and norms."""
    kernels = [p for p in network.parameters() if p.ndim > 1 and p.requires_grad]
    others = [p for p in network.parameters() if p.ndim <= 1 and p.requires_grad]
    groups = [
        {"params": kernels, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE)


def rate(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine."""
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Move the averaged weights and statistics towards the network's."""
    decay = AVERAGE_DECAY * (1 - math.exp(-(step + 1) / AVERAGE_RAMP))
    for kept, new in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, 1 - decay)


def train(recipe: Recipe, options: argparse.Namespace) -> nn.Module:
    """Return the averaged network after `options.epochs` epochs."""
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    network = cast("Detector", recipe.build(VARIANT, len(CLASS_NAMES)).train())
    network.to(memory_format=torch.channels_last)
    # PyTorch 2.15 corrupts memory in the backward pass of a channels-last 1x1 stride-2 stem.
    network.backbone.stem.to(memory_format=torch.contiguous_format)
    average = copy.deepcopy(network).eval()
    started = time.perf_counter()
    spec = f"shapes:split=train,seed={options.seed},count={options.images},size={SIZE[0]}"
    images, objects = prepare(spec, recipe.preprocess(VARIANT, SIZE), options.images)
    print(f"{len(images)} images in {time.perf_counter() - started:.0f} s", flush=True)

    optimizer = optimizer_for(network)
    per_epoch = len(images) // options.batch_size
    steps, step = per_epoch * options.epochs, 0
    for epoch in range(options.epochs):
        sums: dict[str, float] = {}
        for batch, truth in batches(images, objects, options.batch_size, rng):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * rate(step, steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=not options.float32):
                logits, distances, anchors, strides = network.raw(batch)
            total, parts = loss((logits.float(), distances.float(), anchors, strides), truth)
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
            nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_LIMIT)
            optimizer.step()
            follow(average, network, step)
            sums = {k: sums.get(k, 0.0) + v / per_epoch for k, v in parts.items()}
            step += 1
        save(average, options.output)
        log = " ".join(f"{k} {v:.3f}" for k, v in sums.items())
        print(
            f"epoch {epoch + 1}/{options.epochs} {log} {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    return average


def save(network: nn.Module, path: Path) -> None:
    """Write the weights in half precision, with the class names, branches unfolded."""
    state = {
        k: v.half().contiguous() if v.is_floating_point() else v
        for k, v in network.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    torch.save({"model": None, "ema": state, "names": list(CLASS_NAMES)}, path)


def average_precision(recipe: Recipe, network: nn.Module, count: int) -> dict[str, Any]:
    """Return the COCO box metrics on `count` held-out images."""
    card = ModelCard(
        recipe=recipe.name,
        variant=VARIANT,
        task=recipe.task,
        preprocess=recipe.preprocess(VARIANT, SIZE),
        class_names=CLASS_NAMES,
        checkpoint_sha256="",
    )
    data = files.dataset(f"shapes:split=val,seed=1,count={count},size={SIZE[0]}")
    assert recipe.decode is not None

    @torch.inference_mode()
    def forward(images: Floats) -> dict[str, Floats]:
        return {recipe.outputs[0]: network(torch.from_numpy(images)).numpy()}

    scores = evaluation.evaluate(forward, data, card, recipe.decode, batch_size=16)
    return scores.to_json()


def main() -> None:
    """Train, save the checkpoint and print its AP."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("yolov6_pico.pth"))
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in the forward pass")
    options = parser.parse_args()
    started = time.perf_counter()
    recipe = files.recipe("yolov6")
    network = train(recipe, options)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                **average_precision(recipe, network, 500),
                "epochs": options.epochs,
                "wall_seconds": round(time.perf_counter() - started),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
            }
        )
    )


if __name__ == "__main__":
    main()
