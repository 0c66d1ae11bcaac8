"""What scores of masks bring: AP of one network's masks, ranked by them and by the boxes' scores.

    python examples/shapes_mask_scores/compare.py mask_scoring_rcnn_light.pth

Both rank the same masks of the same objects. The interval of 95 % is that of the mean over 20
blocks of images, which are scored apart.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit import tasks
from deploykit.data import samples, sources
from deploykit.networks import loading
from deploykit.tasks.evaluation import Contract, Judge
from deploykit.training import loops

if TYPE_CHECKING:
    from deploykit.data.sources import Dataset
    from deploykit.networks.loading import Network
    from deploykit.tasks.task import Scores
    from deploykit.values import Json

SCORES = "mask_scores"
BATCH, BLOCKS = 8, 20
STUDENT = 2.093
"""97.5th percentile of Student's distribution with 19 degrees of freedom."""


def compared(made: Network, data: Dataset) -> Json:
    """Return mask AP by the boxes' and by the masks' scores, and what the latter bring."""
    contract = Contract(made.card.preprocess, made.card.class_names, tasks.find(made.recipe.task))
    forward = loops.runner(made.module, made.recipe, contract.preprocess)
    by_boxes, by_masks = (Judge(data, contract, None, BLOCKS) for _ in range(2))
    for batch in samples.batches(data, contract.preprocess, BATCH):
        found = forward(batch)
        by_boxes.add(batch, {name: value for name, value in found.items() if name != SCORES})
        by_masks.add(batch, found)
    plain, scored = by_boxes.found(), by_masks.found()
    gains = [_ap(b) - _ap(a) for a, b in zip(plain.parts, scored.parts, strict=True)]
    mean, half = np.mean(gains), STUDENT * np.std(gains, ddof=1) / BLOCKS**0.5
    return {
        "images": len(data.samples),
        "mask_ap_by_boxes": _ap(plain.scores),
        "mask_ap_by_masks": _ap(scored.scores),
        "gain": _ap(scored.scores) - _ap(plain.scores),
        "gain_of_blocks": float(mean),
        "interval": [float(mean - half), float(mean + half)],
    }


def _ap(scores: Scores) -> float:
    value = scores.metrics["mask_ap"]
    assert value is not None
    return value


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--source", default="shapes:split=val,seed=1,count=2000")
    options = parser.parse_args()
    made = loading.load_network(options.checkpoint, loading.NetworkOptions())
    found = compared(made, sources.dataset(options.source))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
