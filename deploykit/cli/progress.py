"""How far a slow step is, on stderr: a line that is redrawn on a terminal, else a line a tenth."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from deploykit.cli import printing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")
_QUIET_SECONDS = 2.0
"""A step shorter than this shows nothing."""
_REDRAWN_SECONDS = 0.1
_CELLS = 20
"""Cells of the bar that a terminal shows."""
_CLEAR = "\r\x1b[2K"
_SECOND, _HALF_MINUTE, _MINUTE = 1, 30, 60


def bar(items: Iterable[T], label: str, total: int) -> Iterator[T]:
    """Yield every item, and say on stderr how many of `total` are done and what time is left.

    An item that is a text names a step that begins with it. A total of 0 is an unknown one; so is
    one that turns out to be too small.
    """
    shown = _Terminal() if sys.stderr.isatty() else _Lines()
    state = _State(label, total, time.perf_counter())
    with _redrawn(shown, state):
        for item in items:
            if isinstance(item, str):
                state.step = item
                shown.draw(state)
            yield item
            state.count += 1
            if not isinstance(item, str):
                shown.draw(state)


@contextlib.contextmanager
def _redrawn(shown: _Terminal | _Lines, state: _State) -> Iterator[None]:
    """Let the seconds of a step with a name be seen to pass: draw once a second from a thread."""
    ended = threading.Event()

    def redraw() -> None:
        while not ended.wait(_SECOND):
            if state.step:  # what is counted may be timed, and is drawn between two items
                shown.draw(state)

    thread = threading.Thread(target=redraw, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        shown.close()


@dataclass
class _State:
    """What there is to say."""

    label: str
    total: int
    started: float
    step: str = ""
    count: int = 0

    @property
    def elapsed(self) -> float:
        """Return the seconds since the first item was asked for."""
        return time.perf_counter() - self.started

    @property
    def known(self) -> bool:
        """Return whether the total is one."""
        return self.count <= self.total != 0

    def __str__(self) -> str:
        """Return `images: 3/5, 12 s left`, `export: trace (3/5), 12 s` or `bench: 7 done, 3 s`."""
        clock = _duration(self.elapsed)
        if self.step:
            return f"{self.label}: {self.step} ({self.count + 1}/{self.total}), {clock}"
        if not self.known:
            return f"{self.label}: {self.count} done, {clock}"
        rest = self.elapsed / max(self.count, 1) * (self.total - self.count)
        return f"{self.label}: {self.count}/{self.total}, {_duration(rest)} left"


def _duration(seconds: float) -> str:
    """Return seconds for people: `42 s` or `3 min 20 s`."""
    minutes, rest = divmod(round(seconds), _MINUTE)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class _Terminal:
    """One line that is redrawn in place and cleared at the end."""

    def __init__(self) -> None:
        self._drawn = 0.0

    def draw(self, state: _State) -> None:
        """Redraw the line, unless it was drawn just before."""
        if state.elapsed < _QUIET_SECONDS or time.perf_counter() - self._drawn < _REDRAWN_SECONDS:
            return
        self._drawn = time.perf_counter()
        filled = _CELLS * state.count // state.total if state.known else 0
        cells = f"[{'#' * filled}{'.' * (_CELLS - filled)}] " if state.known else ""
        text = printing.legible(f"{cells}{state}")[: shutil.get_terminal_size().columns - 1]
        print(f"{_CLEAR}{text}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        if self._drawn:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


class _Lines:
    """A line whenever a long step passes a tenth, half a minute, or begins a part with a name."""

    def __init__(self) -> None:
        self._said: object = None

    def draw(self, state: _State) -> None:
        """Print a line where there is something to say."""
        passed = 10 * state.count // state.total if state.known else state.elapsed // _HALF_MINUTE
        if state.elapsed > _QUIET_SECONDS and (state.step, passed) != self._said:
            print(printing.legible(str(state)), file=sys.stderr, flush=True)
            self._said = (state.step, passed)

    def close(self) -> None:
        """Leave the lines as they are."""
