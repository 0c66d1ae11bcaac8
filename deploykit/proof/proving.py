"""The heart of every proof: a candidate beside its reference, judged by `rule`.

A reference is measured once, in float64 and in float32; any number of candidates are then judged
by it: a folded network, its ONNX file, a rewritten graph, one in FP16. Where it does not run in
float64 (a module with float32 written into it, an op that nothing here computes so), the rounding
is measured by runs on inputs that differ in the last digit: two computations of one function on
inputs a rounding apart differ as two roundings of it do, a few times more at most.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from deploykit.errors import ProofError
from deploykit.proof import rule as rules
from deploykit.proof import verification
from deploykit.proof.rule import SINGLE, Stats
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.proof.rule import Rule
    from deploykit.tasks.task import Pairing
    from deploykit.values import Agreement

    Array: TypeAlias = NDArray[np.generic]
    Arrays: TypeAlias = Mapping[str, Array]

PARTNER_ATOL, PARTNER_RTOL = 1e-5, 1e-4
"""Boxes and scores of two rows that are of one object; how far they may differ is the rule's."""
_FEW = 256
"""Numbers in an output below which one run says too little about rounding."""
_NUDGES = 4
"""Further runs then, on inputs that differ in the last digit."""


class Runs(Protocol):
    """What computes outputs: a session, in any number format."""

    def run(self, feeds: Arrays, /) -> Mapping[str, Array]:
        """Return output name -> array for input name -> array."""
        ...


@dataclass(frozen=True)
class Reference:
    """What candidates are judged by: a model's own answers to some inputs."""

    feeds: tuple[Arrays, ...]
    truth: tuple[Arrays, ...]
    """The answers, in float64 where `exact`, else in float32."""
    rounded: tuple[Arrays, ...]
    """Answers to the first feed whose distance from the truth is the rounding."""
    form: tuple[Arrays, ...]
    """The answers in float32, whose shapes and types a candidate must give."""
    exact: bool
    traced: Arrays | None = None
    """What an exported graph must give in float64 for the last feed, see `as_traced`."""
    scalars: frozenset[float] | None = None
    """All scalars in it; None where not all of it was computed in float64."""
    pairing: Callable[[], Pairing] = PaddedRows
    """Returns what brings the outputs of two models into one order: the task's."""


def measure(
    single: Runs,
    double: Runs | None,
    feed: Arrays,
    pairing: Callable[[], Pairing] = PaddedRows,
    *,
    alone: bool = False,
) -> Reference:
    """Return the reference for candidates, by what the model gives for one batch.

    single: the model in float32. double: the same in float64; None, or one that fails: its
    rounding is found by nudging the inputs. alone: candidates also run the first image by itself.
    """
    plain = single.run(feed)
    exact = _attempt(double, feed)
    few = any(array.size < _FEW for array in plain.values())
    nudges = _NUDGES if exact is None or few else 0
    nudged = (single.run(_nudged(feed, seed)) for seed in range(nudges))
    truth = plain if exact is None else _sound(exact, plain)
    sizes = {len(a) if a.ndim else 0 for a in (*feed.values(), *plain.values())}
    parts = alone and bool(feed) and len(sizes) == 1 and max(sizes) > 1
    return Reference(
        feeds=(feed, _first(feed)) if parts else (feed,),
        truth=(truth, _first(truth)) if parts else (truth,),
        rounded=(plain, *nudged),
        form=(plain, _first(plain)) if parts else (plain,),
        exact=exact is not None,
        pairing=pairing,
    )


def _first(arrays: Arrays) -> dict[str, Array]:
    """Return the part of each array that is the first image's."""
    return {name: array[:1] for name, array in arrays.items()}


def _attempt(double: Runs | None, feed: Arrays) -> Arrays | None:
    if double is None:
        return None
    try:
        return double.run(feed)
    except Exception:  # noqa: BLE001 - a user's network may fail in float64 in any way
        return None


def _nudged(feed: Arrays, seed: int) -> dict[str, Array]:
    """Return the inputs with about half of their numbers moved to a neighbour."""
    rng, found = np.random.default_rng(seed), dict(feed)
    for name, array in feed.items():
        if np.issubdtype(array.dtype, np.floating):
            factors = 1 + 2.0**-23 * (rng.random(array.shape) - 0.5)
            found[name] = (array.astype(np.float64) * factors).astype(array.dtype)
    return found


def _sound(truth: Arrays, plain: Arrays) -> dict[str, Array]:
    """Return the truth with NaN and infinities where float32 has them: no candidate does better."""
    found = {}
    for name, array in truth.items():
        odd = ~np.isfinite(plain[name])
        found[name] = np.where(odd, plain[name], array) if odd.any() else array
    return found


def compare(candidate: Runs, reference: Reference, rule: Rule = SINGLE) -> tuple[Agreement, ...]:
    """Return how each output of `candidate` agrees with the truth, and whether `rule` allows it.

    With a rule for candidates in float64 only the last feed is compared: the first image, where
    candidates run that alone.

    Raises: ModelError for an output that is missing, or differs in shape or type.
    """
    rounding = _rounding(reference)
    judge = reference.pairing()
    runs = list(zip(reference.feeds, reference.truth, reference.form, strict=False))
    worst: dict[str, Stats] = {}
    tallies: dict[str, verification.Tally] = {}
    truths: dict[str, Array] = {}
    for feed, truth, form in runs[-1:] if rule.one else runs:
        found = candidate.run(feed)
        verification.check_interface(_form(found, form), form)
        for name, pair in judge.pairs(found, truth, PARTNER_ATOL, PARTNER_RTOL).items():
            columns = name in rounding and len(rounding[name].error) > 1
            stats = rules.stats(pair.found, pair.expected, columns=columns)
            worst[name] = stats.over(worst[name]) if name in worst else stats
            tallies.setdefault(name, verification.Tally()).add(pair.found, pair.expected)
            truths.setdefault(name, pair.expected)
    verdicts = (
        _verdict(tallies[name].agreement(name), stats, rounding.get(name), rule, truths[name])
        for name, stats in worst.items()
    )
    return (*verdicts, *judge.findings())


def _rounding(reference: Reference) -> dict[str, Stats]:
    """Return what each output errs by itself, per column where its columns are told apart."""
    found: dict[str, Stats] = {}
    for run in reference.rounded:
        pairs = reference.pairing().pairs(run, reference.truth[0], PARTNER_ATOL, PARTNER_RTOL)
        for name, pair in pairs.items():
            split = pair.columns and rules.has_columns(pair.expected.shape)
            stats = rules.stats(pair.found, pair.expected, columns=split, lenient=True)
            same = name in found and found[name].error.shape == stats.error.shape
            found[name] = stats.over(found[name]) if same else stats
    return found


def _form(outputs: Arrays, form: Arrays) -> dict[str, Array]:
    """Return arrays without data, of the shapes and types of `outputs`.

    What was computed in float64 has the type of the float that it is computed for.
    """
    found = {}
    for name, array in outputs.items():
        like = form.get(name, array).dtype
        wide = array.dtype == np.float64 and like.kind == "f"
        found[name] = np.broadcast_to(np.zeros((), like if wide else array.dtype), array.shape)
    return found


def _verdict(
    agreement: Agreement, found: Stats, rounding: Stats | None, rule: Rule, truth: Array
) -> Agreement:
    """Return the agreement with its verdict, and the rounding and limit of its worst column."""
    own = rounding or Stats(np.zeros(1), found.magnitude.max(keepdims=True))
    limits = rules.allowed(rule, own, truth)
    with np.errstate(invalid="ignore"):
        worst = int(np.argmax(found.error - limits))
    return replace(
        agreement,
        max_abs=float(found.error[worst]),
        passed=bool((found.error <= limits).all()),
        rounding=float(own.error[worst]),
        allowed=float(limits[worst]),
    )


def require(what: str, agreements: Sequence[Agreement], *, fix: str) -> None:
    """Raise ProofError for the first output that does not agree. what: what changed it."""
    for agreement in agreements:
        if agreement.passed:
            continue
        if agreement.allowed is None:
            raise ProofError(
                f"{what} changed output {agreement.output!r}: {agreement.note}",
                expected="the rows of the reference",
                fix=fix,
            )
        raise ProofError(
            f"{what} changed output {agreement.output!r}: largest error {agreement.max_abs:.3g}, "
            f"where the reference's own rounding is {agreement.rounding:.3g}"
            + (f"; {agreement.note}" if agreement.note else ""),
            expected=f"at most {agreement.allowed:.3g}",
            fix=fix,
        )


def prove(
    what: str, candidate: Runs, reference: Reference, rule: Rule = SINGLE, *, fix: str
) -> tuple[Agreement, ...]:
    """Return how `candidate` agrees with `reference`, none of its outputs being wrong.

    what, fix: how the error begins and ends. Raises: ProofError; ModelError as `compare`.
    """
    agreements = compare(candidate, reference, rule)
    require(what, agreements, fix=fix)
    return agreements
