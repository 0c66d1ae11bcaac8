"""How far a slow step is."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from deploykit.cli import progress

if TYPE_CHECKING:
    from collections.abc import Iterator


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def passing(self, count: int, seconds: float) -> Iterator[int]:
        """Yield `count` items that take `seconds` each to make."""
        for number in range(count):
            self.now += seconds
            yield number


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Screen(io.StringIO):
    """A terminal that keeps what is drawn on it."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    monkeypatch.setenv("COLUMNS", "70")
    return screen


def test_a_pipe_gets_a_line_for_each_tenth(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress.bar(clock.passing(100, 0.5), "images", 100)) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "images: 5/100, 48 s left"
    assert lines[1:] == [f"images: {n}/100, {(100 - n) // 2} s left" for n in range(10, 101, 10)]


def test_a_short_step_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(list(progress.bar(clock.passing(10, 0.1), "images", 10))) == 10
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("total", [0, 2])
def test_more_than_the_total_is_counted_without_one(
    clock: Clock, screen: Screen, total: int
) -> None:
    assert len(list(progress.bar(clock.passing(12, 1.0), "bench", total))) == 12
    text = screen.getvalue()
    assert "bench: 12 done, 12 s" in text
    assert not re.search(r"-\d|([3-9]|\d\d)/2", text)


def test_a_step_with_a_name_is_said_when_it_begins(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = progress.bar(("load", "trace", "prove"), "export", 3)
    for _ in steps:
        clock.now += 200.0
    assert capsys.readouterr().err.splitlines() == [
        "export: trace (2/3), 3 min 20 s",
        "export: prove (3/3), 6 min 40 s",
    ]


def test_a_terminal_gets_one_line_that_fits_and_is_cleared_at_the_end(
    clock: Clock, screen: Screen
) -> None:
    steps = progress.bar(clock.passing(4, 2.0), "a label that is rather long " * 3, 4)
    next(steps)
    next(steps)
    next(steps)
    drawn = screen.getvalue().split("\r\x1b[2K")
    assert drawn[-1].startswith("[##########..........] a label that")
    assert all(len(line) < 70 for line in drawn)
    steps.close()  # type: ignore[attr-defined]  # a generator, as an interrupt ends it
    assert screen.getvalue().endswith("\r\x1b[2K")
