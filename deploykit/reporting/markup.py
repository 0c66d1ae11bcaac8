"""HTML and SVG built from values, so that no text can be mistaken for markup."""

from __future__ import annotations

import html
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_VOID = frozenset({"meta", "br", "img"})
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
"""Unicode categories that print nothing, reorder the text around them, or cannot be encoded."""


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def plain(text: object) -> str:
    """Return `text` on one line, each control, formatting or unassigned character as U+FFFD."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in _INVISIBLE else c
        for c in " ".join(str(text).split())
    )


def escape(value: object) -> Markup:
    """Return `value` as HTML text; Markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(plain(value)))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """Return the element with its children and attributes escaped.

    Attribute names: `class_` is `class`, other underscores are hyphens; None is left out.
    """
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{pairs}>")
    return Markup(f"<{name}{pairs}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Return the parts one after the other, each escaped."""
    return Markup("".join(map(escape, parts)))
