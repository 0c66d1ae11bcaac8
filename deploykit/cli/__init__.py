"""The command line: parse, call one function, print.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from deploykit.cli import checking, making
from deploykit.cli.guarding import CLOSED, INTERRUPTED, guarded, open_streams

__all__ = ["CLOSED", "INTERRUPTED", "app", "main"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help takes a third of the time of the framed one
    pretty_exceptions_enable=False,
    help="From a trained PyTorch checkpoint to a proven TensorRT engine:\n\n"
    "export, quantize, build, then inspect, verify, eval, bench and report.",
)
for _name, _command in {**making.COMMANDS, **checking.COMMANDS}.items():
    app.command(_name)(guarded(_command))


def main() -> None:
    """Run one command and exit: 0 done, 1 a check said no, 2 usage or bad input."""
    open_streams()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
