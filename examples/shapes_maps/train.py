"""Train the example segmenter on generated shapes: FCN `light`, 128x128, 7 classes.

    python examples/shapes_maps/train.py --output first.pth
    python examples/shapes_maps/train.py --start first.pth --seed 2 --epochs 6

Each runs on one CPU core within ten minutes. Everything is seeded; the images are generated.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from deploykit.data import sources
from deploykit.networks import loading
from deploykit.recipes.recipe import RECIPES
from deploykit.training import loops

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.data.preprocess import Preprocess

VARIANT, SIZE = "light", 128
HELD_OUT = f"shapes:split=val,seed=1,count=500,size={SIZE},truth=map"
CLASS_NAMES = ("background", "circle", "square", "triangle", "star", "cross", "ring")
NOWHERE = np.empty((0, 4), np.float32)


def load(spec: str, preprocess: Preprocess) -> Tensor:
    """Return every image of a set and the class of each pixel, uint8[N, 4, H, W]."""
    data, placed = sources.dataset(spec), loops.levels(preprocess)
    height, width = preprocess.size
    planes = torch.empty((len(data.samples), 4, height, width), dtype=torch.uint8)
    for i, sample in enumerate(data.samples):
        planes[i, :3] = torch.from_numpy(np.round(placed(sample.read())[0]).astype(np.uint8))
        assert sample.truth is not None
        labels = Image.fromarray(np.asarray(sample.truth(), np.uint8))
        scaled = labels.resize((width, height), Image.Resampling.NEAREST)
        planes[i, 3] = torch.from_numpy(np.array(scaled))
    return planes


def batches(
    planes: Tensor, preprocess: Preprocess, options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled batches, each image flipped, turned and relit at random."""
    rng: np.random.Generator = options.rng
    order = torch.from_numpy(rng.permutation(len(planes)))
    for start in range(0, len(order) - options.batch_size + 1, options.batch_size):
        chosen = order[start : start + options.batch_size]
        turned = torch.stack([loops.turned(planes[i], NOWHERE, rng)[0] for i in chosen])
        images = loops.normalised(loops.relit(turned[:, :3], rng), preprocess)
        yield images, turned[:, 3].long()


def loss(found: Mapping[str, Tensor], labels: Tensor) -> Tensor:
    """Return the cross entropy at the size of the input, and how badly classes overlap (Dice)."""
    scores = functional.interpolate(
        found["out"], labels.shape[1:], mode="bilinear", align_corners=False
    )
    shares = scores.softmax(1)
    right = functional.one_hot(labels, len(CLASS_NAMES)).permute(0, 3, 1, 2)
    both = (shares * right).sum((0, 2, 3))
    either = (shares + right).sum((0, 2, 3))
    overlap = (2 * both + 1) / (either + 1)
    return nn.functional.cross_entropy(scores, labels) + (1 - overlap).mean()


def main() -> None:
    """Train, save the checkpoint and print its mean IoU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("fcn_light.pth"))
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    recipe = RECIPES.load("fcn")
    preprocess = recipe.variant(VARIANT).preprocess
    spec = f"shapes:split=train,seed={options.seed},count={options.images},size={SIZE},truth=map"
    planes = load(spec, preprocess)
    print(f"{len(planes)} images in {time.perf_counter() - started:.0f} s", flush=True)
    network = recipe.network(VARIANT, len(CLASS_NAMES))
    if options.start is not None:
        network = loading.load_network(options.start, loading.NetworkOptions()).module
    network = loops.fit(
        network,
        partial(batches, planes, preprocess, options),
        loss,
        loops.Schedule(options.epochs, len(planes) // options.batch_size),
    )
    names = list(CLASS_NAMES)
    torch.save({"state_dict": loops.half(network.state_dict()), "names": names}, options.output)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    held_out = sources.dataset(HELD_OUT)
    said = {
        **loops.scores(network, recipe, VARIANT, held_out, CLASS_NAMES),
        "epochs": options.epochs,
        "wall_seconds": round(time.perf_counter() - started),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime),
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
