"""The command line: parse, call one function, print.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import gc
import logging
import sys
from typing import TYPE_CHECKING

from deploykit import __version__
from deploykit.cli import (
    checking,
    choosing,
    describing,
    learning,
    making,
    parsing,
    printing,
    showing,
)
from deploykit.cli.guarding import CLOSED, INTERRUPTED, guarded, open_streams, tidying
from deploykit.errors import OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["CLOSED", "COMMANDS", "INTERRUPTED", "main"]

COMMANDS: Mapping[str, Callable[..., None]] = {
    **making.COMMANDS,
    **describing.COMMANDS,
    **choosing.COMMANDS,
    **learning.COMMANDS,
    **checking.COMMANDS,
    **showing.COMMANDS,
}
_ROAD = """\
usage: deploykit COMMAND ...

From a trained PyTorch checkpoint to a proven TensorRT engine:
export, quantize, build, then inspect, verify, eval, predict, bench and report.

commands:
{commands}

options:
  -h, --help     this page; after a command: what the command takes, with examples
  -V, --version  which version this is"""


def main(words: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 done, 1 a check said no, 2 usage or bad input."""
    open_streams()
    given = list(sys.argv[1:] if words is None else words)
    try:
        with tidying():
            guarded(_run)(words=given, as_json="--json" in given)
    finally:
        if words is None:
            gc.freeze()  # the process ends: nothing is gained by looking for cycles in a model
    sys.exit(0)


def _run(words: Sequence[str], *, as_json: bool) -> None:
    del as_json  # is for what guards this
    match words:
        case []:
            raise OptionError(
                "no command", expected=f"one of {', '.join(COMMANDS)}", fix="`deploykit --help`"
            )
        case ["-h" | "--help", *_]:
            printing.emit({}, _overview(), as_json=False)
        case ["-V" | "--version", *_]:
            printing.emit({}, f"deploykit {__version__}", as_json=False)
        case [name, *_] if name not in COMMANDS:
            raise unknown_name("command", name, COMMANDS)
        case [name, *rest]:
            command = COMMANDS[name]
            given = parsing.parse(name, command, rest)
            from deploykit.files import lateness  # noqa: PLC0415 - `--help` has ended by now

            lateness.begin()
            logging.getLogger("onnx_ir").setLevel(logging.CRITICAL)  # it logs tracebacks
            guarded(command)(**given)


def _overview() -> str:
    """Return the help page of the whole program: one line a command."""
    width = max(map(len, COMMANDS))
    lines = (f"  {name:<{width}}  {parsing.summary(command)}" for name, command in COMMANDS.items())
    return _ROAD.format(commands="\n".join(lines))
