"""Read the text of an expression into functions that add its states."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from deploykit.files.patterns.matching import Pattern, PatternError, State, Test, is_word

if TYPE_CHECKING:
    from collections.abc import Callable

DEEPEST = 30
"""Groups in one another."""
_REPEATS = {"*": (0, None), "+": (1, None), "?": (0, 1)}
_COUNTED = re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}")
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
_CODES = {"x": 2, "u": 4}
_PLACES = {"b": "edge", "B": "inside", "A": "start", "Z": "end"}
_GROUP = re.compile(r"\((?:\?:|\?P<[A-Za-z_]\w*>|(?!\?))")

Build: TypeAlias = "Callable[[int], int]"
"""Adds the states of a part of the expression: number of what follows -> number of its first."""


@dataclass
class Reader:
    """Reads an expression from left to right, into functions that add its states."""

    text: str
    pattern: Pattern
    at: int = 0
    depth: int = 0
    fold: bool = False
    """Upper and lower case are one."""

    @property
    def rest(self) -> str:
        """Return what is not read yet."""
        return self.text[self.at :]

    def takes(self, token: str) -> bool:
        """Return whether `token` comes next, and step over it."""
        found = self.text.startswith(token, self.at)
        self.at += len(token) if found else 0
        return found

    def letter(self) -> str:
        """Return the next letter. Raises: PatternError at the end."""
        if not self.rest:
            raise PatternError("its end is missing")
        self.at += 1
        return self.text[self.at - 1]

    def either(self) -> Build:
        """Return what `a|b|c` builds."""
        branches = [self._sequence()]
        while self.takes("|"):
            branches.append(self._sequence())
        if len(branches) == 1:
            return branches[0]
        add = self.pattern.add
        return lambda after: add(State(follow=tuple(branch(after) for branch in branches)))

    def _sequence(self) -> Build:
        parts: list[Build] = []
        while self.rest and self.rest[0] not in "|)":
            parts.append(self._repeated(self._atom()))

        def build(after: int) -> int:
            for part in reversed(parts):
                after = part(after)
            return after

        return build

    def _repeated(self, part: Build) -> Build:
        """Return `part` as often as the quantifier behind it says; lazy or not is all the same."""
        times = self._times()
        if times is None:
            return part
        self.takes("?")
        if self.takes("+") or self._times() is not None:
            raise PatternError(f"a second quantifier at {self.at}")
        return self._copies(part, *times)

    def _copies(self, part: Build, least: int, most: int | None) -> Build:
        add, states = self.pattern.add, self.pattern.states

        def build(after: int) -> int:
            if most is None:
                fork = add(State())
                states[fork] = State(follow=(part(fork), after))
                after = fork
            else:
                last = after
                for _ in range(most - least):
                    after = add(State(follow=(part(after), last)))
            for _ in range(least):
                after = part(after)
            return after

        return build

    def _times(self) -> tuple[int, int | None] | None:
        for token, times in _REPEATS.items():
            if self.takes(token):
                return times
        found = _COUNTED.match(self.text, self.at)
        if found is None or found[0] == "{}":
            return None  # a brace that counts nothing is a letter
        self.at = found.end()
        least = int(found[1] or 0)
        most = least if not found[2] else int(found[3]) if found[3] else None
        if most is not None and most < least:
            raise PatternError(f"{found[0]} counts backwards")
        return least, most

    def _atom(self) -> Build:
        if self.rest[0] == "(":
            return self._group()
        begin, letter = self.at, self.letter()
        if letter in "*+?":
            raise PatternError(f"{letter!r} at {begin} repeats nothing")
        if letter == "^":
            return self._place("start")
        if letter == "$":
            return self._place("last")
        if letter == "\\" and self.rest[:1] in (*_PLACES,):
            return self._place(_PLACES[self.letter()])
        return self._letter(self._test(letter))

    def _group(self) -> Build:
        self.depth += 1
        if self.depth > DEEPEST:
            raise PatternError(f"more than {DEEPEST} groups in one another")
        ahead = self.takes("(?=") or (self.takes("(?!") and None)
        if ahead is False:
            opening = _GROUP.match(self.text, self.at)
            if opening is None:
                raise PatternError(f"{self.rest[:4]!r} at {self.at} is not among what is carried")
            self.at = opening.end()
        inner = self.either()
        if not self.takes(")"):
            raise PatternError("a parenthesis is not closed")
        self.depth -= 1
        return inner if ahead is False else self._look(inner, wanted=bool(ahead))

    def _look(self, inner: Build, *, wanted: bool) -> Build:
        number = len(self.pattern.looks)
        self.pattern.looks.append((0, wanted))
        self.pattern.looks[number] = (inner(self.pattern.add(State())), wanted)
        return self._place(str(number))

    def _place(self, place: str) -> Build:
        return lambda after: self.pattern.add(State(place=place, follow=(after,)))

    def _letter(self, test: Test) -> Build:
        passes = _folded(test) if self.fold else test
        return lambda after: self.pattern.add(State(test=passes, follow=(after,)))

    def _test(self, letter: str) -> Test:
        if letter == ".":
            return lambda c: c != "\n"
        if letter == "[":
            return self._class()
        return self._escaped() if letter == "\\" else _equals(letter)

    def _escaped(self) -> Test:
        letter = self.letter()
        if letter.lower() in _KINDS:
            kind = _KINDS[letter.lower()]
            return kind if letter.islower() else lambda c: not kind(c)
        return _equals(self._code(letter))

    def _code(self, letter: str) -> str:
        """Return the letter that a backslash and `letter` stand for."""
        if letter in _CODES:
            digits = "".join(self.letter() for _ in range(_CODES[letter]))
            if not re.fullmatch(r"[0-9a-fA-F]+", digits):
                raise PatternError(f"\\{letter}{digits} is no letter")
            return chr(int(digits, 16))
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter.isalnum():
            raise PatternError(f"\\{letter} is not among what is carried")
        return letter

    def _class(self) -> Test:
        negated = self.takes("^")
        tests: list[Test] = []
        while not tests or self.rest[:1] != "]":
            tests.append(self._member())
        self.at += 1
        return lambda c: any(test(c) for test in tests) is not negated

    def _member(self) -> Test:
        """Return the test of one letter, kind or range of a class."""
        letter = self.letter()
        if letter == "\\" and self.rest[:1].lower() in (*_KINDS,):
            return self._escaped()
        first = self._single(letter)
        if self.rest[:1] != "-" or self.rest[1:2] in ("]", ""):
            return _equals(first)
        self.at += 1
        last = self._single(self.letter())
        if last < first:
            raise PatternError(f"the range {first}-{last} is empty")
        return lambda c: first <= c <= last

    def _single(self, letter: str) -> str:
        if letter != "\\":
            return letter
        escape = self.letter()
        return "\b" if escape == "b" else self._code(escape)


_KINDS: dict[str, Test] = {"d": str.isdecimal, "s": str.isspace, "w": is_word}


def _equals(letter: str) -> Test:
    return lambda c: c == letter


def _folded(test: Test) -> Test:
    def passes(c: str) -> bool:
        return any(test(form) for form in {c, c.lower(), c.upper()} if len(form) == 1)

    return passes
