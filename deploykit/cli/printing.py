"""How the command line speaks: results on stdout, errors on stderr."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import textwrap
import unicodedata
from typing import TYPE_CHECKING

from deploykit.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from deploykit.errors import DeployError
    from deploykit.measuring.environment import Row
    from deploykit.measuring.records import AccuracyRecord
    from deploykit.pipeline import Inspection
    from deploykit.precision.risk import Risk
    from deploykit.tasks.task import Display
    from deploykit.values import Artifact, BenchRecord, Json

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES)
"""Why a system refuses to write."""
_COLUMNS = 80
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that steer a terminal, reorder the text around them, or are no characters."""


class UnsaidError(OutputError):
    """Standard output takes nothing more."""


class ReaderGone(Exception):  # noqa: N818 - no error: nobody wants the rest
    """What reads our output has stopped."""


def legible(text: str, newline: str = "\n") -> str:
    """Return `text` with all that steers a terminal spelt out; its lines are joined by `newline`.

    Names come from files of anybody's.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        newline if c == "\n" else ascii(c)[1:-1] if unicodedata.category(c) in _UNSEEN else c
        for c in text
    )


def emit(data: Json, text: str, *, as_json: bool) -> None:
    """Print a result for machines or for people. Raises: UnsaidError, ReaderGone."""
    _print(json.dumps(data, sort_keys=True, default=str) if as_json else legible(text))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        _give_up_stdout()
        raise ReaderGone from error
    except OSError as error:
        _give_up_stdout()
        raise UnsaidError(f"cannot write to standard output: {error.strerror}") from error


def _give_up_stdout() -> None:
    """Send what is still in the buffer nowhere: leaving the interpreter would try it again."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def note(text: str) -> None:
    """Print what is good to know before the slow step, on stderr."""
    with contextlib.suppress(OSError):
        print(f"note: {legible(text)}", file=sys.stderr, flush=True)


def complain(error: DeployError, *, as_json: bool) -> None:
    """Print an error: one message on stderr, or one JSON object on stdout.

    A name with line breaks cannot pass for a part of the message: its other lines are indented.
    Raises: UnsaidError, ReaderGone.
    """
    if as_json:
        parts = {"message": error.found, "expected": error.expected, "fix": error.fix}
        _print(json.dumps({"error": {"type": type(error).__name__, **parts}}, sort_keys=True))
        return
    labels = (("", error.found), ("expected: ", error.expected), ("to fix: ", error.fix))
    said = "\n".join(label + legible(text, "\n    ") for label, text in labels if text)
    with contextlib.suppress(OSError):
        print(f"deploykit: {said}", file=sys.stderr)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return an aligned text table; numbers stand right, words left."""
    cells = [[legible(str(cell), "\\n") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    lines = [_line(header, widths, header), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, row) for row in cells]
    return "\n".join(lines)


def _lined(lines: Iterable[str]) -> str:
    """Return the lines, each of them one whatever the names in it hold."""
    return "\n".join(legible(line, "\\n") for line in lines)


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
    lines = [f"{made.path}  {size(bytes_)}"]
    lines += [f"  in   {spec}" for spec in made.inputs]
    lines += [f"  out  {spec}" for spec in made.outputs]
    lines += [f"  {note}" for note in notes]
    emit(data, _lined(lines), as_json=as_json)


def inspection(found: Inspection) -> str:
    """Return the layers, the shares of the multiply-accumulates, and the findings as text."""
    total = sum(layer.macs for layer in found.layers) or 1
    rows = [
        (_first(layer.name), layer.op, layer.precision, f"{layer.macs / total:.1%}")
        for layer in found.layers
    ]
    shares = ", ".join(f"{share:.1%} {name}" for name, share in found.shares.items())
    lines = ["", f"of all MACs: {shares}"]
    lines += [f"not in these shares as it stands: {remark}" for remark in found.remarks]
    lines += _risk(found.risk) if found.risk is not None else []
    for finding in found.findings:
        lines += [f"{finding.severity}: {finding.node}: {finding.message} [{finding.rule}]"]
        lines += [f"    to fix: {finding.fix}"] if finding.fix else []
    return "\n".join([table(("layer", "op", "precision", "MACs"), rows), _lined(lines)])


def _risk(found: Risk) -> list[str]:
    """Return the line on what INT8 may cost, and what to do where it is much."""
    said, first = f"risk: {found.level}: {found.basis}", found.layers[0]
    if not found.worst:
        return [f"{said}; least signal to rounding {first.decibels:.1f} dB: {first.name}"]
    few = ", ".join(f"{each.name} {each.decibels:.1f} dB" for each in found.worst[:_NAMED])
    few += f" and {more} more" if (more := len(found.worst) - _NAMED) > 0 else ""
    cure = "`quantize --repair auto` evens channels where it can, `sensitivity` measures"
    return [f"{said}; signal to rounding below {found.limit:g} dB: {few}", f"    to fix: {cure}"]


_NAMED = 3
"""Layers at risk that a line names."""


def _first(name: str) -> str:
    """Return the first of the nodes that a builder fused, and how many more there are."""
    first, *others = name.split(" + ")
    return f"{first} + {len(others)} more" if others else first


def accuracy(found: AccuracyRecord) -> str:
    """Return the scores of one evaluation as text, the primary one first."""
    shown = found.shown()
    rows = [(display.title, display.text(found.metrics[name])) for name, display in shown.items()]
    about = f"{found.model} on {found.images} images of {found.dataset} ({found.backend})"
    lines = [_lined([about]), table(("metric", "value"), rows)]
    if found.per_class and found.primary in shown:
        primary = shown[found.primary]
        lines += ["", _classes(found.per_class, primary)]
    lines += [_lined([f"warning: {text}" for text in found.warnings])] if found.warnings else []
    return "\n".join(lines)


def _classes(values: Mapping[str, float | None], shown: Display) -> str:
    """Return the metric of each class; of many classes of the few that do worst."""
    chosen = list(values.items())
    if len(values) > _MOST_CLASSES:
        known = [(name, value) for name, value in chosen if value is not None]
        worst = sorted(known, key=lambda pair: pair[1], reverse=not shown.higher_is_better)
        chosen = list(worst[:_WORST])
    rows = [(name, shown.text(value)) for name, value in chosen]
    more = len(values) - len(rows)
    rest = [f"and {more} more, which are higher or not known: see --json"] if more else []
    return "\n".join([table(("class", shown.title), rows), *rest])


_MOST_CLASSES, _WORST = 100, 10
"""Classes that are all listed, and those that are listed where there are more."""


def measurements(found: Sequence[BenchRecord]) -> str:
    """Return FPS and latencies of each record as text, warnings below."""
    header = ("model", "backend", "scope", "batch", "FPS", "p50 ms", "p90 ms", "p99 ms", "CV")
    rows = []
    for record in found:
        wall = record.wall
        rows.append(
            (
                record.model,
                record.backend,
                record.scope,
                record.batch_size,
                f"{record.fps_wall:.1f}",
                *(f"{value * 1e3:.2f}" for value in (wall.p50, wall.p90, wall.p99)),
                f"{wall.variation:.1%}",
            )
        )
    warned = [f"warning: {', '.join(names)}: {text}" for text, names in _warned(found).items()]
    return "\n".join([table(header, rows), *([_lined(warned)] if warned else [])])


def _warned(found: Sequence[BenchRecord]) -> dict[str, list[str]]:
    """Return each warning with the models that it concerns."""
    concerned: dict[str, dict[str, None]] = {}
    for record in found:
        for text in record.warnings:
            concerned.setdefault(text, {})[record.model] = None
    return {text: list(names) for text, names in concerned.items()}


def findings(rows: Sequence[Row]) -> str:
    """Return what `doctor` found as text: one topic after the other, and what to do below it."""
    topic, status = (max(len(getattr(r, name)) for r in rows) for name in ("topic", "status"))
    lines = []
    for row in rows:
        head = f"{row.topic:<{topic}}  {row.status:<{status}}  "
        lines += _wrapped(row.detail, head, " " * len(head))
        lines += _advice(row.fix)
    return "\n".join(lines)


def _advice(fix: str) -> Iterator[str]:
    """Yield what to do, each command in it (between backticks) on a line that can be copied."""
    for number, part in enumerate(fix.split("`")):
        if number % 2:
            yield f"        {part}"
        elif text := part.strip(" ;,"):
            yield from _wrapped(text, "    " if number else "    to fix: ", "    ")


def _wrapped(text: str, first: str, other: str) -> list[str]:
    """Return lines of at most _COLUMNS, `first` and `other` before them, no word broken."""
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=first,
        subsequent_indent=other,
        break_long_words=False,
        break_on_hyphens=False,
    )
