"""Run hostile cases: `python -m tests.fuzz [--seconds N] [--kind KIND] [--only TEXT]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import forked, generators, sound


def main() -> int:
    """Return 0 where nothing went wrong; print each case that did, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", default="", help="only this kind of file")
    parser.add_argument("--only", default="", help="only cases with this text in their name")
    parser.add_argument("--verbose", action="store_true", help="print what every case said")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    started = time.perf_counter()
    forked.warm()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        base, scratch = Path(folder, "base"), Path(folder, "scratch")
        base.mkdir()
        scratch.mkdir()
        sound.make(base)
        print(f"sound files after {time.perf_counter() - started:.1f} s", flush=True)
        chosen = [
            case
            for case in generators.cases(base)
            if options.kind in ("", case.kind) and options.only in case.name
        ]
        counts: Counter[str] = Counter()
        wrongs: Counter[str] = Counter()
        slowest = peak = 0.0
        for outcome in forked.run(chosen, base, scratch, jobs=options.jobs):
            counts[outcome.case.kind] += 1
            wrongs.update(outcome.wrongs)
            slowest, peak = max(slowest, outcome.seconds), max(peak, outcome.peak)
            if outcome.wrongs or options.verbose:
                last = outcome.said.strip()[-400 if not options.verbose else -1500 :]
                print(
                    f"{outcome.case.name}: {outcome.wrongs} status {outcome.status}, "
                    f"{outcome.seconds:.1f} s, {outcome.peak >> 20} MiB\n    "
                    + last.replace("\n", "\n    "),
                    flush=True,
                )
    print(
        dict(counts),
        sum(counts.values()),
        "cases;",
        dict(wrongs) or "nothing wrong",
        f"; slowest {slowest:.1f} s, peak {peak / 2**30:.2f} GiB, "
        f"{time.perf_counter() - started:.0f} s in all",
    )
    return 1 if wrongs else 0


if __name__ == "__main__":
    sys.exit(main())
