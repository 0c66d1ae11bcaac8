"""Repairs as a user asks for them and reads of them, and the images that they are tried on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploykit.data import arrays, feeding, samples, sources
from deploykit.errors import OptionError, StaleTableError, unknown_name
from deploykit.files import onnxfile
from deploykit.precision import repairs
from deploykit.precision.repairs import choosing

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable, Json

AUTO, NONE = "auto", "none"
_MOST = 24
"""Calibration images that are looked at for repairs."""
_CHOOSES = 3
"""One in so many of these is chosen on: ranges of channels from 4 images cost the example detector
2 dB, from 8 on more of them change nothing. The others judge: of 8 images the best of two methods
is often another than of 60."""


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
            return cls(repairs.AUTOMATIC, auto=True)
        return cls(names - {NONE}, auto=False)

    def without(self, names: Collection[str]) -> Wanted:
        """Return what is wanted but for some.

        Raises: OptionError where the user named one of these.
        """
        of_no_use = sorted(self.names & set(names))
        if of_no_use and not self.auto:
            raise OptionError(
                f"the repair {', '.join(of_no_use)} before training",
                fix="leave it out: training finds better numbers",
            )
        return self._replace(names=self.names - set(names))


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
            was = f"{self.before:.1f} dB" if np.isfinite(self.before) else "no noise"
            now = f"{self.after:.1f}" if np.isfinite(self.after) else "no noise"
            gain = f": {was} become {now} on images held out"
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
    held = [feed for number, feed in enumerate(found) if number % _CHOOSES]
    return Images(found[::_CHOOSES], held) if held else None


def _feeds(model: Opened, source: str | Path | None, size: int | None) -> Iterator[Arrays]:
    inputs, _ = onnxfile.interface(model.graph)
    if source is None:
        return
    if not isinstance(source, str):
        data = arrays.opened(source, inputs)
        count = len(samples.choose(data.samples, size))
        fixed = bool(inputs[0].shape) and isinstance(inputs[0].shape[0], int)
        fed = data.feeds(limit=min(count, _MOST), batch=None if fixed else 1)
        yield from (each.arrays for each in fed)
        return
    if model.card is None:
        return
    dataset = sources.dataset(source)
    chosen = samples.choose(dataset.samples, size)
    few = replace(dataset, samples=samples.choose(chosen, min(_MOST, len(chosen))))
    for batch in samples.batches(few, model.card.preprocess, 1, skipped=[]):
        yield feeding.feeds(inputs, batch.images, batch.geometries)


def check(table: CalibrationTable, wanted: Wanted) -> None:
    """Check that a table that is there has no repair but those wanted. Raises: StaleTableError."""
    has = {
        "equalise": ("of a model with equalised channels", bool(table.factors)),
        "observer": ("one of ranges chosen by what they do", table.observer in choosing.LABELS),
        "bias": ("one with corrected biases", bool(table.shifts)),
        "round": ("one with learnt rounding", bool(table.ways)),
    }
    for name, (what, there) in has.items():
        by_default = wanted.auto and name not in repairs.AUTOMATIC
        if there and name not in wanted.names and not by_default:
            raise StaleTableError(
                f"the calibration table is {what}",
                expected=f"one without the repair {name}, as is asked for",
                fix="give another name as the table: it is then made anew",
            )


def known(table: CalibrationTable) -> tuple[Repair, ...]:
    """Return the repairs that a table brings with it."""
    found = {"equalise": scaled(table.factors)} if table.factors else {}
    found |= {"round": rounded(table.ways)} if table.ways else {}
    found |= {"bias": shifted(table.shifts)} if table.shifts else {}
    return tuple(Repair(name, taken=True, what=what) for name, what in found.items())


class Calibrated(NamedTuple):
    """A model whose ranges are known."""

    model: Opened
    """The float model that they are of: its channels may have been scaled."""
    table: CalibrationTable
    repairs: tuple[Repair, ...] = ()


def scaled(factors: Mapping[str, tuple[int, ...]]) -> str:
    """Return what was done, in words."""
    largest = max(abs(each) for those in factors.values() for each in those)
    return f"channels of {len(factors)} layers scaled by up to {2**largest}"


def rounded(ways: Mapping[str, tuple[str, str]]) -> str:
    """Return what was done, in words."""
    return f"learnt rounding of {len(ways)} layers' weights"


def shifted(shifts: Mapping[str, tuple[float, ...]]) -> str:
    """Return what was done, in words."""
    return f"mean errors of {len(shifts)} layers taken off their biases"
