r"""Regular expressions that came in with a file, matched in time linear in the text.

Python's own engine backtracks: `^(a+)+$` against thirty letters takes minutes. Here an expression
becomes a set of states that a text moves through letter by letter, and what was worked out once is
kept, so that a letter mostly costs one look-up.

Carried: letters, `.`, classes, groups, `|`, `* + ? {m,n}`, `^ $ \A \Z \b \B`, looks ahead, and
`(?i)` in front. Not carried: back references and looks behind. Source of the method: K. Thompson,
"Regular Expression Search Algorithm", CACM 11(6), 1968.
"""

from __future__ import annotations

from deploykit.files.patterns.matching import EFFORT, Pattern, PatternError, State
from deploykit.files.patterns.reading import Reader

__all__ = ["EFFORT", "Pattern", "PatternError", "compiled"]
LONGEST = 1000
"""Letters of an expression."""


def compiled(text: str, *, effort: int = EFFORT) -> Pattern:
    """Return the expression `text`, which may take `effort` steps in all its searches.

    Raises: PatternError.
    """
    if len(text) > LONGEST:
        raise PatternError(f"it has {len(text)} letters, more than {LONGEST}")
    pattern = Pattern(effort)
    reader = Reader(text, pattern)
    reader.fold = reader.takes("(?i)")
    build = reader.either()
    if reader.rest:
        raise PatternError(f"')' at {reader.at} closes nothing")
    first = build(pattern.add(State()))
    anywhere = pattern.add(State(follow=(first, len(pattern.states) + 1)))
    pattern.start = anywhere
    pattern.add(State(test=lambda _: True, follow=(anywhere,)))
    return pattern
