"""Segmenters of one class: a number per pixel says how sure they are of the foreground."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.data.preprocess import Floats
    from deploykit.tasks.head_shapes import Shapes

MAIN = "out"
"""Name of the output that counts where a network has others for training, as torchvision's."""
MIDDLE = {"logit": 0.0, "probability": 0.5}
"""What `--decode` names -> the number above which a pixel is foreground."""
NAMES = ("background", "foreground")
_RANKS = (3, 4)


@dataclass(frozen=True)
class Foreground:
    """Reads one number per pixel as the scores of two classes."""

    kind: str
    """One of MIDDLE."""

    def __call__(self, outputs: Mapping[str, Any]) -> Floats:
        """Return float32[batch, 2, h, w]: of the background and the foreground.

        Raises: ModelError for outputs of another form.
        """
        shapes = {name: value.shape for name, value in outputs.items()}
        check(self.kind, shapes)
        found = outputs[str(main(shapes))]
        sides = _sides(found.shape)
        assert sides is not None  # `main` has looked
        sure = found.reshape(len(found), 1, *sides).astype(np.float32)
        both: Floats = np.concatenate([2 * np.float32(MIDDLE[self.kind]) - sure, sure], 1)
        return both


def main(outputs: Shapes) -> str | None:
    """Return the output that holds one number per pixel; the first of several of one form.

    Networks with an output for each of their levels have the joint one first. None: no such form.
    """
    if MAIN in outputs:
        return MAIN if _sides(outputs[MAIN]) else None
    alone = all(_sides(shape) for shape in outputs.values())
    return next(iter(outputs), None) if alone else None


def _sides(shape: Any) -> tuple[Any, Any] | None:  # noqa: ANN401 - sizes, or names of open ones
    """Return height and width of [batch, 1, h, w], [batch, h, w, 1] or [batch, h, w]."""
    if len(shape) == _RANKS[0]:
        return shape[1], shape[2]
    if len(shape) == _RANKS[1] and shape[1] == 1:
        return shape[2], shape[3]
    if len(shape) == _RANKS[1] and shape[3] == 1:
        return shape[1], shape[2]
    return None


def check(kind: str, outputs: Shapes) -> None:
    """Check that outputs hold one number per pixel. Raises: ModelError."""
    if main(outputs) is None:
        forms = ", ".join(f"{name}[{', '.join(map(str, s))}]" for name, s in outputs.items())
        raise ModelError(
            f"the outputs {forms} are no {kind} of each pixel",
            expected="one output, or one called 'out': [batch, 1, h, w], [batch, h, w, 1] or "
            "[batch, h, w]",
        )
