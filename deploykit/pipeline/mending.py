"""Repairs tried on a calibrated model, one after the other: what helps is taken."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from deploykit.pipeline.repairing import Repair, rounded, scaled, shifted
from deploykit.precision import probing, quality, quantization, repairs
from deploykit.precision.quality import decibels
from deploykit.precision.repairs import (
    channels,
    choosing,
    comparing,
    correcting,
    equalisation,
    reaching,
    rounding,
)
from deploykit.recipes import opened
from deploykit.values import CalibrationTable, Precision, Range

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from deploykit.pipeline.repairing import Calibrated, Images, Wanted
    from deploykit.precision.placement import Placement
    from deploykit.precision.repairs.comparing import Noise
    from deploykit.precision.repairs.reaching import Reaches
    from deploykit.recipes.opened import Opened
    from deploykit.values import PrecisionPlan

_OUTLIER = 2.5
"""Powers of two, from the others of its layer, from which on a channel is out of line. Trained
networks without any have nothing to gain from scales: their natural differences are smaller."""
_FAR = 16.0
"""Times the middle channel of its tensor from which on one hides what others do from a method that
looks at the tensor as a whole."""
_EACH = 2
"""Of the images that repairs are chosen on, every second says enough about ranges."""
_GLANCE = 4
"""Images held out that tell whether scaled channels help: that is a matter of many decibels."""
_ENOUGH = 1e-4
"""Noise, 40 dB, below which nothing is tried: the classes and boxes that a model finds stay."""
_NOISY = 1e-2
"""Noise, 20 dB, from which on ranges are chosen by the layers that read them."""
_BIASED = 1e-3
"""Noise, 30 dB, from which on biases are corrected."""
_WORST = 6
"""Layers whose rounding is learnt."""
_HELPS = {"bias": 0.9}
"""Times the noise without it that a repair must come below, where that is not _A_LITTLE: a mean
error that is measured on 8 images lowers the noise of 16 others by half a decibel at random."""
_A_LITTLE = 0.98


@dataclass(frozen=True)
class Means:
    """What repairs are made with."""

    plan: PrecisionPlan
    placed: Placement
    images: Callable[[], Images | None]
    """A few calibration images."""
    calibrate: Callable[[Opened], CalibrationTable]
    """A pass over all of them."""
    named: bool
    """Whether the user named the method of calibration."""


def worth(wanted: Wanted, noise: Noise | None) -> bool:
    """Return whether repairs are tried on a model with such noise in its outputs.

    None: it is not known. Where the outputs do not vary, all noise is a shift, which biases undo.
    """
    if noise is None or not wanted.auto:
        return bool(wanted.names)
    found, least = noise.typical() or 0.0, comparing.NONE if noise.constant else _ENOUGH
    return bool(wanted.names) and found > least


def repaired(
    start: Calibrated, wanted: Wanted, means: Means, noise: Noise | None = None
) -> Calibrated:
    """Return a model and its ranges with the repairs that help, and what each brought.

    start: as calibrated, with `CalibrationTable.candidates` and `reaches`. noise: of its outputs,
    None where it is not known. What is given comes back where there is hardly any, or nothing
    helps.

    Raises: ModelError, BackendError.
    """
    seen = means.images() if wanted.names else None
    if seen is None:
        return start
    trials = _Trials(start, wanted, means, seen, noise)
    if worth(wanted, trials.found):
        tries = {
            "equalise": trials.equalise,
            "observer": trials.choose,
            "round": trials.learn,
            "bias": trials.correct,
        }
        shift_alone = wanted.auto and trials.found.constant
        for name in ("bias",) if shift_alone else repairs.NAMES:
            if name in wanted.names:
                tries[name]()
    return trials.best


class _Trials:
    """A model on its way through the repairs."""

    def __init__(
        self,
        start: Calibrated,
        wanted: Wanted,
        means: Means,
        seen: Images,
        noise: Noise | None,
    ) -> None:
        """Measure it as it is, where its `noise` is not known."""
        self.best = start
        self._wanted, self._means, self._seen = wanted, means, seen
        self._judge: comparing.Judge | None = None
        self._exact: float | None = None
        """Noise on the images held out, once it was measured."""
        if noise is None:
            noise = self._compared(start.model, start.table)
            self._exact = noise.typical()
        self.found, self.noise = noise, noise.typical()

    def equalise(self) -> None:
        """Scale channels that are out of line, and calibrate again."""
        model, table = self.best.model, self.best.table
        tensors = sorted({each.tensor for each in self._means.placed.activations} | {*table.ranges})
        found = channels.trace(model.copy())
        if self._wanted.auto:
            glance = equalisation.Balance.of(found, table.reaches)
            if not glance.factors(_OUTLIER):
                return
        reaches = reaching.reaches(model, tensors, self._seen.chosen_on)
        before = self._measured(model, _ranges(model, reaches), _GLANCE)
        after: dict[float, Opened] = {}
        balance = equalisation.Balance.of(found, reaches)
        for beyond in (_OUTLIER, 0.0):
            factors = balance.factors(beyond)
            if factors:
                candidate = repairs.equalised(model, factors)
                reached = equalisation.scaled(found, factors, reaches)
                noise = self._measured(candidate, _ranges(candidate, reached), _GLANCE)
                after.setdefault(_number(noise), candidate)
            if self._wanted.auto and not _helped(before, after):
                break  # where channels out of line cost nothing, the others cost no more
        if not after:
            return
        least = min(after)
        candidate = after[least]
        if self._taken("equalise", before, least, scaled(candidate.factors)):
            table = self._means.calibrate(candidate)
            self.best = self.best._replace(model=candidate, table=table)
            self._exact = None
            self.noise = self._before()

    def choose(self) -> None:
        """Give tensors the ranges that cost the layers that read them, or the outputs, least."""
        model, table = self.best.model, self.best.table
        noisy = (self.noise or 0.0) > _NOISY
        if self._wanted.auto and (self._means.named or not (noisy or _uneven(table.reaches))):
            return
        few = self._seen.chosen_on[::_EACH]
        first, second = choosing.chosen(model, self._means.placed, table, few)
        found = [first, second, choosing.whole(table)] if noisy else [first]
        noises = [_number(self._measured(model, each)) for each in found]
        best = found[int(np.argmin(noises))]
        moved = sum(table.ranges[name] != each for name, each in best.ranges.items())
        what = f"{moved} of {len(table.ranges)} ranges by another method than {table.observer}"
        self._offer("observer", best, what, min(noises))

    def learn(self) -> None:
        """Learn which way the weights of the layers with most noise are rounded."""
        (model, table), placed = self.best[:2], self._means.placed
        few, stored = self._seen.chosen_on, quality.stored(placed, table)
        seen = probing.probe(model, few[::_EACH], known=None, stored=stored)
        noise = quality.layer_noise(model.graph, placed, table, seen.noise)
        worst = sorted(noise, key=noise.__getitem__, reverse=True)[:_WORST]
        ways = rounding.ways(model, placed, table, worst, few)
        if ways:
            candidate = replace(table, ways=ways)
            measured = _number(self._measured(model, candidate))
            self._offer("round", candidate, rounded(ways), measured)

    def correct(self) -> None:
        """Take what INT8 adds on average off the biases."""
        model, table = self.best.model, self.best.table
        noisy = self.found.constant or (self.noise or 0.0) > _BIASED
        if self._wanted.auto and not noisy:
            return
        shifts = correcting.shifts(model, self._means.placed, table, self._seen.chosen_on)
        if shifts:
            candidate = replace(table, shifts=shifts)
            noise = _number(self._measured(model, candidate))
            self._offer("bias", candidate, shifted(shifts), noise)

    def _offer(self, name: str, table: CalibrationTable, what: str, noise: float) -> None:
        """Take a table where it helps."""
        if self._taken(name, self._before(), noise, what):
            self.best = self.best._replace(table=table)
            self.noise = self._exact = noise

    def _before(self) -> float | None:
        """Return the noise of the best so far on the images held out."""
        if self._exact is None:
            self._exact = self._measured(self.best.model, self.best.table)
        return self._exact

    def _measured(
        self, model: Opened, table: CalibrationTable, images: int | None = None
    ) -> float | None:
        """Return the noise of a typical image that was held out.

        images: so many of them are enough.
        """
        return self._compared(model, table, images).typical()

    def _compared(self, model: Opened, table: CalibrationTable, images: int | None = None) -> Noise:
        """Return what the outputs of a quantised model are off by, on images held out."""
        if self._judge is None:
            # Scaled channels change nothing of what the float model computes.
            self._judge = comparing.Judge(self.best.model, self._seen.held_out)
        return self._judge.noise(_quantised(model, table, self._means.plan), images)

    def _taken(self, name: str, before: float | None, after: float | None, what: str) -> bool:
        """Return whether a repair is taken, and keep what it brought."""
        helps = (
            before is not None
            and after is not None
            and after < _HELPS.get(name, _A_LITTLE) * before
        )
        known = (
            each if each is not None and math.isfinite(each) else None for each in (before, after)
        )
        was, now = (None if each is None else decibels(each) for each in known)
        found = Repair(name, helps or not self._wanted.auto, was, now, what)
        self.best = self.best._replace(repairs=(*self.best.repairs, found))
        return found.taken


def _number(noise: float | None) -> float:
    return math.inf if noise is None else noise


def _helped(before: float | None, after: Collection[float]) -> bool:
    return before is not None and min(after, default=0.0) < _A_LITTLE * before


def _uneven(reaches: Reaches) -> bool:
    """Return whether a channel reaches far beyond the middle one of its tensor."""
    live = (reach[reach > 0] for reach in reaches.values())
    return any(each.size > 1 and each.max() > _FAR * np.median(each) for each in live)


def _ranges(model: Opened, reaches: Reaches) -> CalibrationTable:
    """Return a table in which nothing is clipped."""
    largest = {name: float(reach.max(initial=0.0)) for name, reach in reaches.items()}
    ranges = {name: Range(reach, -reach, reach) for name, reach in largest.items()}
    return CalibrationTable(model.sha256, "minmax", (), "", ranges, factors=model.factors)


def _quantised(model: Opened, table: CalibrationTable, plan: PrecisionPlan) -> Opened:
    graph, _ = quantization.quantize(model, table, plan, float_type=Precision.FP32, trial=True)
    return opened.made(graph, model.path)
