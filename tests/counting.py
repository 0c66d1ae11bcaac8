"""A task of one's own in one file, as a user would write it: how many bright dots are there?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from deploykit import Display, Pair, Scores

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


@dataclass
class CountError:
    """Mean absolute error, and the share of images counted right."""

    off: list[float] = field(default_factory=list)

    def add(self, name: str, result: float, truth: Any, size: tuple[int, int], /) -> None:
        assert size[0] > 0, name
        self.off.append(abs(result - truth))

    def scores(self) -> Scores:
        off = np.array(self.off)
        return Scores(
            {"exact": float((off < 0.5).mean()), "error": float(off.mean())},
            primary="error",
            display={
                "error": Display("Mean error", unit="dots", digits=2, higher_is_better=False),
                "exact": Display("Exact", unit="%", digits=1, scale=100, summary=True),
            },
        )


class WithinHalf:
    """Counts are compared as they are; how many round otherwise is told beside."""

    def __init__(self) -> None:
        self.others = 0

    def pairs(
        self,
        found: Mapping[str, NDArray[Any]],
        expected: Mapping[str, NDArray[Any]],
        atol: float,
        rtol: float,
    ) -> dict[str, Pair]:
        assert atol >= 0 <= rtol
        self.others += int((np.round(found["dots"]) != np.round(expected["dots"])).sum())
        return {"dots": Pair(found["dots"], expected["dots"], columns=False)}

    def findings(self) -> tuple[Any, ...]:
        from deploykit.values import Agreement

        passed = self.others == 0
        return (Agreement("rounded", self.others, 0.0, 0.0, 1.0, passed=passed),)


class Counting:
    """Outputs `dots` float32[batch, 1] to a number per image."""

    def decode(
        self, outputs: Mapping[str, NDArray[np.float32]], geometries: Sequence[Any], /
    ) -> list[float]:
        return [float(outputs["dots"][i, 0]) for i in range(len(geometries))]

    def metric(self, categories: Mapping[int, str], classes: Sequence[str], /) -> CountError:
        assert list(categories.values()) == list(classes)
        return CountError()

    def agreement(self) -> WithinHalf:
        return WithinHalf()

    def draw(
        self, image: NDArray[np.uint8], result: float, classes: Sequence[str], /
    ) -> NDArray[np.uint8]:
        picture = Image.fromarray(image)
        ImageDraw.Draw(picture).text((1, 1), f"{result:.0f} {classes[0]}", fill=(255, 0, 0))
        return np.asarray(picture)
