"""Hook of mkdocs: the help page of every command, where the page on commands asks for them."""

from __future__ import annotations

from deploykit import cli
from deploykit.cli import parsing

MARK = "<!-- the help pages -->"


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page with its mark replaced by the help pages."""
    return markdown.replace(MARK, help_pages()) if MARK in markdown else markdown


def help_pages() -> str:
    """Return a section for every command: what it is for, and what `--help` prints."""
    return "\n\n".join(
        f"## {name}\n\n```text\n{parsing.page(name, command)}```"
        for name, command in cli.COMMANDS.items()
    )
