"""Which repairs a model gets before it is calibrated: those that help on images held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploykit.data import arrays, feeding, samples, sources
from deploykit.errors import OptionError, StaleTableError, unknown_name
from deploykit.files import onnxfile
from deploykit.precision import placement, quantization, repairs
from deploykit.precision.calibration import CalibrationOptions
from deploykit.precision.quality import decibels
from deploykit.precision.repairs import choosing, comparing, equalisation, reaching
from deploykit.recipes import opened
from deploykit.values import CalibrationTable, Precision, Range

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.backends import Arrays
    from deploykit.precision.placement import Placement
    from deploykit.precision.repairs.reaching import Reaches
    from deploykit.recipes.opened import Opened
    from deploykit.values import Json, PrecisionPlan

AUTO, NONE = "auto", "none"
_SHARE, _LEAST, _MOST = 10, 12, 24
"""One in so many calibration images, within limits, is looked at for repairs. Ranges of channels
from 4 images cost the example detector 2 dB, from 8 on more of them change nothing."""
_HELD = 3
"""One in so many of these is held out to judge by."""
_OUTLIER = 2.5
"""Powers of two, from the others of its layer, from which on a channel is out of line. Trained
networks without any have nothing to gain from scales: their natural differences are smaller."""
_FAR = 16.0
"""Times the middle channel of its tensor from which on one hides what others do from a method that
looks at the tensor as a whole."""
_EACH = 2
"""Of the images that repairs are chosen on, every second says enough about ranges."""
_HELPS = 0.98
"""Times the noise without it that a repair must come below."""


class Wanted(NamedTuple):
    """The repairs that are tried, and whether they must help to be taken."""

    names: frozenset[str]
    auto: bool

    @classmethod
    def named(cls, given: Collection[str]) -> Wanted:
        """Return what a user asked for: names of repairs, or AUTO or NONE alone.

        Raises: OptionError.
        """
        names = frozenset(given)
        for name in names:
            if name not in (AUTO, NONE, *repairs.NAMES):
                raise unknown_name("repair", name, (AUTO, NONE, *repairs.NAMES))
        if len(names) > 1 and names & {AUTO, NONE}:
            raise OptionError(f"the repairs {', '.join(sorted(names))} contradict each other")
        if names <= {AUTO}:
            return cls(frozenset(repairs.NAMES), auto=True)
        return cls(names - {NONE}, auto=False)


@dataclass(frozen=True)
class Repair:
    """What came of one repair."""

    name: str
    taken: bool
    before: float | None = None
    """Signal to noise of the outputs on images held out without it, in dB; None: not measured."""
    after: float | None = None
    what: str = ""
    """What it did, in words."""

    def to_json(self) -> Json:
        """Return plain JSON values."""
        known = {"before": self.before, "after": self.after}
        found = {name: round(v, 2) for name, v in known.items() if v is not None and np.isfinite(v)}
        return {"taken": self.taken, "what": self.what, **found}

    def note(self) -> str:
        """Return what a user reads."""
        verb = "repaired" if self.taken else "not repaired"
        gain = ""
        if self.before is not None and self.after is not None:
            gain = f": {self.before:.1f} dB become {self.after:.1f} on images held out"
        return f"{verb} by {self.name} ({self.what}){gain}" if self.what else f"{verb}{gain}"


@dataclass(frozen=True)
class Images:
    """A few calibration images, as the inputs of a model."""

    chosen_on: Sequence[Arrays]
    held_out: Sequence[Arrays]


def images(model: Opened, source: str | Path | None, size: int | None) -> Images | None:
    """Return a few of the calibration images; None where there are not two.

    source: of images, or a folder of arrays; size: images that are calibrated on.

    Raises: DataError.
    """
    found = list(_feeds(model, source, size))
    held = found[_HELD - 1 :: _HELD] or found[1:]
    chosen_on = [feed for feed in found if not any(feed is other for other in held)]
    return Images(chosen_on, held) if held else None


def _feeds(model: Opened, source: str | Path | None, size: int | None) -> Iterator[Arrays]:
    inputs, _ = onnxfile.interface(model.graph)
    if source is None:
        return
    if not isinstance(source, str):
        data = arrays.opened(source, inputs)
        count = len(samples.choose(data.samples, size))
        fixed = bool(inputs[0].shape) and isinstance(inputs[0].shape[0], int)
        fed = data.feeds(limit=_count(count), batch=None if fixed else 1)
        yield from (each.arrays for each in fed)
        return
    if model.card is None:
        return
    dataset = sources.dataset(source)
    chosen = samples.choose(dataset.samples, size)
    few = replace(dataset, samples=samples.choose(chosen, _count(len(chosen))))
    for batch in samples.batches(few, model.card.preprocess, 1, skipped=[]):
        yield feeding.feeds(inputs, batch.images, batch.geometries)


def _count(images: int) -> int:
    return max(_LEAST, min(_MOST, images // _SHARE))


def check(table: CalibrationTable, wanted: Wanted) -> None:
    """Check that a table that is there has no repair but those wanted. Raises: StaleTableError."""
    has = {
        "equalise": ("of a model with equalised channels", bool(table.factors)),
        "observer": ("one of ranges chosen by readers", table.observer == choosing.LABEL),
    }
    for name, (what, there) in has.items():
        if there and name not in wanted.names:
            raise StaleTableError(
                f"the calibration table is {what}",
                expected=f"one without the repair {name}, as is asked for",
                fix="give another name as the table: it is then made anew",
            )


def known(table: CalibrationTable) -> tuple[Repair, ...]:
    """Return the repairs that a table brings with it."""
    return (Repair("equalise", taken=True, what=_scaled(table.factors)),) if table.factors else ()


class Repaired(NamedTuple):
    """What came of a model before it is calibrated."""

    model: Opened
    repairs: tuple[Repair, ...]
    uneven: bool
    """Whether channels of some tensor reach very unequally far all the same."""


def repaired(
    model: Opened, plan: PrecisionPlan, placed: Placement, seen: Images, wanted: Wanted
) -> Repaired:
    """Return a float model with channels that reach equally far, and what that brought.

    It is the model itself where that does not help and need not be.

    Raises: ModelError, BackendError.
    """
    tensors = {each.tensor for each in placed.activations} | {*placement.activations(placed)}
    reaches = reaching.reaches(model, sorted(tensors), seen.chosen_on)
    outliers = equalisation.factors(model.copy(), reaches, beyond=_OUTLIER)
    whole = equalisation.factors(model.copy(), reaches)
    tried = [each for each in (outliers, whole) if each and (outliers or not wanted.auto)]
    if not tried or "equalise" not in wanted.names:
        return Repaired(model, (), _uneven(reaches))
    judge = comparing.Judge(model, seen.held_out)
    before = judge.noise(_quantised(model, _ranges(model, reaches), plan))
    after: dict[float, tuple[Opened, Reaches]] = {}
    for factors in tried:
        candidate = repairs.equalised(model, factors)
        reached = equalisation.scaled(model.copy(), factors, reaches)
        noise = judge.noise(_quantised(candidate, _ranges(candidate, reached), plan))
        after.setdefault(noise, (candidate, reached))
    best = min(after)
    candidate, levelled = after[best]
    taken = not wanted.auto or best < _HELPS * before
    what = _scaled(candidate.factors)
    found = Repair("equalise", taken, decibels(before), decibels(best), what)
    if taken:
        return Repaired(candidate, (found,), _uneven(levelled))
    return Repaired(model, (found,), _uneven(reaches))


def _uneven(reaches: Reaches) -> bool:
    """Return whether a channel reaches far beyond the middle one of its tensor."""
    live = (reach[reach > 0] for reach in reaches.values())
    return any(each.size > 1 and each.max() > _FAR * np.median(each) for each in live)


def chooses(
    wanted: Wanted, how: CalibrationOptions, asked: Collection[str], *, uneven: bool
) -> bool:
    """Return whether ranges are chosen by the layers that read them.

    By default where channels are uneven and nobody named a method.
    """
    named = "observer" in asked or how.observer != CalibrationOptions().observer
    return "observer" in wanted.names and (not wanted.auto or (uneven and not named))


def chosen(  # noqa: PLR0913, PLR0917 - a model, what is known of it, and what is wanted
    model: Opened,
    table: CalibrationTable,
    plan: PrecisionPlan,
    placed: Placement,
    seen: Images,
    wanted: Wanted,
) -> tuple[CalibrationTable, Repair]:
    """Return the ranges that cost the layers that read them least, and what that brought.

    Raises: ModelError, BackendError.
    """
    few = seen.chosen_on[::_EACH]
    candidate = choosing.chosen(model, placed, table, few)
    judge = comparing.Judge(model, seen.held_out)
    before, after = (judge.noise(_quantised(model, each, plan)) for each in (table, candidate))
    taken = not wanted.auto or after < _HELPS * before
    moved = sum(table.ranges[name] != each for name, each in candidate.ranges.items())
    what = f"{moved} of {len(table.ranges)} ranges by another method than {table.observer}"
    found = Repair("observer", taken, decibels(before), decibels(after), what)
    return (candidate if taken else table), found


def _scaled(factors: Mapping[str, tuple[int, ...]]) -> str:
    """Return what was done, in words."""
    largest = max(abs(each) for those in factors.values() for each in those)
    return f"channels of {len(factors)} layers scaled by up to {2**largest}"


def _ranges(model: Opened, reaches: Reaches) -> CalibrationTable:
    """Return a table in which nothing is clipped."""
    largest = {name: float(reach.max(initial=0.0)) for name, reach in reaches.items()}
    ranges = {name: Range(reach, -reach, reach) for name, reach in largest.items()}
    return CalibrationTable(model.sha256, "minmax", (), "", ranges, factors=model.factors)


def _quantised(model: Opened, table: CalibrationTable, plan: PrecisionPlan) -> Opened:
    graph, _ = quantization.quantize(model, table, plan, float_type=Precision.FP32)
    return opened.made(graph, model.path)
