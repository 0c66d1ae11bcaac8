"""What a trained network itself gives, before anything is compared with it.

Two computations that both give NaN, or find nothing, agree; that proves nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import CheckpointError

if TYPE_CHECKING:
    from deploykit.proof.proving import Reference
    from deploykit.tasks.outputs import Output


def check(reference: Reference, outputs: tuple[Output, ...]) -> None:
    """Raise CheckpointError where a trained network gives no numbers, or finds nothing at all.

    reference: of the network with all its rows filled, so that one without any has no scores.
    outputs: what the recipe says of them.
    """
    answers = reference.form[0]
    for name, array in answers.items():
        numbers = np.issubdtype(array.dtype, np.floating)
        if numbers and not np.isfinite(array).all():
            what = "NaN" if np.isnan(array).any() else "infinities"
            raise CheckpointError(
                f"the trained network itself gives {what} in its output {name!r}",
                expected="finite numbers: nothing can be compared otherwise",
                fix="use an earlier checkpoint: training diverged, or its numbers are too large "
                "for single precision",
            )
    counts = [answers[o.name] for o in outputs if o.kind == "count" and o.name in answers]
    if counts and not any(count.any() for count in counts):
        raise CheckpointError(
            "the trained network itself finds nothing, whatever the score",
            expected="rows to compare: are its weights and its settings those of the training?",
            fix="state what it was trained with, where the file does not say (mean, std, "
            "anchor_sizes ...): --set NAME=VALUE; or use another checkpoint",
        )


def notes(reference: Reference) -> tuple[str, ...]:
    """Return what is said of a network that gives the same for every image; else nothing."""
    answers = [a for a in reference.form[0].values() if a.ndim and len(a) > 1]
    if not answers or not all((a == a[:1]).all() for a in answers):
        return ()
    return ("its outputs are the same for every image: were these weights trained?",)
