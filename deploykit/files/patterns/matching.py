"""The states of an expression, and how a text moves through them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

LARGEST = 4000
"""States of an expression, after `{m,n}` is written out."""
EFFORT = 5_000_000
"""Steps that the expressions of one file may take together: seconds."""
_LAST = "\n\n"
"""Stands for a line feed that ends the text, before which `$` holds too."""

Test: TypeAlias = "Callable[[str], bool]"
Key: TypeAlias = "tuple[frozenset[int], str, str, tuple[bool, ...]]"
"""States, the letter before, the next one, and which looks ahead are as wanted."""


class PatternError(ValueError):
    """An expression that cannot be used: the message says what is wrong with it."""


class State(NamedTuple):
    """One step: a letter that passes `test`, or a `place` that must hold, or a mere fork."""

    test: Test | None = None
    place: str = ""
    """Of _HOLDS, or the number of a look ahead."""
    follow: tuple[int, ...] = ()
    """States after it; none: the end of the expression."""


@dataclass
class Pattern:
    """A compiled expression."""

    effort: int
    """Steps that are left."""
    states: list[State] = field(default_factory=list)
    looks: list[tuple[int, bool]] = field(default_factory=list)
    """First state of each look ahead, and whether it must be found."""
    start: int = 0
    _moves: dict[Key, frozenset[int] | None] = field(default_factory=dict)
    _seen: dict[tuple[int, int], bool] = field(default_factory=dict)

    def search(self, text: str) -> bool:
        """Return whether the expression is found anywhere in `text`. Raises: PatternError."""
        self._seen.clear()
        return self._run(text, 0, self.start, len(self.looks))

    def add(self, state: State) -> int:
        """Add a state and return its number. Raises: PatternError."""
        if len(self.states) >= LARGEST:
            raise PatternError(f"it needs more than {LARGEST} states")
        self.states.append(state)
        return len(self.states) - 1

    def _run(self, text: str, begin: int, start: int, looks: int) -> bool:
        """Return whether the end is reached from `start` at letter `begin`; it asks for `looks`."""
        self._spend((len(text) + 1 - begin) * (1 + 2 * looks))
        current: frozenset[int] = frozenset([start])
        ahead: tuple[bool, ...] = ()
        before, last = text[begin - 1 : begin], len(text) - 1
        for i in range(begin, len(text) + 1):
            letter = text[i : i + 1]
            if looks:
                ahead = tuple(self._look(text, i, number) for number in range(looks))
            key = (current, before, _LAST if letter == "\n" and i == last else letter, ahead)
            if key not in self._moves:
                self._moves[key] = self._moved(*key)
            reached = self._moves[key]
            if not reached:
                return reached is None
            current, before = reached, letter
        return False

    def _spend(self, steps: int) -> None:
        self.effort -= steps
        if self.effort < 0:
            raise PatternError("it takes too long to search for")

    def _look(self, text: str, i: int, number: int) -> bool:
        """Return whether a look ahead is as wanted at letter `i`; it holds only earlier ones."""
        if (number, i) not in self._seen:
            start, wanted = self.looks[number]
            self._seen[number, i] = self._run(text, i, start, number) is wanted
        return self._seen[number, i]

    def _moved(
        self, current: frozenset[int], before: str, letter: str, ahead: tuple[bool, ...]
    ) -> frozenset[int] | None:
        """Return the states after `letter`; None: the end of the expression was reached."""
        seen, waiting, after = set(current), list(current), set[int]()
        while waiting:
            state = self.states[waiting.pop()]
            self._spend(1)
            if state.test is not None:
                after.update(state.follow if letter and state.test(letter[-1]) else ())
            elif not state.place or _holds(state.place, before, letter, ahead):
                if not state.follow:
                    return None
                fresh = [number for number in state.follow if number not in seen]
                seen.update(fresh)
                waiting += fresh
        return frozenset(after)


def _holds(place: str, before: str, letter: str, ahead: tuple[bool, ...]) -> bool:
    match place:
        case "start":
            return not before
        case "end":
            return not letter
        case "last":
            return letter in ("", _LAST)
        case "edge":
            return is_word(before) != is_word(letter)
        case "inside":
            return is_word(before) == is_word(letter)
        case _:
            return ahead[int(place)]


def is_word(letter: str) -> bool:
    """Return whether `letter` counts as a part of a word."""
    return letter.isalnum() or letter == "_"
