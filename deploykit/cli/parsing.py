"""A command's signature is its parser: one place says what an option is called, takes and means.

The standard library's parser is all that it needs, so `--help` answers before anything is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, get_args, get_origin, get_type_hints

from deploykit.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WIDTH, _INDENT = 100, 28
"""Columns of a help page at most, and where its explanations begin."""
_TAKES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""Type -> what a help page calls a value of it."""
_REQUIRED = object()


@dataclass(frozen=True)
class Argument:
    """A word known by its place; one that is a list takes a word or more."""

    help: str


class Option:
    """A word known by its name: `--parameter-name` where none is given.

    A list is given by repeating it; a bool without names has a `--no-` twin.
    """

    def __init__(self, *names: str, help: str, takes: str | None = None) -> None:  # noqa: A002 - as argparse
        """Keep what a help page says; `takes` is a value's name there, None: its type's."""
        self.names, self.help, self.takes = names, help, takes


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise OptionError(message, fix=f"`{self.prog} --help` explains every option")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Names an option's value once, and starts the explanations in one column."""

    def __init__(self, prog: str) -> None:
        width = min(shutil.get_terminal_size().columns, _WIDTH) - 2
        super().__init__(prog, max_help_position=_INDENT, width=width)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {action.metavar}"


def parse(name: str, command: Callable[..., None], words: Sequence[str]) -> dict[str, Any]:
    """Return parameter -> value for the words that follow a command's name.

    Raises: OptionError; SystemExit after `--help`.
    """
    built, names = _parser(name, command)
    for word in itertools.takewhile(lambda word: word != "--", words):
        if word.startswith("--") and word.partition("=")[0] not in names:
            raise unknown_name("option", word, names)
    read = built.parse_args if "--" in words else built.parse_intermixed_args
    found = vars(read(list(words)))
    for parameter, group in groups(command).items():
        taken = {each.name: found.pop(each.name) for each in dataclasses.fields(group)}
        found[parameter] = group(**taken)
    return found


def groups(command: Callable[..., None]) -> dict[str, type[Any]]:
    """Return parameter -> the dataclass whose fields are options that several commands share."""
    hints = get_type_hints(command, include_extras=True)
    return {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}  # type: ignore[misc]  # types


def page(name: str, command: Callable[..., None]) -> str:
    """Return the help page of a command."""
    return _parser(name, command)[0].format_help()


def examples(command: Callable[..., None]) -> list[str]:
    """Return the command lines that end a command's docstring."""
    _, _, after = (command.__doc__ or "").partition("Examples:\n")
    return [line.strip() for line in after.splitlines() if line.strip()]


def _more(command: Callable[..., None]) -> list[str]:
    """Return the lines of a command's docstring between its summary and its examples."""
    body = (command.__doc__ or "").partition("\n")[2].partition("Examples:\n")[0].rstrip()
    return [*textwrap.dedent(body).strip("\n").splitlines(), ""] if body.strip() else []


def summary(command: Callable[..., None]) -> str:
    """Return what a command does, in one line."""
    return (command.__doc__ or "").partition("\n")[0]


def _parser(name: str, command: Callable[..., None]) -> tuple[_Parser, list[str]]:
    """Return the parser that a command's signature and docstring describe, and its options."""
    built = _Parser(
        prog=f"deploykit {name}",
        description=textwrap.fill(summary(command), _WIDTH - 2),
        epilog="\n".join([*_more(command), "examples:", *(f"  {e}" for e in examples(command))]),
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    names = ["--help"]
    defaults = command.__kwdefaults__ or {}
    for parameter, hint in get_type_hints(command, include_extras=True).items():
        for said in (hint, *get_args(hint)):  # Python 3.10 makes what defaults to None optional
            if get_origin(said) is Annotated:
                names += _add(built, parameter, said, defaults.get(parameter, _REQUIRED))
    for group in groups(command).values():
        part = built.add_argument_group(summary(group))
        hints = get_type_hints(group, include_extras=True)
        for each in dataclasses.fields(group):
            names += _add(part, each.name, hints[each.name], each.default)
    return built, names


def _add(
    built: argparse._ActionsContainer, parameter: str, hint: object, default: object
) -> list[str]:
    """Add what one parameter says to a parser, and return the option's names."""
    kind, what = get_args(hint)
    kind, many = _element(kind)
    text = _help(what, default)
    if isinstance(what, Argument):
        shown = parameter.upper()
        built.add_argument(
            parameter, type=kind, nargs="+" if many else None, metavar=shown, help=text
        )
        return []
    names = what.names or (f"--{parameter.replace('_', '-')}",)
    options: dict[str, Any] = {"dest": parameter, "help": text, "default": default}
    if kind is bool:
        options["action"] = "store_true" if what.names else argparse.BooleanOptionalAction
    else:
        options |= {"type": kind, "metavar": what.takes or _TAKES[kind]}
        options |= {"action": "append"} if many else {}
        options |= {"required": True, "default": None} if default is _REQUIRED else {}
    default = options.pop("default")  # set apart: Python 3.10 would write a bool's into its help
    added = built.add_argument(*names, default=argparse.SUPPRESS, **options)
    built.set_defaults(**{parameter: default})
    return list(added.option_strings)


def _element(kind: Any) -> tuple[type, bool]:  # noqa: ANN401 - whatever an annotation may be
    """Return the type of one value, and whether there may be several: `list[T] | None`."""
    none = type(None)
    if none in get_args(kind):
        (kind,) = (part for part in get_args(kind) if part is not none)
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _help(what: Argument | Option, default: object) -> str:
    text = what.help.replace("%", "%%")
    if isinstance(what, Option) and default is _REQUIRED:
        return f"{text}  [required]"
    plain = default is _REQUIRED or default is None or isinstance(default, bool) or default == 0
    return text if plain else f"{text}  [default: {default}]"
