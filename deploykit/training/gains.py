"""What a training brought: the loss on the same few images before it and after it."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from deploykit.training import retraining

if TYPE_CHECKING:
    from deploykit.training.batches import Batches
    from deploykit.training.retraining import Run
    from deploykit.values import Progress

IMAGES = 32
"""As many as that, in whole batches of the first epoch, and at least one batch."""


class Gauge:
    """The loss of the averaged weights on images that stay the same."""

    def __init__(self, run: Run, batches: Batches, progress: Progress) -> None:
        """Take the loss of a training that has not made a step."""
        self._seen = tuple(islice(batches.epoch(0), -(-IMAGES // batches.size)))
        self._progress = progress
        self.images = len(self._seen) * batches.size
        self.before = self._loss(run)

    def notes(self, run: Run) -> list[str]:
        """Return what a user reads of a training at its end.

        Raises: OptionError where the loss is no number any more.
        """
        after = self._loss(run)
        losses = f"{self.before:.4g} as calibrated, {after:.4g} now"
        notes = [
            f"learnt in {run.total} steps: the loss on {self.images} of the images is {losses}"
        ]
        if after > self.before:
            notes.append(
                "the training made it worse: "
                "a lower --learning-rate, more --epochs, or the file as it was calibrated"
            )
        return notes

    @torch.no_grad()
    def _loss(self, run: Run) -> float:
        found = 0.0
        for fed in self._progress(self._seen, "loss", len(self._seen)):
            found += retraining.loss_of(run, run.average, fed)[1]["loss"]
        return found / len(self._seen)
