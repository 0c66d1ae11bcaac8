"""How the command line speaks: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from deploykit.errors import DeployError
    from deploykit.values import Artifact, Json

T = TypeVar("T")
_QUIET_SECONDS = 2.0
"""A step shorter than this shows no progress bar."""


def bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield every item; from the third second on, show a bar with the time left on stderr."""
    if not sys.stderr.isatty():
        yield from _lines(items, label, total)
        return
    from rich import progress  # noqa: PLC0415 - `--help` must not pay for it
    from rich.console import Console  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description:<18}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(label, total=total)
        for item in items:
            yield item
            shown.advance(task)


def _lines(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Where stderr is no terminal: one line when a long step passes each tenth."""
    started, shown = time.perf_counter(), 0
    for count, item in enumerate(items, start=1):
        yield item
        elapsed = time.perf_counter() - started
        tenth = 10 * count // max(total, 1)
        if elapsed > _QUIET_SECONDS and tenth > shown:
            left = elapsed / count * (total - count)
            print(f"{label}: {count}/{total}, {left:.0f} s left", file=sys.stderr, flush=True)
            shown = tenth


def emit(data: Json, text: str, *, as_json: bool) -> None:
    """Print a result for machines or for people."""
    print(json.dumps(data, sort_keys=True, default=str) if as_json else text)


def complain(error: DeployError, *, as_json: bool) -> None:
    """Print an error: one message on stderr, or one JSON object on stdout."""
    if as_json:
        parts = {"message": error.found, "expected": error.expected, "fix": error.fix}
        print(json.dumps({"error": {"type": type(error).__name__, **parts}}, sort_keys=True))
    else:
        print(f"deploykit: {error}", file=sys.stderr)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an aligned text table; numbers stand right, words left."""
    cells = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [_line(header, widths, header), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, row) for row in cells]
    return "\n".join(lines)


def _line(row: Sequence[str], widths: Sequence[int], values: Sequence[str]) -> str:
    aligned = (
        cell.rjust(width) if _numeric(value) else cell.ljust(width)
        for cell, width, value in zip(row, widths, values, strict=True)
    )
    return "  ".join(aligned).rstrip()


def _numeric(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text.split(" ", maxsplit=1)[0].rstrip("%"))
        return True
    return False


def size(count: int) -> str:
    """Return a number of bytes for people: `1.5 MB` (decimal units)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"


def artifact(
    made: Artifact, *, as_json: bool, notes: Sequence[str] = (), extra: Json | None = None
) -> None:
    """Print what a command wrote: the file, its interface, and what was proven about it."""
    bytes_ = made.path.stat().st_size
    data = {
        "path": str(made.path),
        "sha256": made.sha256,
        "bytes": bytes_,
        "inputs": [str(spec) for spec in made.inputs],
        "outputs": [str(spec) for spec in made.outputs],
        "made_by": dict(made.made_by),
        **(extra or {}),
    }
    interface = [f"  in   {spec}" for spec in made.inputs]
    interface += [f"  out  {spec}" for spec in made.outputs]
    lines = [f"{made.path}  {size(bytes_)}", *interface, *(f"  {note}" for note in notes)]
    emit(data, "\n".join(lines), as_json=as_json)
