"""How large a scaled image is, in whole pixels: every family rounds in its own way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels."""
Rounding: TypeAlias = Literal["down", "even", "half-up", "short", "enlarged"]
"""Of the scaled sides: to the whole number below, to the nearest (a half to the even one), to the
nearest (a half to the one above), the short one to the nearest and the other, as the image's shape
has it, to the number below; to the nearest, where an image only grows to its short side."""
_WHOLE: dict[Rounding, Callable[[float], int]] = {
    "down": int,
    "even": round,
    "half-up": lambda side: int(side + 0.5),
    "short": int,
    "enlarged": round,
}


def rounded(side: float, rounding: Rounding) -> int:
    """Return a side in whole pixels, at least one."""
    return max(1, _WHOLE[rounding](side))


def limited(height: int, width: int, limits: Size, rounding: Rounding) -> tuple[float, Size]:
    """Return the scale of an image, and its sides then.

    limits: of its short side, which it gets, and of its long side, which it does not exceed.
    Enlarged is what matterport's Mask R-CNN does (utils.py, `resize_image`, square).
    """
    short, long = limits
    least, most = min(height, width), max(height, width)
    if rounding == "short":
        return _by_short_side(height, width, limits)
    ratio = max(1.0, short / least) if rounding == "enlarged" else short / least
    if rounding == "half-up":  # detectron2 rounds what two factors give
        high, wide = (short if side == least else side * ratio for side in (height, width))
        more = min(1.0, long / max(high, wide))
        return ratio * more, (rounded(high * more, rounding), rounded(wide * more, rounding))
    reach = most * ratio  # the Caffe detectors compare the rounded side
    if (round(reach) if rounding in ("even", "enlarged") else reach) > long:
        ratio = long / most
    return ratio, (rounded(height * ratio, rounding), rounded(width * ratio, rounding))


def _by_short_side(height: int, width: int, limits: Size) -> tuple[float, Size]:
    """Return the scale and the sides by torchvision's resize to a short side, as it was first used.

    Source: maskrcnn-benchmark, data/transforms/transforms.py.
    """
    least, most = min(height, width), max(height, width)
    short = limits[0]
    if most / least * short > limits[1]:
        short = max(1, round(limits[1] * least / most))
    sides = short, max(1, int(short * most / least))
    return short / least, sides if height <= width else sides[::-1]
