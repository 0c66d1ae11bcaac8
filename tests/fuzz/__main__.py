"""Run hostile commands: `python -m tests.fuzz [--count N | --seconds N] [--kind KIND]`.

Without a count, every case once; with seconds, cases made anew from other seeds until time is up.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from . import forked, generators, sound

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .case import Case, Outcome


class Tally:
    """What became of the cases so far."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self.kinds: Counter[str] = Counter()
        self.wrongs: Counter[str] = Counter()
        self.peak = self.small = 0.0
        self.slowest: Outcome | None = None

    def add(self, outcome: Outcome, *, verbose: bool) -> None:
        """Count one outcome, and print it where it is wrong."""
        self.kinds[outcome.case.kind] += 1
        self.wrongs.update(outcome.wrongs)
        spent = outcome.spent
        if self.slowest is None or spent.computed > self.slowest.spent.computed:
            self.slowest = outcome
        self.peak = max(self.peak, spent.peak / 2**30)
        self.small = max(self.small, spent.peak / 2**30 if outcome.case.small else 0)
        if outcome.wrongs or verbose:
            wrongs = ", ".join(outcome.wrongs) or "as it should be"
            print(
                f"{outcome.case.name}: {wrongs}; status {outcome.status}, {spent.seconds:.1f} s, "
                f"{spent.computed:.1f} s of computing"
            )
            print("    " + outcome.said.strip()[-1500:].replace("\n", "\n    "), flush=True)

    def __str__(self) -> str:
        """Return the counts, as CI prints them."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        found = ", ".join(f"{count} {wrong}" for wrong, count in sorted(self.wrongs.items()))
        most = "" if self.slowest is None else _most(self.slowest)
        memory = f"{self.peak:.2f} GiB, {self.small:.2f} GiB for checkpoints below 1 MB"
        lines = (
            f"{self.kinds.total()} hostile commands: {kinds}",
            f"found: {found or 'no code run, no traceback, no hang, nothing left behind'}",
            f"slowest: {most}; memory at most {memory}",
        )
        return "\n".join(lines)


def _most(outcome: Outcome) -> str:
    """Return what the case that computed longest took."""
    spent = outcome.spent
    return f"{spent.computed:.1f} s of computing in {spent.seconds:.1f} s ({outcome.case.name})"


def main() -> int:
    """Return 0 where nothing went wrong; print each case that did, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, help="cases, evenly spread over all")
    parser.add_argument("--seconds", type=float, help="go on with other seeds until then")
    parser.add_argument("--kind", default="", help="only this kind of file")
    parser.add_argument("--only", default="", help="only cases with this text in their name")
    parser.add_argument("--verbose", action="store_true", help="print what every case said")
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time")
    options = parser.parse_args()
    started, tally = time.perf_counter(), Tally()
    forked.warm()
    with tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder:
        base, scratch = Path(folder, "base"), Path(folder, "scratch")
        base.mkdir()
        scratch.mkdir()
        sound.make(base)
        chosen = _chosen(base, options)
        for outcome in forked.run(chosen, base, scratch, jobs=options.jobs):
            tally.add(outcome, verbose=options.verbose)
            if options.seconds and time.perf_counter() - started > options.seconds:
                break
    print(f"{tally}\n{time.perf_counter() - started:.0f} s in all")
    return 1 if tally.wrongs else 0


def _chosen(base: Path, options: argparse.Namespace) -> Iterator[Case]:
    for seed in itertools.count():
        cases = [
            case
            for case in generators.cases(base, seed)
            if options.kind in ("", case.kind) and options.only in case.name
        ]
        count = min(options.count or len(cases), len(cases))
        yield from (cases[i * len(cases) // count] for i in range(count))
        if not options.seconds:
            return


if __name__ == "__main__":
    sys.exit(main())
