"""Train the example classifier on generated shapes: RepVGG `pico`, 64x64, 6 classes.

    python examples/shapes_classes/train.py --output examples/shapes_classes/repvgg_pico.pth

Runs on one CPU core within a quarter of an hour. Everything is seeded; the images are generated.
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
from torch import Tensor, nn

from deploykit.data import sources
from deploykit.recipes.recipe import RECIPES
from deploykit.training import gathering, loops

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.data.preprocess import Preprocess

VARIANT, SIZE = "pico", 64
HELD_OUT = f"shapes:split=val,seed=1,count=1000,size={SIZE},truth=class"
CLASS_NAMES = ("circle", "square", "triangle", "star", "cross", "ring")
NOWHERE = np.empty((0, 4), np.float32)


def load(spec: str, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """Return every image of a set, uint8[N, 3, H, W], and its class, int64[N]."""
    images, classes = gathering.classified(sources.dataset(spec), preprocess)
    return torch.from_numpy(images), torch.from_numpy(classes)


def batches(
    images: Tensor, classes: Tensor, preprocess: Preprocess, options: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled batches, each image flipped, turned and relit at random."""
    rng: np.random.Generator = options.rng
    order = torch.from_numpy(rng.permutation(len(images)))
    for start in range(0, len(order) - options.batch_size + 1, options.batch_size):
        chosen = order[start : start + options.batch_size]
        turned = torch.stack([loops.turned(images[i], NOWHERE, rng)[0] for i in chosen])
        yield loops.normalised(loops.relit(turned, rng), preprocess), classes[chosen]


def main() -> None:
    """Train, save the checkpoint and print its top-1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("repvgg_pico.pth"))
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    options.rng = np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    recipe = RECIPES.load("repvgg")
    preprocess = recipe.variant(VARIANT).preprocess
    spec = f"shapes:split=train,seed={options.seed},count={options.images},size={SIZE},truth=class"
    images, classes = load(spec, preprocess)
    print(f"{len(images)} images in {time.perf_counter() - started:.0f} s", flush=True)
    network = loops.fit(
        recipe.network(VARIANT, len(CLASS_NAMES)),
        partial(batches, images, classes, preprocess, options),
        nn.CrossEntropyLoss(label_smoothing=0.02),
        loops.Schedule(options.epochs, len(images) // options.batch_size),
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
